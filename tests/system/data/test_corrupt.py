"""Real photographs' formats, and files that cannot be read: skipped, named and counted, up to a share."""

import json
import os
import shutil

import numpy as np
import pytest
from support import assert_one_line_error, make_image, result, run_forked

SMALL = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.img_size=32", "trainer.max_epochs=2"]


@pytest.fixture
def photographs(tmp_path):
    """ImageNet's layout: JPEGs of several sizes, grey-scale and CMYK ones among them."""
    root = tmp_path / "photographs"
    for split, count in (("train", 12), ("val", 5)):
        for name in ("n01440764", "n01443537"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = make_image(i, 64).resize((30 + 17 * i, 90 - 5 * i)).convert(["RGB", "L", "CMYK"][i % 3])
                image.save(root / split / name / f"{name}_{i}.JPEG", quality=80)
    return root


def train(root, cwd, *arguments):
    settings = ["data=imagenet", f"data.root={root}", "data.num_classes=2", "data.batch_size=8", "name=x"]
    return run_forked("train.py", *settings, *SMALL, *arguments, cwd=cwd)


def test_jpegs_of_every_size_grey_scale_and_cmyk_train_and_validate(photographs, tmp_path):
    done = train(photographs, tmp_path, "data.num_workers=2")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = result(tmp_path / "outputs/x")
    assert found["steps"] == 6 and found["corrupt_images"] == 0 and found["metrics"]["val/top1"] % 10 == 0
    assert np.isfinite(list(found["metrics"].values())).all()
    assert not (tmp_path / "outputs/x/corrupt_images.txt").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_skipped_named_and_counted(photographs, tmp_path, workers):
    broken = {
        photographs / "train/n01440764/n01440764_0.JPEG": b"",
        photographs / "train/n01443537/n01443537_4.JPEG": b"\xff\xd8\xff\xe0 no more",
        photographs / "val/n01440764/n01440764_1.JPEG": None,
    }
    for file, content in broken.items():
        file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    done = train(photographs, tmp_path, f"data.num_workers={workers}", "data.max_corrupt=0.1", "data.repeats=1")
    assert done.returncode == 0, done.stderr
    named = (tmp_path / "outputs/x/corrupt_images.txt").read_text()
    assert all(str(file) in named for file in broken) and "is empty" in named
    found = result(tmp_path / "outputs/x")
    assert found["corrupt_images"] == 3 and found["steps"] == 6
    assert found["metrics"]["val/top1"] * 9 / 100 == pytest.approx(
        round(found["metrics"]["val/top1"] * 9 / 100), abs=1e-3
    )
    assert "3 corrupt images" in done.stdout and "corrupt_images.txt" in done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_corrupt_images_stop_the_run(photographs, tmp_path, workers):
    for i in range(6):
        (photographs / f"train/n01440764/n01440764_{i}.JPEG").write_bytes(b"")
    done = train(photographs, tmp_path, f"data.num_workers={workers}", "data.max_corrupt=0.1", "data.repeats=1")
    assert_one_line_error(done, "more than 3 corrupt images", "data.max_corrupt", "corrupt_images.txt")
    assert result(tmp_path / "outputs/x")["status"] == "failed"


@pytest.mark.parametrize("classes", [3, 1000])
def test_a_checkpoint_of_other_classes_needs_a_word_of_the_user(tmp_path, classes):
    import torch

    from neutreno.models.vit import VisionTransformer

    small = {"img_size": 8, "patch_size": 2, "in_chans": 1, "depth": 2, "embed_dim": 16, "num_heads": 2}
    torch.save({"model": VisionTransformer("mini", num_classes=classes, **small).state_dict()}, tmp_path / "other.pth")
    arguments = ["model.depth=2", "model.embed_dim=16", "model.num_heads=2", "trainer.max_epochs=1", "name=x"]
    arguments += [f"model.weights={tmp_path}/other.pth", "trainer.limit_train_batches=1"]
    refused = run_forked("train.py", *arguments, cwd=tmp_path)
    assert_one_line_error(refused, f"{classes} classes", "the model has 10", "model.new_head=true")
    done = run_forked("train.py", *arguments, "model.new_head=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_needs_no_training_images_and_counts_corrupt_ones(photographs, tmp_path):
    done = train(photographs, tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(photographs / "train")
    (photographs / "val/n01440764/n01440764_0.JPEG").write_bytes(b"")
    settings = ["data.max_corrupt=0.2", "evaluators=[metrics]"]
    done = run_forked("evaluate.py", str(tmp_path / "outputs/x"), *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/x/evaluation.json").read_text())
    assert found["corrupt_images"] == 1 and "corrupt images left out" in done.stdout
    assert found["metrics"]["val/top1"] * 9 / 100 == pytest.approx(
        round(found["metrics"]["val/top1"] * 9 / 100), abs=1e-3
    )


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_split_of_which_nothing_can_be_read_makes_no_run(photographs, tmp_path, split, share):
    """With a training set of them a run would look for a readable one forever."""
    other = "train" if split == "val" else "val"
    for file in (photographs / split).rglob("*_[2-9]*"):
        file.unlink()
    for file in (photographs / split).rglob("*.JPEG"):
        file.write_bytes(b"no")
    assert len([*(photographs / other).rglob("*.JPEG")]) >= 8
    done = train(photographs, tmp_path, f"data.max_corrupt={share}", "data.batch_size=2", "data.repeats=1")
    assert_one_line_error(done, f"none of the {split} split's images can be read", "_0.JPEG")
    assert not (tmp_path / "outputs").exists()


def test_names_with_line_breaks_or_that_are_not_utf8_are_a_line_each(photographs, tmp_path):
    folder = os.fsencode(photographs / "train/n01440764")
    for name in (b"a\nb.JPEG", b"\xff.JPEG"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"no")
    done = train(
        photographs,
        tmp_path,
        "data.max_corrupt=0.1",
        "data.repeats=1",
        "data.batch_size=13",
        "task.mixup=0",
        "task.cutmix=0",
    )
    assert done.returncode == 0, done.stderr
    named = (tmp_path / "outputs/x/corrupt_images.txt").read_text().splitlines()
    assert result(tmp_path / "outputs/x")["corrupt_images"] == len(named) == 2
    assert any("a b.JPEG is not" in line for line in named) and any(r"\udcff.JPEG is not" in line for line in named)
