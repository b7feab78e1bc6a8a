import json
import os

import pytest
import torch
from support import assert_one_line_error, encode, make_image, run_forked, run_ranks
from support.corruptions import link_corruptions, write

from neutreno.evaluation.robustness import (
    wnids,
)


@pytest.fixture
def imagenet(tmp_path):
    """An ImageNet of one image per class, and its -C, -A and -R."""
    root = tmp_path / "imagenet"
    for i, wnid in enumerate(wnids()):
        (root / "train" / wnid).mkdir(parents=True)
        (root / "train" / wnid / "0.JPEG").write_bytes(encode(make_image(i, side=20), "JPEG"))
    os.symlink(root / "train", root / "val")
    for name in ("imagenet_a", "imagenet_r"):
        for wnid in wnids(name):
            (tmp_path / name).mkdir(exist_ok=True)
            os.symlink(root / "train" / wnid, tmp_path / name / wnid)
    link_corruptions(tmp_path / "imagenet_c", lambda corruption, severity: root / "train")
    return root


def evaluation(root, *more):
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), root.parent / "weights.pth")
    small = ["data=imagenet", f"data.root={root}", "data.img_size=32", "data.num_workers=0", "data.batch_size=100"]
    return ["model=timm", "model.name=test_vit", "model.weights=weights.pth", *small, "probe.num_samples=2", *more]


def test_evaluate_measures_robustness_from_the_published_folders(imagenet, tmp_path):
    arguments = evaluation(imagenet, "data.eval_batch_size=8", "trainer.limit_val_batches=1", "name=x")
    folders = [f"evaluator.robustness.{name}={tmp_path / name}" for name in ("imagenet_c", "imagenet_a", "imagenet_r")]
    done = run_forked("evaluate.py", *arguments, *folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    found = content["records"]["robustness"]
    assert found.keys() == {"imagenet_c", "imagenet_a", "imagenet_r"}
    # All corruptions are one and the same set here, the one of val; only the crop differs.
    assert len({tuple(e.values()) for e in found["imagenet_c"]["errors"].values()}) == 1
    assert found["imagenet_a"]["images"] == found["imagenet_a"]["classes"] == 200
    page = (tmp_path / "outputs/evaluations/x/evaluation.md").read_text()
    assert page in done.stdout
    for words in ("15 × 5", "| jpeg_compression", "ImageNet-R, images of 200 classes", "val_crop0.9/top1"):
        assert words in page
    figures = {name: value for name, value in content["metrics"].items() if name.startswith("imagenet_")}
    assert figures == {
        "imagenet_c/mce": found["imagenet_c"]["mce"],
        "imagenet_c/mean_error": found["imagenet_c"]["mean_error"],
        "imagenet_a/top1": found["imagenet_a"]["top1"],
        "imagenet_r/top1": found["imagenet_r"]["top1"],
    }
    assert content["settings"]["evaluator"]["robustness"]["imagenet_c"] == str(tmp_path / "imagenet_c")
    (tmp_path / "imagenet_a" / "n01498041").unlink()
    done = run_forked("evaluate.py", *arguments, *folders, cwd=tmp_path)
    assert_one_line_error(done, "imagenet_a lacks 1 of its 200 classes (n01498041)")


def test_two_processes_count_no_image_twice(imagenet, tmp_path):
    """201 images of ImageNet-R, an odd number."""
    extra = tmp_path / "imagenet_r" / "n01443537"
    extra.unlink()
    write(tmp_path / "imagenet_r", {"n01443537": [make_image(1), make_image(2)]})
    arguments = evaluation(imagenet, f"evaluator.robustness.imagenet_r={tmp_path / 'imagenet_r'}")
    arguments += ["trainer.accelerator=cpu", "evaluators=[metrics,robustness]"]
    assert run_forked("evaluate.py", *arguments, "name=one", cwd=tmp_path).returncode == 0
    two = ["name=two", "trainer.devices=2"]
    for done in run_ranks(2, *arguments, *two, script="evaluate.py", cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"outputs/evaluations/{n}/evaluation.json").read_text()) for n in ("one", "two"))
    first, second = (found["records"]["robustness"]["imagenet_r"] for found in (one, two))
    assert first["images"] == 201
    assert first == pytest.approx(second, rel=1e-5)
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
