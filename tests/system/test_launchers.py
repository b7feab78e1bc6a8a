"""Jobs under SLURM, with stand-ins for its commands."""

import json
import os
import subprocess
import sys

import torch
from support import ROOT, TINY, run_forked, run_ranks
from support.rounding import assert_same_run

SCRIPT = ROOT / "scripts/slurm/train.sbatch"

# Starts one task, as srun does, and notes it; SLURM ends the tasks of a job that is requeued by SIGTERM.
SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit=1
export SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export BATCH_PID=$PPID
echo $$ > task
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> scontrol.log
kill -TERM "$(cat task)"
touch terminated
"""
# The job's first start is near its time limit when the run writes its second checkpoint.
PYTHON = f"""#!{sys.executable}
import os, runpy, signal, sys, time
if "SLURM_RESTART_COUNT" not in os.environ:
    replace, written = os.replace, []
    def replaced(source, target):
        replace(source, target)
        written.append(target) if str(target).endswith("last.ckpt") else None
        if len(written) == 2:
            written.append(None)
            os.kill(int(os.environ["BATCH_PID"]), signal.SIGUSR1)
            while not os.path.exists("terminated"):
                time.sleep(0.01)
    os.replace = replaced
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_job_near_its_time_limit_is_requeued_and_resumes(tmp_path):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    arguments = [*TINY, "trainer.accelerator=cpu", "trainer.precision=32-true", "name=x"]

    def start(**more):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path, **more}
        words = ["bash", str(SCRIPT), *arguments, "checkpoint.every_n_steps=3"]
        return subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**environment, "SLURM_JOB_ID": "77"}
        )

    first = start()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n" and "requeued" in first.stdout
    assert first.returncode != 0 and "Traceback" not in first.stderr, first.stderr
    run = tmp_path / "outputs/x"
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] < 12
    second = start(SLURM_RESTART_COUNT="1")
    assert second.returncode == 0, second.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    assert "Restored all states" in (run / "train.log").read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"  # a run that ends is not requeued
    whole = run_forked("train.py", *arguments[:-1], "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert_same_run(run, tmp_path / "outputs/whole")


def test_machines_and_devices_are_those_of_srun(tmp_path):
    slurm = ["trainer=slurm", "trainer.accelerator=cpu", "trainer.precision=32-true", "name=x"]
    for done in run_ranks(2, *TINY, *slurm, cwd=tmp_path, slurm=True):
        assert done.returncode == 0 and not done.stderr, done.stderr
    devices = json.loads((tmp_path / "outputs/x/result.json").read_text())["devices"]
    assert (devices["processes"], devices["machines"]) == (2, 1)
