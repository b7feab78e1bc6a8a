"""Many runs from one command: sweeps that are killed and continued, submitit, tables."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, TINY, assert_one_line_error, make_run, run_forked, runs_are_forks

from neutreno.config.composing import compose
from neutreno.runs import default_name
from neutreno.tablefiles import read_table

SWEEP = ["-m", "seed=0,1", *TINY]


def runs_in(folder):
    return sorted(p for p in (folder / "outputs").iterdir() if p.name != ".sweeps")


def status(run):
    file = run / "result.json"
    return json.loads(file.read_text())["status"] if file.exists() else None


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a killed sweep leaves its runs, which finish by themselves"
)
def test_a_killed_sweep_is_continued_by_the_same_command_and_runs_nothing_twice(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *SWEEP]
    with open(tmp_path / "first.log", "w") as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        sweep = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out, env=environment)
        until = time.monotonic() + 200
        while not any(status(r) == "finished" for r in (tmp_path / "outputs").glob("digits*")):
            assert sweep.poll() is None and time.monotonic() < until, (tmp_path / "first.log").read_text()
            time.sleep(0.02)
        children = subprocess.run(["pgrep", "-P", str(sweep.pid)], capture_output=True, text=True).stdout.split()
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    for child in children:  # a run that went on would be written by two
        for _ in range(500):
            if not alive(child):
                break
            time.sleep(0.02)
        else:
            pytest.fail("a run outlived its sweep")
    before = {r: (r / "result.json").stat().st_mtime_ns for r in runs_in(tmp_path) if status(r) == "finished"}
    assert len(before) == 1
    again = run_forked("train.py", *SWEEP, cwd=tmp_path, setup=runs_are_forks)
    assert again.returncode == 0, again.stderr
    assert "[1 of 2 runs done" in again.stdout and "[2 of 2 runs done, 0 running, 0 left]" in again.stdout
    assert len(runs_in(tmp_path)) == 2 and all(status(r) == "finished" for r in runs_in(tmp_path))
    assert all((r / "result.json").stat().st_mtime_ns == when for r, when in before.items())
    third = run_forked("train.py", *SWEEP, cwd=tmp_path)
    first, *lines = third.stdout.splitlines()
    assert first == "sweep of 2 runs: checking each"
    assert third.returncode == 0 and [line.endswith(": finished") for line in lines[:2]] == [True] * 2
    assert lines[2] == "[2 of 2 runs done, 0 running, 0 left]" and "logs: " not in third.stdout


def test_submitit_runs_a_sweep_as_jobs(tmp_path):
    sweep = ["-m", "attention.lam=-1,0.6", *TINY, "launcher=slurm", "launcher.cluster=local"]
    local = ["launcher.parameters.gpus_per_node=null", "launcher.parameters.timeout_min=5"]
    done = run_forked("train.py", *sweep, *local, cwd=tmp_path)
    assert done.returncode == 2 and "attention.lam=-1" in done.stderr and "Traceback" not in done.stderr
    assert [status(r) for r in runs_in(tmp_path)] == ["finished"]
    assert list(tmp_path.glob("outputs/.sweeps/*/*/*submitted.pkl"))


def test_reproduce_plans_every_row_and_seed(tmp_path):
    command = ["scripts/reproduce.py", "small", "--seeds", "2", *TINY, "trainer.max_epochs=1"]
    plan = run_forked(*command, "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0 and not (tmp_path / "outputs").exists(), plan.stderr
    lines = plan.stdout.splitlines()
    assert len(lines) == 13 and all(line.startswith("to run     neutreno train data=") for line in lines[:-1])
    assert "row=small/digits_softmax" in lines[0] and lines[-1] == "0 of 12 runs finished, 12 left"


def test_reproduce_says_what_it_cannot_do(tmp_path):
    assert_one_line_error(
        run_forked("scripts/reproduce.py", "table9", cwd=tmp_path), "no table table9; did you mean", "available: camvid"
    )
    for word in ("seed=3", "name=x", "experiment=table1/deit_tiny_softmax", "row=x", "resume=false"):
        done = run_forked("scripts/reproduce.py", "table1", word, cwd=tmp_path)
        assert_one_line_error(done, word, "leave it out")
    for seeds in ("0", "5-", "6-5", "-1", "some"):
        done = run_forked("scripts/reproduce.py", "table1", f"--seeds={seeds}", cwd=tmp_path)
        assert_one_line_error(done, f"--seeds {seeds}")
    others = run_forked("scripts/reproduce.py", "lab", "--seeds", "5-6", "--rows", "softmax", "--dry-run", cwd=tmp_path)
    assert "seed=5 " in others.stdout and "seed=6 " in others.stdout and "0 of 2 runs" in others.stdout
    assert_one_line_error(
        run_forked("scripts/reproduce.py", "table1", "nope=1", "--dry-run", cwd=tmp_path), "no key nope"
    )


def test_reproduce_takes_tables_of_other_folders_and_hands_these_on_to_the_runs(tmp_path):
    (tmp_path / "conf/table").mkdir(parents=True)
    (tmp_path / "conf/table/theirs.yaml").write_text("rows: {one: model=deit data=digits}")
    command = ["scripts/reproduce.py", "theirs", "--config-dir", "conf", "--seeds", "1", "--dry-run"]
    plan = run_forked(*command, cwd=tmp_path)
    said = f"to run     neutreno train --config-dir {tmp_path / 'conf'} model=deit data=digits seed=0 row=theirs/one"
    assert plan.returncode == 0 and plan.stdout.startswith(said), plan.stderr
    wrong = run_forked("scripts/reproduce.py", "small", "--config-dir", "no", "--dry-run", cwd=tmp_path)
    assert_one_line_error(wrong, "--config-dir no")
    assert_one_line_error(run_forked("scripts/reproduce.py", "theirs", cwd=tmp_path), "no table theirs")


def test_reproduce_ends_with_the_table_and_says_what_failed(street_folders, tmp_path):
    small = ["img_size=32", "num_workers=0", "batch_size=2", "num_classes=4", "class_names=null", "resize=[64,32]"]
    arguments = [f"data.root={street_folders}", *(f"data.{s}" for s in small), "model.depth=1", "model.embed_dim=16"]
    arguments += [
        "model.num_heads=1",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
        "task.protocols.multi_scale=null",
        "task.protocols.half_stride=null",
    ]
    command = ["scripts/reproduce.py", "camvid", "--seeds"]
    done = run_forked(*command, "1", *arguments, cwd=tmp_path, setup=runs_are_forks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2 of 2 runs done, 0 running, 0 left]" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith(("| softmax", "| neutreno"))]
    assert [line.split()[1:3] for line in table] == [["softmax", "*"], ["neutreno", "*"]]
    assert "trainer.max_epochs=1 (row: 40)" in done.stdout  # not the row's own settings
    failing = [a.replace(str(street_folders), "nowhere") for a in arguments]
    again = run_forked(*command, "2", *failing, cwd=tmp_path, setup=runs_are_forks)
    assert again.returncode == 2
    assert len(re.findall(r"^\| \w+ \* ", again.stdout, re.MULTILINE)) == 2  # the finished runs' table all the same
    assert [line.count("nowhere") > 0 for line in again.stderr.splitlines() if line.startswith("error: ")] == [True] * 2


def test_the_labs_table_tells_accuracy_similarity_rank_size_step_time_and_what_is_claimed(tmp_path):
    small = ["model.depth=2", "model.embed_dim=16", "model.num_heads=4", f"output_dir={tmp_path}/outputs"]
    lab = read_table("lab")
    for seed in (0, 1):
        for label in ("softmax", "linear_neutreno"):
            words = lab.words(label, seed, small)
            make_run(tmp_path / "outputs" / default_name(compose(words)), *words)
    again = run_forked("scripts/reproduce.py", "lab", "--seeds", "1", "--dry-run", *small, cwd=tmp_path).stdout
    assert f"2 of {len(lab.rows)} runs finished" in again, again
    page = run_forked("scripts/tables.py", "lab", cwd=tmp_path).stdout
    header, _, softmax, linear = (line.split("|") for line in page.splitlines() if line.startswith("|"))
    columns = [title.strip() for title in header]
    assert columns[-4:-1] == ["parameters", "step time", "what its authors claim"]
    assert "effective rank, trained" in columns
    assert softmax[columns.index("step time")].strip() == ""
    assert re.fullmatch(r"\d+\.\d+ × \(\d+\.\d+–\d+\.\d+\)", linear[columns.index("step time")].strip())
    assert softmax[columns.index("parameters")].strip() == "1,234"
    assert softmax[columns.index("effective rank, trained")].strip() == "5.00 ± 0.00"
    assert "test/top1" in columns and "similarity, trained" in columns
