import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from support import make_image
from support.corruptions import link_corruptions, write
from torch import nn

from neutreno.data.classification import ImageClassification
from neutreno.evaluation.robustness import (
    ALEXNET,
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
