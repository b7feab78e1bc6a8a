"""Robustness of an ImageNet classifier, from the published folders of ImageNet-C, -A and -R.

Classes are told by their WordNet ids, the folders' names; which ids there are, and at which output of a model each
stands, is taken from timm.
"""

from __future__ import annotations

import copy
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from lightning import Trainer
from timm.data import ImageNetInfo
from torch import Tensor, nn

from neutreno.config.options import checked
from neutreno.data.classification import ClassificationData
from neutreno.data.images import FolderImages
from neutreno.errors import InputError
from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject
from neutreno.evaluation.metrics import validate
from neutreno.reports.evaluation import Table
from neutreno.tasks.classification import Classification

SEVERITIES = (1, 2, 3, 4, 5)

# Top-1 error of AlexNet, mean over the severities (Hendrycks and Dietterich, 2019).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


@cache
def wnids(data_set: str = "imagenet") -> tuple[str, ...]:
    """The WordNet ids of ``imagenet`` (1,000, in the order of a model's outputs), ``imagenet_a`` or ``imagenet_r``."""
    if data_set == "imagenet":
        return tuple(ImageNetInfo().label_names())
    return tuple((files("timm.data") / "_info" / f"{data_set}_synsets.txt").read_text().split())


class Restricted(nn.Module):
    """A model that answers among some of its outputs only: images → its logits at ``indices``."""

    def __init__(self, model: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.model, self.indices = model, list(indices)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.indices]


def check_classes(folder: Path, expected: Sequence[str]) -> None:
    """Refuse a folder whose class folders are not just the ``expected`` ones: its figure would be of other data.

    Raises:
        InputError: no folder, or how many classes are missing or unknown, with the first of them.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that the data set was unpacked to")
    found = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    missing, unknown = sorted(set(expected) - found), sorted(found - set(expected))
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} of its {len(expected)} classes ({_first(missing)})")
    if unknown:
        raise InputError(f"{folder} holds {len(unknown)} folders that are none of its classes ({_first(unknown)})")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def check_corruptions(root: str | Path, classes: Sequence[str] | None = None) -> None:
    """Refuse an ImageNet-C that is not whole: 15 corruptions × 5 severities × the classes. More is ignored.

    Raises:
        InputError: which corruptions, severities or classes are missing.
    """
    root = Path(root)
    where = f"evaluator.robustness.imagenet_c={root}"
    if not root.is_dir():
        raise InputError(f"{where} is not a folder; give the one that holds gaussian_noise/1 … 5 and so on")
    gaps = []
    for corruption in ALEXNET:
        lacking = [str(s) for s in SEVERITIES if not (root / corruption / str(s)).is_dir()]
        if lacking:
            gaps.append(corruption if len(lacking) == len(SEVERITIES) else f"{corruption}/{','.join(lacking)}")
    if gaps:
        raise InputError(f"{where} is not whole; missing: {'; '.join(gaps)}")
    for corruption, severity in product(ALEXNET, SEVERITIES):
        check_classes(root / corruption / str(severity), classes or wnids())


def corruption_error(errors: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Mean corruption error from the errors by corruption and severity, all in percent.

    Returns:
        ``mce``: the mean over the corruptions of their error (mean over the severities) divided by AlexNet's, in
        percent; ``mean_error``: the mean without that division; ``normalised``: the quotient of every corruption.
    """
    means = {corruption: statistics.fmean(errors[corruption].values()) for corruption in ALEXNET}
    quotients = {corruption: mean / ALEXNET[corruption] for corruption, mean in means.items()}
    return {
        "mce": statistics.fmean(quotients.values()),
        "mean_error": statistics.fmean(means.values()),
        "normalised": quotients,
    }


def evaluate_folder(
    trainer: Trainer, model: nn.Module, folder: str | Path, data: ClassificationData, transform: Callable
) -> dict[str, float]:
    """Metrics of an ImageNet model on ``folder/WNID/IMAGE``, the answer being one of the folder's classes."""
    images = FolderImages(Path(folder))
    indices = [wnids().index(name) for name in images.classes]
    if data.corrupt is not None:  # the share holds for every folder
        data.corrupt.limit += int(data.max_corrupt * len(images))
    part = copy.copy(data)  # the same data, but for its validation split
    part.splits, part.trains, part.reader, part.on_device = {"train": None, "val": images}, False, None, False
    part.eval_transform = lambda: transform
    metrics = validate(trainer, Classification(Restricted(model, indices), num_classes=len(indices)), part)
    return {name.removeprefix("val/"): value for name, value in metrics.items()} | {"images": len(images)}


