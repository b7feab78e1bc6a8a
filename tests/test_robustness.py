import json
import os

import numpy as np
import pytest
import torch
from conftest import assert_one_line_error, encode, make_image, run_forked, run_script
from lightning import Trainer
from PIL import Image
from torch import nn

from neutreno.data.classification import ImageClassification
from neutreno.errors import InputError
from neutreno.evaluation.robustness import (
    ALEXNET,
    SEVERITIES,
    check_classes,
    check_corruptions,
    check_folders,
    corruption_error,
    evaluate_corruptions,
    evaluate_folder,
    wnids,
)


class Favours(nn.Module):
    """Answers every image with the same ranking of ImageNet's classes: the first of ``ranking`` first."""

    num_classes = 1000

    def __init__(self, *ranking: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1000))
        with torch.no_grad():
            for place, index in enumerate(ranking):
                self.logits[index] = 1000 - place

    def forward(self, images):
        return self.logits.expand(len(images), -1)


class Darkness(nn.Module):
    """Says tench of an image that is dark, and goldfish of a light one."""

    num_classes = 1000

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        logits = torch.full((len(images), 1000), -1e9)
        logits[:, 1] = self.weight * images.mean((1, 2, 3))
        logits[:, 0] = -logits[:, 1]
        return logits


@pytest.fixture
def data():
    sizes = {"img_size": 16, "in_chans": 3, "num_classes": 1000, "eval_batch_size": 2}
    return ImageClassification(root=None, mean=[0.5] * 3, std=[0.5] * 3, **sizes)


@pytest.fixture
def trainer():
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def write(folder, images):
    """``folder/WNID/i.JPEG``."""
    for wnid, pictures in images.items():
        (folder / wnid).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(folder / wnid / f"{i}.JPEG")
    return folder


def link_corruptions(root, classes_of):
    for corruption in ALEXNET:
        (root / corruption).mkdir(parents=True)
        for severity in SEVERITIES:
            os.symlink(classes_of(corruption, severity), root / corruption / str(severity))
    return root


def test_mean_corruption_error_by_hand():
    """Each corruption's mean error over AlexNet's; 100 for AlexNet itself."""
    errors = {c: dict.fromkeys(SEVERITIES, 100 * a) for c, a in ALEXNET.items()}
    assert corruption_error(errors)["mce"] == pytest.approx(100)
    # Noise 2.703536 + blur 3.230456 + weather 3.077304 + digital 2.823600 = 11.834896; / 15 = 0.788993.
    assert corruption_error(errors)["mean_error"] == pytest.approx(78.8993, abs=1e-4)
    errors["fog"] = {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 5: 50.0}  # mean 30: 30 / 0.819324 = 36.6155
    found = corruption_error(errors)
    assert found["normalised"]["fog"] == pytest.approx(36.6155, abs=1e-4)
    assert found["mce"] == pytest.approx((14 * 100 + 36.6155) / 15, abs=1e-4)
    assert found["mean_error"] == pytest.approx((1183.4896 - 81.9324 + 30) / 15, abs=1e-4)


def test_alexnets_published_errors_of_the_fifteen_corruptions():
    assert len(ALEXNET) == 15
    assert ALEXNET["gaussian_noise"] == 0.886428 and ALEXNET["brightness"] == 0.564592


def test_class_lists_are_timms():
    classes = wnids()
    assert len(classes) == 1000 and list(classes) == sorted(classes)
    assert classes[0] == "n01440764" and classes[1] == "n01443537"  # tench, goldfish
    for name in ("imagenet_a", "imagenet_r"):
        assert len(set(wnids(name))) == 200 and set(wnids(name)) <= set(classes)


def test_an_answer_outside_the_folders_classes_does_not_count(tmp_path, data, trainer):
    """The model likes class 0 best, which the folder does not hold."""
    classes = wnids()
    folder = write(tmp_path / "a", {classes[6]: [make_image(0)] * 3, classes[11]: [make_image(1)] * 2})
    found = evaluate_folder(trainer, Favours(0, 6, 11), folder, data, data.eval_transform())
    assert found["top1"] == 60 and found["images"] == 5
    assert evaluate_folder(trainer, Favours(0, 11, 6), folder, data, data.eval_transform())["top1"] == 40
    whole = write(tmp_path / "b", {classes[i]: [make_image(i)] for i in (0, 6)})
    assert evaluate_folder(trainer, Favours(0, 6), whole, data, data.eval_transform())["top1"] == 50


