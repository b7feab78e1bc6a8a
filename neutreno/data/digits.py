"""The embedded data set: scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2

from neutreno.config.options import Fraction, checked
from neutreno.data.classification import ClassificationData
from neutreno.data.fingerprint import of_array
from neutreno.data.images import SPLIT_SEED
from neutreno.errors import InputError


class _Arrays(Sequence):
    """images: float (N, 1, 8, 8) of ink in [0, 1]; labels: int (N,)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = torch.from_numpy(images).float()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.labels[index])

    def facts(self) -> Iterator[str]:
        yield from (of_array(self.images), of_array(self.labels))


def split_digits() -> dict[str, _Arrays]:
    """The fixed stratified split of scikit-learn's digits: train, val, test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16)[:, None]
    fixed = {"random_state": SPLIT_SEED, "test_size": 270}
    rest, test = train_test_split(np.arange(len(images)), stratify=digits.target, **fixed)
    train, val = train_test_split(rest, stratify=digits.target[rest], **fixed)
    return {k: _Arrays(images[i], digits.target[i]) for k, i in {"train": train, "val": val, "test": test}.items()}


class Digits(ClassificationData):
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels (UCI's optical recognition test set), shipped with it.

    A fixed stratified split: 1,257 to train, 270 to validate, 270 to test once at the end.

    Args:
        rotate: largest rotation in training, in degrees; translate: largest shift, as a share of the image;
            scale: largest change of size, as a share.
    """

    mean, std = (0.305,), (0.376,)  # of the training split

    @checked
    def __init__(
        self,
        rotate: Annotated[float, Ge(0), Le(180)] = 0.0,
        translate: Fraction = 0.0,
        scale: Fraction = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if (self.img_size, self.in_chans, self.num_classes) != (8, 1, 10):
            raise InputError("the digits have 8 x 8 pixels, one channel, ten classes: leave those data settings alone")
        self.augment = {
            "degrees": rotate,
            "translate": (translate, translate) if translate else None,
            "scale": (1 - scale, 1 + scale) if scale else None,
        }

    def read(self) -> dict[str, Sequence]:
        return split_digits()

    def eval_transform(self) -> Callable:
        return _Affine(None, v2.Normalize(self.mean, self.std))

    def train_transform(self) -> Callable:
        moves = any(self.augment.values())
        affine = v2.RandomAffine(interpolation=v2.InterpolationMode.BILINEAR, **self.augment) if moves else None
        return _Affine(affine, v2.Normalize(self.mean, self.std))


class _Affine:
    """torchvision's ``RandomAffine``, by its own draws, on a batch of images moved each in its own way: one by one, it
    takes a good part of a small network's training time."""

    def __init__(self, affine: v2.RandomAffine | None, then: Callable) -> None:
        self.affine, self.then = affine, then

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self.many(image[None], [self.draw(image)])[0]

    def draw(self, image: torch.Tensor) -> dict[str, Any] | None:
        return self.affine and self.affine.make_params([image])

    def many(self, images: torch.Tensor, draws: Sequence[dict[str, Any] | None]) -> torch.Tensor:
        """images (B, C, S, S)"""
        return self.then(images if self.affine is None else _moved(images, draws))


def _moved(images: torch.Tensor, draws: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Each image rotated, scaled and shifted, with zeros from outside: torchvision's ``affine`` of floats."""
    angle, scale = (torch.tensor([draw[key] for draw in draws]) for key in ("angle", "scale"))
    x, y = 2 / images.shape[-1] * torch.tensor([draw["translate"] for draw in draws]).T
    cos, sin = angle.deg2rad().cos() / scale, angle.deg2rad().sin() / scale
    inverse = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1).view(-1, 2, 3)
    grid = F.affine_grid(inverse, images.shape, align_corners=False)
    inside = torch.cat([images, torch.ones_like(images[:, :1])], 1)
    moved = F.grid_sample(inside, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved[:, :-1] * moved[:, -1:]