def evaluate_corruptions(
    trainer: Trainer, model: nn.Module, root: str | Path, data: ClassificationData
) -> dict[str, Any]:
    """ImageNet-C: top-1 error by corruption and severity and its means, in percent.

    The published images have 224 pixels already: a model of that size sees their centre, unresized; another size
    resizes the shorter side to it.
    """
    whole = copy.copy(data)
    whole.crop_pct = 1.0
    transform = whole.eval_transform()
    errors: dict[str, dict[int, float]] = defaultdict(dict)
    for corruption, severity in product(ALEXNET, SEVERITIES):
        top1 = evaluate_folder(trainer, model, Path(root, corruption, str(severity)), data, transform)["top1"]
        errors[corruption][severity] = round(100 - top1, 4)
        if severity == SEVERITIES[-1] and trainer.is_global_zero:  # the whole takes hours
            print(f"imagenet_c {corruption}: error {statistics.fmean(errors[corruption].values()):.2f} %", flush=True)
    return {**corruption_error(errors), "errors": dict(errors)}


def check_folders(folders: Mapping[str, str], model: nn.Module, data: ClassificationData) -> None:
    """Refuse what cannot be measured, before hours are spent on what can.

    Args:
        folders: of ``imagenet_c``, ``imagenet_a``, ``imagenet_r``, those that are to be measured.

    Raises:
        InputError: the model has other outputs than ImageNet's, or a folder is not whole.
    """
    classes = getattr(model, "num_classes", "none")
    for name, folder in folders.items():
        if classes != len(wnids()):
            raise InputError(f"{name} needs a model of ImageNet's 1,000 classes; this one has {classes}")
        if not hasattr(data, "crop_pct"):
            raise InputError(f"{name} needs data whose images are cropped, such as data=imagenet")
        if name == "imagenet_c":
            check_corruptions(folder)
        else:
            check_classes(Path(folder), wnids(name))


class Robustness(Evaluator):
    """Errors on the published folders of corrupted and of unusual images, of a model with ImageNet's 1,000 classes.

    Metrics: ``imagenet_c/mce`` (mean corruption error, AlexNet's is 100) and ``imagenet_c/mean_error``;
    ``imagenet_a/top1``, ``imagenet_r/top1``; all in percent.

    Args:
        imagenet_c: folder with CORRUPTION/SEVERITY/WNID/IMAGE: mean corruption error.
        imagenet_a, imagenet_r: folder with WNID/IMAGE of 200 classes: top-1 among them.
    """

    @checked
    def __init__(
        self, imagenet_c: str | None = None, imagenet_a: str | None = None, imagenet_r: str | None = None
    ) -> None:
        given = {"imagenet_c": imagenet_c, "imagenet_a": imagenet_a, "imagenet_r": imagenet_r}
        self.folders = {name: folder for name, folder in given.items() if folder is not None}

    def check(self, subject: Subject) -> None:
        if not self.folders:
            raise NothingToMeasure(
                "evaluator.robustness needs a folder: imagenet_c, imagenet_a or imagenet_r; "
                "evaluator.robustness.imagenet_c=FOLDER"
            )
        check_folders(self.folders, subject.task.model, subject.data)

    def run(self, subject: Subject) -> Findings:
        trainer, model, data = subject.trainer, subject.task.model, subject.data
        found, metrics, figures, tables = {}, {}, [], []
        for name, folder in self.folders.items():
            if name == "imagenet_c":
                found[name] = result = evaluate_corruptions(trainer, model, folder, data)
                metrics |= {f"{name}/{key}": result[key] for key in ("mce", "mean_error")}
                what = "ImageNet-C, corruptions × severities (mce: AlexNet's is 100)"
                figures.append((what, f"{len(ALEXNET)} × {len(SEVERITIES)}"))
                tables.append(corruptions_table(result))
            else:
                found[name] = result = evaluate_folder(trainer, model, folder, data, data.eval_transform())
                result["classes"] = len(wnids(name))
                metrics[f"{name}/top1"] = result["top1"]
                what = f"ImageNet-{name[-1].upper()}, images of {result['classes']} classes"
                figures.append((what, f"{result['images']:,}"))
        return Findings(metrics=metrics, figures=figures, tables=tables, record=found)


def corruptions_table(found: dict[str, Any]) -> Table:
    rows = [
        [name, *(f"{e:.2f}" for e in by_severity.values()), f"{found['normalised'][name]:.2f}"]
        for name, by_severity in found["errors"].items()
    ]
    return Table(["ImageNet-C: error in %, severity", *map(str, SEVERITIES), "mean / AlexNet's"], rows)
