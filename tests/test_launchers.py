"""Many runs from one command: sweeps, tables, several at once, SLURM."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, assert_one_line_error, make_run, run_forked, run_script

from neutreno.config.composing import compose
from neutreno.launchers import Local, Slurm
from neutreno.reports.comparison import group_runs
from neutreno.reports.reading import read_runs
from neutreno.runs import RunFolder, default_name
from neutreno.sweep import Job, launch, plan
from neutreno.tablefiles import read_table

SWEEP = ["-m", "attention.lam=0,0.6", "seed=0,1", *TINY, "launcher.max_parallel=2"]


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


@pytest.mark.slow
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
    assert 1 <= len(before) < 4
    again = run_script("train.py", *SWEEP, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"[{len(before)} of 4 runs done" in again.stdout and "[4 of 4 runs done, 0 running, 0 left]" in again.stdout
    assert len(runs_in(tmp_path)) == 4 and all(status(r) == "finished" for r in runs_in(tmp_path))
    assert all((r / "result.json").stat().st_mtime_ns == when for r, when in before.items())
    third = run_script("train.py", *SWEEP, cwd=tmp_path)
    lines = third.stdout.splitlines()
    assert third.returncode == 0 and [line.endswith(": finished") for line in lines[:4]] == [True] * 4
    assert lines[4] == "[4 of 4 runs done, 0 running, 0 left]" and "logs: " not in third.stdout


@pytest.mark.slow
def test_submitit_runs_a_sweep_as_jobs(tmp_path):
    sweep = ["-m", "attention.lam=-1,0.6", *TINY, "launcher=slurm", "launcher.cluster=local"]
    local = ["launcher.parameters.gpus_per_node=null", "launcher.parameters.timeout_min=5"]
    done = run_script("train.py", *sweep, *local, cwd=tmp_path)
    assert done.returncode == 2 and "attention.lam=-1" in done.stderr and "Traceback" not in done.stderr
    assert [status(r) for r in runs_in(tmp_path)] == ["finished"]
    assert list(tmp_path.glob("outputs/.sweeps/*/*/*submitted.pkl"))


def test_slurm_gets_an_array_of_jobs_with_the_resources_asked_for(tmp_path, monkeypatch):
    """What sbatch is given, caught by a command of its name."""
    submitit = pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name, script in {"sbatch": 'cp "$1" "$SBATCH_COPY"; echo Submitted batch job 12', "srun": "true"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_COPY", str(tmp_path / "script"))
    launcher = Slurm(max_parallel=3, parameters={"timeout_min": 90, "gpus_per_node": 2, "slurm_partition": "big"})
    executor = launcher.executor(tmp_path / "logs")
    assert isinstance(executor._executor, submitit.SlurmExecutor)
    executor.submit_array([str, str, str, str])
    script = (tmp_path / "script").read_text()
    for line in ("--array=0-3%3", "--time=90", "--gpus-per-node=2", "--partition=big", "--job-name=neutreno"):
        assert f"#SBATCH {line}" in script, script


def test_runs_at_once_share_the_cores_and_take_a_gpu_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    found = [Local(max_parallel=3)._environment(slot, ["4", "6"]) for slot in range(3)]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in found] == ["4", "6", "4"]
    assert {e["OMP_NUM_THREADS"] for e in found} == {"2"}
    assert Local()._environment(0, [])["PATH"] == os.environ["PATH"]


def test_reproduce_plans_every_row_and_seed(tmp_path):
    command = ["scripts/reproduce.py", "small", "--seeds", "2", *TINY, "trainer.max_epochs=1"]
    plan = run_forked(*command, "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0 and not (tmp_path / "outputs").exists(), plan.stderr
    lines = plan.stdout.splitlines()
    assert len(lines) == 13 and all(line.startswith("to run     neutreno train data=") for line in lines[:-1])
    assert "row=small/digits_softmax" in lines[0] and lines[-1] == "0 of 12 runs finished, 12 left"


def test_reproduce_says_what_it_cannot_do(tmp_path):
    assert_one_line_error(run_forked("scripts/reproduce.py", "table9", cwd=tmp_path), "table9", "table1")
    for word in ("seed=3", "name=x", "experiment=table1/deit_tiny_softmax", "row=x", "resume=false"):
        done = run_forked("scripts/reproduce.py", "table1", word, cwd=tmp_path)
        assert_one_line_error(done, word, "leave it out")
    assert_one_line_error(run_forked("scripts/reproduce.py", "table1", "--seeds", "0", cwd=tmp_path), "--seeds 0")
    assert_one_line_error(run_forked("scripts/reproduce.py", "table1", "nope=1", "--dry-run", cwd=tmp_path), "nope")


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


class Ends:
    """A launcher whose runs end at once, with the codes given by their names, and what a finished run leaves."""

    def __init__(self, codes=None) -> None:
        self.codes, self.waves = codes or {}, []

    def run(self, jobs, started, ended, running):
        self.waves.append([job.name for job in jobs])
        for job in jobs:
            started(job)
            code = self.codes.get(job.name, 0)
            job.log.write_text("error: it did not\n" if code else "")
            if not code:
                make_run(job.run.path, *job.overrides)
            ended(job, code)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """``sweep(codes, table)`` launches two seeds of softmax, two of NeuTRENO that need these, one that is refused."""
    import neutreno.sweep

    def start(codes=None, table=None, *more):
        where = [f"output_dir={tmp_path / 'outputs'}", *more]
        jobs = {}
        for net, seed in itertools.product(("deit", "deit_neutreno"), (0, 1)):
            words = [f"name={net}{seed}", f"model={net}", f"seed={seed}", *where]
            jobs[f"{net}{seed}"] = plan(compose(words))
        for seed in (0, 1):
            jobs[f"deit_neutreno{seed}"].needs = [jobs[f"deit{seed}"]]
        jobs["bad"] = plan(compose(["name=bad", "attention.lam=-1", *where]))
        ends = Ends(codes)
        monkeypatch.setattr(neutreno.sweep, "build", lambda node: ends)
        failed = launch([*jobs.values()], compose(where).config, *([table] if table else []))
        (folder,) = (tmp_path / "outputs/.sweeps").iterdir()
        return {job.name: reason for job, reason in failed}, json.loads((folder / "manifest.json").read_text()), ends

    return start


def test_a_sweep_names_what_it_skips_keeps_a_manifest_and_ends_with_its_table(sweep, tmp_path, capsys):
    make_run(tmp_path / "outputs/deit0", "model=deit", "seed=0", f"output_dir={tmp_path / 'outputs'}")
    failed, manifest, ends = sweep({"deit1": 1})
    assert ends.waves == [["deit1", "deit_neutreno0"], []]
    assert (
        failed.keys() == {"bad", "deit1", "deit_neutreno1"} and failed["deit_neutreno1"] == "needs deit1, which failed"
    )
    said = capsys.readouterr()
    assert "skipped deit0: finished\nskipped bad: attention.lam=-1 " in said.out
    assert said.out.count("| runs ") == 1 and "digits deit-mini neutreno λ̃=0.6" in said.out
    folders = [str(tmp_path / "outputs" / name) for name in ("deit0", "deit_neutreno0")]
    nexts = [f"next: neutreno figures {tmp_path / 'outputs'}/deit*", f"      neutreno dashboard {tmp_path / 'outputs'}"]
    assert said.out.splitlines()[-2:] == nexts
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == ["bad", "deit1", "deit_neutreno1"]
    assert manifest["command"] and manifest["began"].endswith("+00:00")
    states = {run["name"]: run["state"] for run in manifest["runs"]}
    assert states == {"deit0": "skipped", "deit1": "failed", "deit_neutreno0": "finished", "deit_neutreno1": "failed",
                      "bad": "skipped"}  # fmt: skip
    by_name = {run["name"]: run for run in manifest["runs"]}
    assert by_name["deit0"]["reason"] == "finished" and by_name["deit1"]["reason"] == "it did not"
    run = by_name["deit_neutreno0"]
    assert run["started"] <= run["ended"] and Path(run["log"]).exists() and "name=deit_neutreno0" in run["command"]
    assert run["folder"] == folders[1] and run["reason"] is None and by_name["bad"]["log"] is None


def test_a_bug_in_the_table_does_not_hide_what_failed(sweep, capsys):
    with pytest.raises(ZeroDivisionError):
        sweep({"deit0": 1}, lambda folders: 1 / 0)
    assert "error: deit0: it did not" in capsys.readouterr().err


@pytest.mark.parametrize(("codes", "more"), [(dict.fromkeys(["deit0", "deit1"], 1), []), ({}, ["preflight=true"])])
def test_a_sweep_without_a_finished_run_or_that_only_measures_prints_no_table(codes, more, sweep, capsys):
    sweep(codes, None, *more)
    said = capsys.readouterr().out
    assert "| runs " not in said and "next: " not in said


def test_sweeps_of_one_second_have_a_manifest_each(tmp_path, monkeypatch):
    from neutreno.sweep import Manifest

    monkeypatch.setattr(time, "strftime", lambda _: "now")
    job = Job(["seed=0"], RunFolder(tmp_path, "x"), "to run")
    folders = [Manifest([job], tmp_path).folder.name for _ in range(3)]
    assert folders == ["now", "now-2", "now-3"] and job.log == tmp_path / ".sweeps/now-3/000-x.log"


@pytest.mark.slow
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
    done = run_script("scripts/reproduce.py", "camvid", "--seeds", "1", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2 of 2 runs done, 0 running, 0 left]" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith(("| softmax", "| neutreno"))]
    assert [line.split()[1:3] for line in table] == [["softmax", "*"], ["neutreno", "*"]]
    assert "trainer.max_epochs=1 (row: 40)" in done.stdout  # not the row's own settings
    failing = [a.replace(str(street_folders), "nowhere") for a in arguments]
    again = run_script("scripts/reproduce.py", "camvid", "--seeds", "2", *failing, cwd=tmp_path)
    assert again.returncode == 2
    assert len(re.findall(r"^\| \w+ \* ", again.stdout, re.MULTILINE)) == 2  # the finished runs' table all the same
    assert [line.count("nowhere") > 0 for line in again.stderr.splitlines() if line.startswith("error: ")] == [True] * 2


def test_the_labs_table_tells_accuracy_similarity_rank_size_and_step_time(tmp_path):
    small = ["model.depth=2", "model.embed_dim=16", "model.num_heads=4", f"output_dir={tmp_path}/outputs"]
    plan = run_forked("scripts/reproduce.py", "lab", "--seeds", "2", "--dry-run", *small, cwd=tmp_path).stdout
    assert "0 of 32 runs finished" in plan
    lab = read_table("lab")
    for seed in (0, 1):
        for label in ("softmax", "linear_neutreno"):
            words = lab.words(label, seed, small)
            make_run(tmp_path / "outputs" / default_name(compose(words)), *words)
    again = run_forked("scripts/reproduce.py", "lab", "--seeds", "2", "--dry-run", *small, cwd=tmp_path).stdout
    assert "4 of 32 runs finished" in again, again
    page = run_forked("scripts/tables.py", "lab", cwd=tmp_path).stdout
    header, _, softmax, linear = (line.split("|") for line in page.splitlines() if line.startswith("|"))
    columns = [title.strip() for title in header]
    assert [*columns[-3:-1]] == ["parameters", "step time"] and "effective rank, trained" in columns
    assert softmax[columns.index("step time")].strip() == ""
    assert re.fullmatch(r"\d+\.\d+ × \(\d+\.\d+–\d+\.\d+\)", linear[columns.index("step time")].strip())
    assert softmax[columns.index("parameters")].strip() == "1,234"
    assert softmax[columns.index("effective rank, trained")].strip() == "5.00 ± 0.00"
    assert "test/top1" in columns and "similarity, trained" in columns


def test_the_time_of_a_step_is_that_of_any_model_of_images(tmp_path):
    from neutreno.evaluation.step_time import step_time

    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=2", "data.batch_size=2"]
    for data, more in (("digit_scenes", ["model.decoder_depth=1"]), ("python_docs", [])):
        for model in ("softmax", "neutreno"):
            make_run(tmp_path / data / model, f"data={data}", f"attention={model}", *small, *more)
        groups, _ = group_runs(read_runs([tmp_path / data])[0])
        said = step_time(groups[1], groups[0], repeats=3)
        assert re.fullmatch(r"\d+\.\d+ × \(\d+\.\d+–\d+\.\d+\)", said) if data == "digit_scenes" else said == ""
