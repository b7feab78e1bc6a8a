"""The embedded data set: scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
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
        return v2.Normalize(self.mean, self.std)

    def train_transform(self) -> Callable:
        if not any(self.augment.values()):
            return self.eval_transform()
        affine = v2.RandomAffine(interpolation=v2.InterpolationMode.BILINEAR, **self.augment)
        return v2.Compose([affine, self.eval_transform()])
