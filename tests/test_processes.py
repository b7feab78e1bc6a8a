"""Several processes: two of one run, and the runs of a sweep."""

import csv
import json

import pytest
import torch
from conftest import TINY, make_image, run_forked, run_script

pytestmark = pytest.mark.slow


def test_two_processes_train_validate_and_write_one_run_folder(tmp_path):
    arguments = [*TINY, "task.ema_decay=0.9", "recipe.drop_path=0"]  # each process draws its own masks
    done = run_script("train.py", *arguments, "trainer.accelerator=cpu", "trainer.devices=2", "name=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_forked("train.py", *arguments, "name=one", cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == ["one", "two"]
    one, two = (json.loads((tmp_path / "outputs" / n / "result.json").read_text()) for n in ("one", "two"))
    assert two["status"] == "finished" and one["metrics"].keys() == two["metrics"].keys()
    # The same global batches: the same weights up to the order of floating-point sums.
    states = []
    for name in ("one", "two"):
        state = torch.load(tmp_path / "outputs" / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        states.append(torch.cat([v.flatten() for k, v in state.items() if k.startswith(("model.", "ema."))]))
    assert (states[0] - states[1]).norm() < 1e-3 * states[0].norm()
    with open(tmp_path / "outputs/two/metrics.csv", newline="") as file:
        assert [int(r["step"]) for r in csv.DictReader(file)] == list(range(13))


def test_two_processes_count_no_sample_twice(image_folders, tmp_path):
    """Five validation images on two processes: one process again must give the same metrics."""
    make_image(7).save(image_folders / "val" / "cat" / "odd.png")
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.img_size=32", "data.num_workers=0"]
    arguments = [f"data.root={image_folders}", "data.num_classes=2", "data.batch_size=4", *small, "name=x"]
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1"]
    done = run_script("train.py", "data=imagenet", *arguments, *two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run_forked("evaluate.py", "outputs/x", cwd=tmp_path).returncode == 0
    result, again = (json.loads((tmp_path / "outputs/x" / f).read_text()) for f in ("result.json", "evaluation.json"))
    assert result["metrics"]["val/top1"] % 20 == pytest.approx(0)
    again = {name: value for name, value in again["metrics"].items() if "crop0.9" not in name}
    assert result["metrics"] == pytest.approx(again, rel=1e-5)


def test_a_sweep_makes_a_run_folder_each_and_compare_compares_them(tmp_path):
    arguments = [*TINY, "trainer.max_epochs=1"]
    sweep = ["-m", "attention.lam=0,0.6", "seed=0,1"]
    done = run_script("train.py", *sweep, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(p for p in (tmp_path / "outputs").iterdir() if p.name != ".sweeps")
    assert len(runs) == 4 and all(json.loads((r / "result.json").read_text())["status"] == "finished" for r in runs)
    assert not any(set("=,") & set(r.name) for r in runs)
    compared = run_forked("scripts/compare.py", *map(str, runs), cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    cells = [[c.strip() for c in line.split("|")[1:3]] for line in compared.stdout.splitlines() if line.startswith("|")]
    assert cells[2:] == [[f"digits deit-mini neutreno λ̃={lam}", "2"] for lam in ("0", "0.6")]


def test_a_failing_run_does_not_end_the_sweep(tmp_path):
    done = run_script("train.py", "-m", "attention.lam=-1,0.2", *TINY, "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 2 and "attention.lam=-1" in done.stderr and "Traceback" not in done.stderr
    runs = [p.name for p in (tmp_path / "outputs").iterdir() if p.name != ".sweeps"]
    assert len(runs) == 1 and "lam0.2" in runs[0]
