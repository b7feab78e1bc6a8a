"""The runs of a sweep: how they are started, skipped, noted in its manifest, and shown at its end."""

import itertools
import json
import os
import re
import time
from pathlib import Path

import pytest
from support import make_run

from neutreno.config.composing import compose
from neutreno.launchers import Local, Slurm
from neutreno.reports.comparison import group_runs
from neutreno.reports.reading import read_runs
from neutreno.runs import RunFolder
from neutreno.sweep import Job, launch, plan


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


def test_the_time_of_a_step_is_that_of_any_model_of_images(tmp_path):
    from neutreno.evaluation.step_time import step_time

    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=2", "data.batch_size=2"]
    for data, more in (("digit_scenes", ["model.decoder_depth=1"]), ("python_docs", [])):
        for model in ("softmax", "neutreno"):
            make_run(tmp_path / data / model, f"data={data}", f"attention={model}", *small, *more)
        groups, _ = group_runs(read_runs([tmp_path / data])[0])
        said = step_time(groups[1], groups[0], repeats=3)
        assert re.fullmatch(r"\d+\.\d+ × \(\d+\.\d+–\d+\.\d+\)", said) if data == "digit_scenes" else said == ""


def test_multiply_adds_of_a_row_are_those_of_its_network_without_its_weights(tmp_path):
    """By the sizes of its run's config; no checkpoint lies there."""
    from neutreno.evaluation.cost import giga_multiply_adds, training_memory_mib

    for size in ("tiny", "small"):
        words = ["data=imagenet", "data.root=x", "data.batch_size=2", "model=deit", f"model.size={size}"]
        make_run(tmp_path / "images" / size, *words)
    groups, _ = group_runs(read_runs([tmp_path / "images"])[0])
    found = {g.settings["model.size"]: giga_multiply_adds(g, None) for g in groups}
    assert found == {"tiny": "1.254", "small": "4.599"}  # tiny by hand in unit/evaluation/test_cost.py
    make_run(tmp_path / "text/x", "data=python_docs", "model.depth=1")
    (text,), _ = group_runs(read_runs([tmp_path / "text"])[0])
    assert giga_multiply_adds(text, None) == training_memory_mib(text, None) == ""


def test_memory_of_a_row_is_that_of_a_training_step_and_on_a_cpu_there_is_none(tmp_path):
    import torch

    from neutreno.evaluation.cost import training_memory_mib

    make_run(tmp_path / "x", "data=imagenet", "data.root=x", "model=deit", "data.batch_size=2")
    (group,), _ = group_runs(read_runs([tmp_path])[0])
    found = training_memory_mib(group, None)
    if torch.cuda.is_available():  # weights, gradients and two moments of AdamW in float32
        assert float(found.replace(",", "")) > 4 * 4 * 5_717_416 / 2**20
    else:
        assert found == "no GPU"
