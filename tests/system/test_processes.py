"""Several processes: two of one run, and the runs of a sweep."""

import csv
import json

import pytest
from support import TINY, run_forked, run_script, runs_are_forks
from support.rounding import assert_same_run


def test_two_processes_train_validate_and_write_one_run_folder(tmp_path):
    arguments = [*TINY, "task.ema_decay=0.9", "recipe.drop_path=0"]  # each process draws its own masks
    two = ["trainer=ddp", "trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.devices=2", "name=two"]
    done = run_script("train.py", *arguments, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_forked("train.py", *arguments, "name=one", cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == ["one", "two"]
    assert json.loads((tmp_path / "outputs/two/result.json").read_text())["status"] == "finished"
    assert_same_run(tmp_path / "outputs/two", tmp_path / "outputs/one")
    with open(tmp_path / "outputs/two/metrics.csv", newline="") as file:
        assert [int(r["step"]) for r in csv.DictReader(file)] == list(range(13))


@pytest.mark.parametrize("words", [["attention.lam=-1,0.2"], ["attention.lam=0.2", "seed=-1,1"]])
def test_a_failing_run_does_not_end_the_sweep(words, tmp_path):
    """Whether what is wrong is found before torch is imported (the seed) or after."""
    done = run_forked("train.py", "-m", *words, *TINY, "trainer.max_epochs=1", cwd=tmp_path, setup=runs_are_forks)
    assert done.returncode == 2 and "=-1 " in done.stderr and "Traceback" not in done.stderr
    runs = [p.name for p in (tmp_path / "outputs").iterdir() if p.name != ".sweeps"]
    assert len(runs) == 1 and "lam0.2" in runs[0]
