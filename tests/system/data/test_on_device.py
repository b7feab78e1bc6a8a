import pytest
import torch
from support import TINY, assert_one_line_error, run_forked


@pytest.mark.parametrize("name, channels", [("cifar10", 3), ("fashion_mnist", 1)])
def test_trains_resumes_and_evaluates(image_parquet, tmp_path, name, channels):
    small = [
        f"data={name}",
        f"data.root={image_parquet}",
        "data.num_classes=2",
        "data.num_workers=0",
        "data.max_corrupt=0",
    ]
    arguments = [*TINY, *small, "data.batch_size=4", "task.warmup_epochs=1", "recipe.drop_path=0.1", "name=x"]
    done = run_forked("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/x"
    weights = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert weights["model.patch_embed.proj.weight"].shape[1] == channels
    assert run_forked("evaluate.py", str(run), cwd=tmp_path).returncode == 0
    wrong = [*arguments, "name=y", "data.root=nowhere"]
    assert_one_line_error(run_forked("train.py", *wrong, cwd=tmp_path), "data.root=nowhere")
