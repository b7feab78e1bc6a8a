"""Small sets as one tensor on the device: whole runs, killed and resumed."""

import json

import pytest
from support import TINY, assert_one_line_error, result, run_forked, train
from support.same_run import assert_same_run, dies_after, load, train_killed


@pytest.mark.parametrize("name, channels", [("cifar10", 3), ("fashion_mnist", 1)])
def test_trains_resumes_and_evaluates(image_parquet, tmp_path, name, channels):
    small = [
        f"data={name}",
        f"data.root={image_parquet}",
        "data.num_classes=2",
        "data.num_workers=0",
        "data.max_corrupt=0",
    ]
    arguments = [*TINY, *small, "data.batch_size=4", "task.warmup_epochs=1", "recipe.drop_path=0.1"]
    arguments.append("checkpoint.every_n_steps=3")
    whole = train(arguments, tmp_path, name="whole")
    assert load(whole)["state_dict"]["model.patch_embed.proj.weight"].shape[1] == channels
    killed = train_killed(arguments, tmp_path, setup=dies_after(1))
    assert load(killed)["global_step"] == 3 and result(whole)["steps"] == 12  # within an epoch of four
    run = train(arguments, tmp_path, "resume=true")
    assert_same_run(run, whole)
    assert run_forked("evaluate.py", str(run), cwd=tmp_path).returncode == 0
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == result(run)["metrics"]
    wrong = [*arguments, "name=y", "data.root=nowhere"]
    assert_one_line_error(run_forked("train.py", *wrong, cwd=tmp_path), "data.root=nowhere")
