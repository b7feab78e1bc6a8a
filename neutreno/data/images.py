"""Labelled images as sequences of (PIL image, class index): chosen by class, held out, numbered alike."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from neutreno.data.fingerprint import of_array, of_files
from neutreno.data.loading import CorruptSample
from neutreno.data.split_names import is_meant
from neutreno.errors import InputError, one_line

SPLIT_SEED = 20230613  # fixes the splits for every run, whatever its seed


class Unlabelled(InputError):
    """Images in no class folder, or a table without a column of labels."""


def decode(content: str | Path | bytes, where: str | Path, mode: str | None) -> Image.Image:
    """Grey-scale, CMYK, palette or alpha: all as ``mode``; as it is stored, palette indices too, if that is None.

    Raises:
        CorruptSample: names ``where``.
    """
    found = None
    try:
        found = content if isinstance(content, bytes) else Path(content).read_bytes()
        with Image.open(io.BytesIO(found)) as image:
            return image.copy() if mode is None else image.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "is empty" if found == b"" else "is not a readable image"
        raise CorruptSample(f"{one_line(where)} {reason}; replace or remove it") from error


class Images(Sequence):
    """Labelled images, read when they are asked for. A subclass' ``content(index)`` gives the first two arguments of
    :func:`decode`."""

    def __init__(self, labels: Sequence[int], classes: Iterable[str], mode: str = "RGB") -> None:
        self.labels, self.classes, self._mode = np.asarray(labels), list(classes), mode
        if len(self.labels) and self.labels.dtype.kind not in "iu":
            raise InputError(f"a label is {self.labels[0]!r}, not a whole number; number the classes from 0 on")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return decode(*self.content(index), self._mode), int(self.labels[index])

    def facts(self) -> Iterator[str]:
        """What tells these images from others, for :mod:`neutreno.data.fingerprint`."""
        yield from map(str, self.classes)
        yield of_array(self.labels)


def is_image(path: str) -> bool:
    return path.lower().endswith(IMG_EXTENSIONS) and is_meant(path.split(os.sep))


def class_folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if is_meant([path.name]) and path.is_dir()]


class _ClassFolders(ImageFolder):
    def __init__(self, root: str) -> None:
        super().__init__(root, is_valid_file=lambda path: is_image(path[len(root) :]))

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        classes = [folder.name for folder in class_folders(Path(directory))]
        return classes, {name: number for number, name in enumerate(classes)}


class FolderImages(Images):
    """``root/CLASS/…/image``: classes are the folders' names in order, hidden ones left out."""

    def __init__(self, folder: Path, mode: str = "RGB") -> None:
        if not class_folders(folder):
            raise Unlabelled(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE files")
        try:
            files = _ClassFolders(str(folder))
        except FileNotFoundError as error:  # torchvision's word for class folders without an image
            said = f"{folder}: {str(error).rstrip('. ')}"
            raise InputError(f"{said}; remove these folders, or put images into them") from error
        super().__init__(files.targets, files.classes, mode)
        self._paths, self._folder = [path for path, _ in files.samples], folder

    def content(self, index: int) -> tuple[str, str]:
        return self._paths[index], self._paths[index]

    def facts(self) -> Iterator[str]:
        yield from super().facts()
        yield from of_files(self._paths, self._folder)


class Subset(Images):
    """Part of a sequence of images, by index; ``classes`` keeps only those (renumbered in the order given)."""

    def __init__(self, images: Sequence, indices: np.ndarray, classes: Sequence[str] | None = None) -> None:
        self._images, self._indices, labels = images, indices, images.labels[indices]
        if classes is not None:
            number = {images.classes.index(name): i for i, name in enumerate(classes)}
            labels = [number[label] for label in labels]
        super().__init__(labels, classes or images.classes)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._images[int(self._indices[index])][0], int(self.labels[index])

    def facts(self) -> Iterator[str]:
        yield from self._images.facts()
        yield from super().facts()
        yield of_array(self._indices)


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


def hold_out(images: Images, share: float) -> tuple[Subset, Subset]:
    """(the rest, a ``share`` of them to validate on), by a fixed stratified draw.

    Where that draw leaves a class out, as it may a small one, each class is drawn by itself, one image at least; the
    only image of a class is never held out.

    Raises:
        InputError: nothing is left to validate on.
    """
    with contextlib.suppress(InputError):
        parts = split_off(images, share, "data.val_fraction")
        if all(len(np.unique(part.labels)) == len(np.unique(images.labels)) for part in parts):
            return parts
    draw, taken = np.random.default_rng(SPLIT_SEED), np.zeros(len(images), bool)
    for label in np.unique(images.labels):
        members = draw.permutation(np.flatnonzero(images.labels == label))
        taken[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = True
    if not taken.any() or not share:
        said = f"data.val_fraction={share:g} of {len(images)} images leaves none to validate on"
        raise InputError(f"{said}; give a val split, more images of a class, or a larger data.val_fraction")
    return Subset(images, np.flatnonzero(~taken)), Subset(images, np.flatnonzero(taken))


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


def number_alike(images: Images, classes: Sequence[str]) -> None:
    """Number the labels by ``classes``, of which these images may lack some."""
    if images.classes != classes and set(images.classes) <= set(classes) and images.labels.max() < len(images.classes):
        numbers = np.array([*(classes.index(name) for name in images.classes), -1])
        images.labels = numbers[np.maximum(images.labels, -1)]  # -1, no label, is the last of them and stays so
        images.classes = list(classes)


def check_splits(splits: dict[str, Images | None], where: str) -> int:
    """The number of classes; refuses splits that do not fit each other.

    Raises:
        InputError: an empty split, other classes or labels than the first split's, a class without an image, a single
            class.
    """
    present = {name: images for name, images in splits.items() if images is not None}
    first, classes = next((name, images.classes) for name, images in present.items())
    for name, images in present.items():
        if not len(images):
            raise InputError(f"{where}: {name} holds no image of the classes asked for")
        if outside := images.labels[(images.labels < 0) | (images.labels >= len(images.classes))].tolist():
            said = f"{where}: {name} has {len(outside)} image{'s' * (len(outside) > 1)} of a label outside 0 … "
            said += f"{len(images.classes) - 1} ({outside[0]}{', that of no label' * (outside[0] == -1)})"
            raise InputError(f"{said}; remove those images or give them a class")
        if images.classes != classes:
            differ = sorted(set(images.classes) ^ set(classes))[:3]
            raise InputError(f"{where}: {name} and {first} differ in their classes ({', '.join(differ)}, …)")
    if missing := sorted(set(range(len(classes))) - set(present[first].labels.tolist())):
        raise InputError(f"{where}: {first} has no image of class {classes[missing[0]]}")
    if (found := len(classes)) < 2:
        raise InputError(f"{where} holds one class, {classes[0]}; a classifier needs two or more")
    return found
