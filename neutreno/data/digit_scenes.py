"""The embedded data set for segmentation: scenes composed of scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor
from torchvision import tv_tensors

from neutreno.config.options import FREE, NonNegative, Positive, checked
from neutreno.data.digits import split_digits
from neutreno.data.images import SPLIT_SEED
from neutreno.data.loading import derive_seed
from neutreno.data.segmentation import Pair, SegmentationData
from neutreno.errors import InputError

BACKGROUND = 10
MAGNIFY = (1.5, 2.0)  # range of a digit's side, in units of its 8 pixels
CELL = 16  # a digit lies anywhere in a square cell of so many pixels, so that none covers another
INK = 0.4  # pixels with more of it belong to the digit
Scenes = Annotated[int, Ge(1), Le(10**6)]


class DigitScenes(SegmentationData):
    """Grey scenes of two digits or more, of random sizes at random places before a textured background; per pixel, the
    digit or the background.

    Scenes of the training, validation and test split show different digits, those of the split of
    :class:`neutreno.data.digits.Digits`. A scene is a function of split and index alone, so every run sees the same.

    Args:
        img_size: side of a scene, in pixels.
        train_scenes, val_scenes, test_scenes: how many.
    """

    @checked
    def __init__(
        self,
        img_size: Annotated[Annotated[int, Ge(2 * CELL), Le(4096)], FREE],
        train_scenes: Scenes = 1000,
        val_scenes: Annotated[Scenes, FREE] = 200,
        test_scenes: Annotated[Scenes, FREE] = 200,
        mean: Annotated[Sequence[NonNegative], FREE] = (0.398,),
        std: Annotated[Sequence[Positive], FREE] = (0.177,),
        class_names: Annotated[Sequence[str], FREE] = (*(f"digit {i}" for i in range(10)), "background"),
        **kwargs,
    ) -> None:
        super().__init__(img_size=img_size, mean=mean, std=std, class_names=class_names, **kwargs)
        if (self.in_chans, self.num_classes) != (1, 11):
            raise InputError("the scenes have one channel and eleven classes: leave those data settings alone")
        if len(class_names) != self.num_classes:
            raise InputError(f"data.class_names has {len(class_names)} names for {self.num_classes} classes")
        self.scenes = {"train": train_scenes, "val": val_scenes, "test": test_scenes}

    def read(self) -> dict[str, Sequence[Pair]]:
        digits = split_digits()
        return {
            split: _Scenes([compose(digits[split], self.img_size, (i, index)) for index in range(count)])
            for i, (split, count) in enumerate(self.scenes.items())
        }

    def baselines(self) -> dict[str, float]:
        """Mean IoU in percent of answering "background" everywhere."""
        masks = {split: self.splits[split].masks for split in ("val", "test")}
        share = {split: (mask == BACKGROUND).double().mean().item() for split, mask in masks.items()}
        return {f"background/{split}_miou": 100 * share[split] / len(mask.unique()) for split, mask in masks.items()}


class _Scenes(Sequence):
    def __init__(self, scenes: list[tuple[Tensor, Tensor]]) -> None:
        self.images, self.masks = (torch.stack(parts) for parts in zip(*scenes, strict=True))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        return tv_tensors.Image(self.images[index]), tv_tensors.Mask(self.masks[index])


def compose(digits: Sequence[tuple[Tensor, int]], side: int, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A scene: image uint8 (1, side, side) and mask uint8 (side, side).

    Args:
        digits: to draw from: ink (1, 8, 8) in [0, 1] and label.
        key: (split, index), all that the scene's randomness depends on.
    """
    generator = torch.Generator().manual_seed(derive_seed(SPLIT_SEED, *key))

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def integer(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    image = _background(side, generator)
    mask = torch.full((side, side), BACKGROUND, dtype=torch.uint8)
    cells = torch.randperm((side // CELL) ** 2, generator=generator)
    for cell in cells[: 2 + integer(max(1, len(cells) - 1))].tolist():
        (ink, label), size = digits[integer(len(digits))], round(8 * uniform(*MAGNIFY))
        row, column = divmod(cell, side // CELL)
        top, left = (CELL * at + integer(CELL - size + 1) for at in (row, column))
        place = slice(top, top + size), slice(left, left + size)
        ink = F.interpolate(ink[None], (size, size), mode="bilinear")[0, 0]
        image[place] += ink * (uniform(0.7, 1.0) - image[place])
        mask[place][ink > INK] = label
    return (image.clamp(0, 1) * 255).round().byte()[None], mask


def _background(side: int, generator: torch.Generator) -> Tensor:
    """Coarse and fine noise over a slope, (side, side) in [0, 0.6]."""

    def noise(cells: int) -> Tensor:
        grid = torch.rand(1, 1, cells, cells, generator=generator)
        return F.interpolate(grid, (side, side), mode="bilinear")[0, 0]

    return 0.2 * noise(2) + 0.25 * noise(6) + 0.15 * noise(side // 2)
