"""Which images of a data set make a split: chosen classes, a part held out, and whether the splits fit each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from neutreno.data.images import Subset
from neutreno.errors import InputError

SPLIT_SEED = 20230613  # fixes the split for every run, whatever its seed


def choose_classes(images: Sequence, classes: Sequence[str]) -> Subset:
    """The images of ``classes`` alone, numbered in that order.

    Raises:
        InputError: a class that the data set does not have.
    """
    known = images.classes
    if len(known) == 1000 and not set(classes) <= set(known):  # the hub's ImageNet names its classes in words
        from timm.data import ImageNetInfo

        known = images.classes = ImageNetInfo().label_names()
    if unknown := [name for name in classes if name not in known]:
        raise InputError(f"data.classes: the data set has no class {unknown[0]} ({len(unknown)} of them unknown)")
    numbers = [known.index(name) for name in classes]
    return Subset(images, np.flatnonzero(np.isin(images.labels, numbers)), classes)


def split_off(images: Sequence, size: float, key: str) -> tuple[Subset, Subset]:
    """(the rest, ``size`` of them), by a fixed stratified draw; ``key`` is the setting that says how many.

    Raises:
        InputError: too few images for it.
    """
    try:
        rest, taken = train_test_split(
            np.arange(len(images)), stratify=images.labels, test_size=size, random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise InputError(f"too few images for {key} ({error})") from error
    return Subset(images, rest), Subset(images, taken)


def check_splits(splits: dict[str, Sequence | None], num_classes: int, where: str) -> None:
    """Refuse splits that do not fit each other or ``num_classes``.

    Raises:
        InputError: an empty split, other classes or labels than the first split's, a class without an image.
    """
    present = {name: images for name, images in splits.items() if images is not None}
    first, classes = next((name, images.classes) for name, images in present.items())
    for name, images in present.items():
        if not len(images):
            raise InputError(f"{where}: {name} holds no image of the classes asked for")
        if images.classes != classes:
            differ = sorted(set(images.classes) ^ set(classes))[:3]
            raise InputError(f"{where}: {name} and {first} differ in their classes ({', '.join(differ)}, …)")
        if images.labels.min() < 0 or images.labels.max() >= len(classes):
            raise InputError(f"{where}: {name} has labels outside 0 … {len(classes) - 1}")
    if missing := sorted(set(range(len(classes))) - set(present[first].labels.tolist())):
        raise InputError(f"{where}: {first} has no image of class {classes[missing[0]]}")
    if len(classes) != num_classes:
        raise InputError(
            f"{where} holds {len(classes)} classes, data.num_classes={num_classes}; set data.num_classes={len(classes)}"
        )