def test_imagenet_c_tells_corruptions_and_severities_apart(tmp_path, data, trainer):
    """A model that tells dark from light, on sets where more of the images lie as severity grows."""
    dark, light = Image.new("RGB", (16, 16), 0), Image.new("RGB", (16, 16), (255, 255, 255))
    for wrong in range(6):
        tench, goldfish = [dark] * (5 - wrong) + [light] * wrong, [light] * 5
        write(tmp_path / str(wrong), {"n01440764": tench, "n01443537": goldfish})
    root = link_corruptions(
        tmp_path / "c", lambda corruption, severity: tmp_path / str(severity if corruption == "snow" else 0)
    )
    found = evaluate_corruptions(trainer, Darkness(), root, data)
    assert found["errors"].keys() == ALEXNET.keys()
    assert found["errors"]["snow"] == {1: 10, 2: 20, 3: 30, 4: 40, 5: 50}
    assert set(found["errors"]["fog"].values()) == {0}
    assert found["mean_error"] == pytest.approx(30 / 15)
    assert found["mce"] == pytest.approx(30 / 0.866816 / 15)


def test_imagenet_c_images_are_not_resized(tmp_path, data, trainer):
    """At the model's own size the pixels arrive as they are; the crop of val would have enlarged them first."""
    seen = []

    class Looks(Darkness):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    picture = make_image(0, side=16)
    (tmp_path / "set" / "n01440764").mkdir(parents=True)
    picture.save(tmp_path / "set" / "n01440764" / "0.png")
    (tmp_path / "set" / "n01443537").mkdir()
    picture.save(tmp_path / "set" / "n01443537" / "0.png")
    evaluate_corruptions(trainer, Looks(), link_corruptions(tmp_path / "c", lambda *_: tmp_path / "set"), data)
    as_it_is = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    torch.testing.assert_close(seen[0][0], (as_it_is - 0.5) / 0.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(data.eval_transform()(picture), (as_it_is - 0.5) / 0.5)


def test_missing_corruptions_and_severities_are_listed_and_others_ignored(tmp_path):
    classes = ["n01440764", "n01443537"]
    whole = write(tmp_path / "set", {wnid: [make_image(0)] for wnid in classes})
    root = link_corruptions(tmp_path / "c", lambda corruption, severity: whole)
    (root / "speckle_noise").mkdir()
    check_corruptions(root, classes)
    (root / "fog" / "3").unlink()
    (root / "fog" / "5").unlink()
    (root / "snow").rename(root / "schnee")
    with pytest.raises(InputError, match=r"missing: snow; fog/3,5$"):
        check_corruptions(root, classes)
    with pytest.raises(InputError, match="imagenet_c=nowhere is not a folder"):
        check_corruptions("nowhere")


def test_missing_and_unknown_classes_are_counted(tmp_path):
    folder = write(tmp_path / "a", {wnid: [make_image(0)] for wnid in wnids("imagenet_a")[:3]})
    with pytest.raises(InputError, match=r"a lacks 197 of its 200 classes \(n01558993, n01580077, n01614925, …\)"):
        check_classes(folder, wnids("imagenet_a"))
    (folder / "extra").mkdir()
    with pytest.raises(InputError, match=r"holds 1 folders that are none of its classes \(extra\)"):
        check_classes(folder, wnids("imagenet_a")[:3])
    with pytest.raises(InputError, match="nowhere is not a folder"):
        check_classes(tmp_path / "nowhere", wnids("imagenet_a"))


def test_a_model_of_other_classes_is_refused(data):
    model = nn.Identity()
    model.num_classes = 10
    with pytest.raises(InputError, match="imagenet_r needs a model of ImageNet's 1,000 classes; this one has 10"):
        check_folders({"imagenet_r": "anywhere"}, model, data)


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


@pytest.mark.slow
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
    for words in ("mean corruption error", "| jpeg_compression", "ImageNet-R top-1 of 200 classes", "val_crop0.9/top1"):
        assert words in page
    assert content["settings"]["evaluator"]["robustness"]["imagenet_c"] == str(tmp_path / "imagenet_c")
    (tmp_path / "imagenet_a" / "n01498041").unlink()
    done = run_forked("evaluate.py", *arguments, *folders, cwd=tmp_path)
    assert_one_line_error(done, "imagenet_a lacks 1 of its 200 classes (n01498041)")


@pytest.mark.slow
def test_two_processes_count_no_image_twice(imagenet, tmp_path):
    """201 images of ImageNet-R, an odd number."""
    extra = tmp_path / "imagenet_r" / "n01443537"
    extra.unlink()
    write(tmp_path / "imagenet_r", {"n01443537": [make_image(1), make_image(2)]})
    arguments = evaluation(imagenet, f"evaluator.robustness.imagenet_r={tmp_path / 'imagenet_r'}")
    arguments += ["trainer.accelerator=cpu", "evaluators=[metrics,robustness]"]
    assert run_forked("evaluate.py", *arguments, "name=one", cwd=tmp_path).returncode == 0
    done = run_script("evaluate.py", *arguments, "name=two", "trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"outputs/evaluations/{n}/evaluation.json").read_text()) for n in ("one", "two"))
    first, second = (found["records"]["robustness"]["imagenet_r"] for found in (one, two))
    assert first["images"] == 201
    assert first == pytest.approx(second, rel=1e-5)
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
