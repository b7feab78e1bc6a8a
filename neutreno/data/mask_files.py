"""Files of semantic segmentation: where images and masks may lie, and which label of a mask is which class."""

from __future__ import annotations

import io
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from neutreno.data.fingerprint import of_files
from neutreno.data.images import decode
from neutreno.data.joint_transforms import IGNORE
from neutreno.data.loading import CorruptSample
from neutreno.data.readers import EncodedImages, load_hub
from neutreno.data.split_names import NAMES, is_meant
from neutreno.errors import InputError

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]
IMAGES, MASKS = ("images", "image", "imgs", "img"), ("masks", "annotations", "mask", "labels", "label")
ENDINGS, MASK_ENDINGS = (".jpg", ".jpeg", ".png"), (".png",)
SHOWN = 3  # files that a message names
ADE20K = {"train": "training", "val": "validation", "test": "test"}  # what it calls its splits
WHOLE = tuple(itertools.product(IMAGES, MASKS))  # folders of training images and masks without splits
LAYOUTS = (  # those of a split: images/train, masks/train; train/images, train/masks; train, trainannot
    *((f"{images}/{{}}", f"{masks}/{{}}") for images, masks in WHOLE),
    *((f"{{}}/{images}", f"{{}}/{masks}") for images, masks in WHOLE),
    ("{}", "{}annot"),
)


def read_class_names(file: Path, num_classes: int | None) -> list[str]:
    """A name per line.

    Raises:
        InputError: not readable, or another number of names than ``num_classes``, unless that is None.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.class_names: {file} is not a readable text file; null names by number") from error
    if num_classes not in (None, len(names)):
        raise InputError(f"{file} names {len(names)} classes, data.num_classes={num_classes}; correct one of them")
    return names


def find_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """The folders of a split's images and masks, in one of :data:`LAYOUTS`, or of all training images, :data:`WHOLE`.

    Raises:
        InputError: there are two of them.
    """
    there = _folders(root)
    wanted = [[(i.format(name), m.format(name)) for name in NAMES[split] for i, m in LAYOUTS]]
    for paths in [*wanted, WHOLE] if split == "train" else wanted:
        for kind, endings in enumerate((ENDINGS, MASK_ENDINGS)):
            folders = dict.fromkeys(folder for both in paths for folder in there.get(both[kind], ()))
            if len(full := [str(folder) for folder in folders if _holds(folder, endings)]) > 1:
                what = f"{('images', 'masks')[kind]} of the {split} split"
                raise InputError(f"{' and '.join(full)} both hold {what}; keep one of them, or rename the other")
        found = [pair for i, m in paths for pair in itertools.product(there.get(i, ()), there.get(m, ()))]
        found = [both for both in found if _holds(both[0], ENDINGS)]
        if found:
            return max(found, key=lambda both: _holds(both[1], MASK_ENDINGS))
    return None


def is_begun(root: Path, split: str) -> bool:
    """Whether a folder of the split is there, with what belongs to it or not."""
    there = _folders(root)
    return any(path.format(name) in there for name in NAMES[split] for both in LAYOUTS for path in both)


def missing_folder(root: Path, split: str) -> InputError:
    """Why :func:`find_folders` finds no such split, said in the layout and the names of most that is there."""
    there = _folders(root)

    def count(layout: tuple[str, str], names: Iterable[str]) -> int:
        return sum(path.format(name) in there for path in layout for name in names)

    layout = max(LAYOUTS, key=lambda one: sum(count(one, NAMES[s]) * (10 if s == split else 1) for s in NAMES))
    name = max(NAMES[split], key=lambda one: count(layout, [one]))
    if not count(layout, [name]):
        short = {other for names in NAMES.values() for other in names} - {*ADE20K.values()} | {"test"}
        name = split if count(layout, short) else ADE20K[split]
    if split == "train" and not any(count(layout, names) for names in NAMES.values()):
        half = (both for both in WHOLE if any(_holds(f, ENDINGS) for path in both for f in there.get(path, ())))
        layout = next(half, layout)
    images, masks = (_path(root, there, path.format(name)) for path in layout)
    if images.is_dir() and masks.is_dir():
        return InputError(f"{images} holds no .jpg or .png image")
    missing, other = (masks, images) if images.is_dir() else (images, masks)
    beside = f" beside {other}" if other.is_dir() else ""
    expected = f"expected {root}/{{images,annotations}}/{{training,validation}}"
    return InputError(f"{missing} is missing{beside}; {expected}, or another layout of docs/own_data.md")


def _folders(root: Path) -> dict[str, list[Path]]:
    """The folders that may be those of a layout, by their path under ``root`` in small letters."""
    known = {*IMAGES, *MASKS, *(end for names in NAMES.values() for name in names for end in (name, f"{name}annot"))}
    found: dict[str, list[Path]] = defaultdict(list)

    def enter(folder: Path, above: str, depth: int) -> None:
        with os.scandir(folder) as entries:  # tells folders from files without a look at each of many images
            inner = sorted(e.name for e in entries if e.name.lower() in known and e.is_dir())
        for name in inner:
            found[above + name.lower()].append(folder / name)
            if depth:
                enter(folder / name, f"{above}{name.lower()}/", depth - 1)

    if root.is_dir():
        enter(root, "", 1)
    return dict(found)


def _path(root: Path, there: dict[str, list[Path]], path: str) -> Path:
    """A folder of a layout as it is called, or would be."""
    above, _, name = path.rpartition("/")
    return there[path][0] if path in there else there.get(above, [root / above])[0] / name


def _holds(folder: Path, endings: tuple[str, ...]) -> bool:
    return any(_is_image(path, endings) for path in folder.iterdir())


def _is_image(path: Path, endings: tuple[str, ...]) -> bool:
    return path.suffix.lower() in endings and is_meant([path.name])


def find_pairs(images: Path, masks: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """(image, mask) files of two folders by name, in order, and a line for every file that does not pair up."""
    files, problems = [], []
    for folder, endings in ((images, ENDINGS), (masks, MASK_ENDINGS)):
        found: dict[str, Path] = {}
        for path in sorted(path for path in folder.iterdir() if _is_image(path, endings)):
            if (first := found.setdefault(path.stem, path)) != path:
                problems.append(f"{path} and {first.name} have the same name; remove one")
        files.append(found)
    pictures, labels = files
    for name in [name for name in pictures if name not in labels]:
        problems.append(f"{pictures[name]} has no annotation {masks / name}.png; add it or remove the image")
    for name in [name for name in labels if name not in pictures]:
        problems.append(f"{labels[name]} has no image {images / name}.jpg or .png; add it or remove the annotation")
    return [(path, labels[name]) for name, path in pictures.items() if name in labels], problems


class Labels:
    """Which label of a mask's pixels is which class.

    Args:
        values: the label of each class, in order. void: that of pixels that are ignored; None: there is none.
    """

    def __init__(self, values: Sequence[int], void: int | None) -> None:
        self.values, self.void = list(values), void
        self._classes = np.full(IGNORE + 1, -1, np.int16)
        self._classes[self.values] = range(len(self.values))
        if void is not None:
            self._classes[void] = IGNORE

    @classmethod
    def numbered(cls, num_classes: int, void: int | None) -> Labels:
        """Classes from 0 on, from 1 on where 0 is ``void``."""
        first = int(void == 0)
        return cls(range(first, first + num_classes), void)

    def classes(self, mask: np.ndarray, where: str) -> np.ndarray:
        """
        Raises:
            InputError: a label that is none of these; names ``where``.
        """
        wrong = int(mask.max()) if mask.max() > IGNORE else int(mask.min())
        if 0 <= wrong <= IGNORE:
            found = self._classes[mask.astype(np.uint8)]
            if (unknown := found < 0).any():
                wrong = int(mask[unknown].max())
            else:
                return found.astype(np.uint8)
        ignored = "" if self.void is None else f"{self.void} (ignored) and "
        raise InputError(
            f"{where} holds the label {wrong}, data.num_classes={len(self.values)} allows {ignored}{self.values[0]} to "
            f"{self.values[-1]}; set data.num_classes= or data.void=, or replace it"
        )


def read_mask(file: str | Path | bytes, name: str) -> np.ndarray:
    """The labels (H, W) of a mask, a file or its content; ``name`` is what errors call it.

    Raises:
        CorruptSample: it cannot be read.
        InputError: it is no image of class numbers.
    """
    labels = decode(file, name, None)
    array = np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise InputError(f"{name} has the mode {labels.mode}: an annotation is one channel of class numbers")
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return array // _scale(file) if labels.mode == "L" else array


def _scale(file: str | Path | bytes) -> int:
    """What Pillow multiplied the labels by: it spreads PNG's grey of 2 and 4 bits over a byte, which no mode tells."""
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as opened:
        head = opened.read(26)
    if not head.startswith(b"\x89PNG"):
        return 1
    bits, colour = head[24:]  # of the first chunk, IHDR
    return 255 // (2**bits - 1) if colour == 0 and bits in (2, 4) else 1


def _size(file: str | Path | bytes, name: str) -> tuple[int, int]:
    """Width and height of an image, by its header alone."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptSample(f"{name} is not a readable image; replace or remove it") from error


def pair_problem(files: tuple[Path, Path], labels: Labels) -> str | None:
    """What is wrong with an image and its mask, in a line, if anything is."""
    try:
        FolderPairs([files], labels=labels)[0]
    except InputError as error:
        return str(error)
    return None


class Pairs(Sequence):
    """Images and their masks, decoded when they are asked for; ``labels`` have to be set before.

    A subclass' ``encoded(index)`` gives image and mask, each as a file or its content, and what errors call them.
    """

    def __init__(self, mode: str = "RGB", labels: Labels | None = None) -> None:
        self._mode, self.labels = mode, labels

    def encoded(self, index: int) -> tuple[Sequence[str | Path | bytes], Sequence[str]]:
        raise NotImplementedError

    def checked_mask(self, index: int) -> np.ndarray:
        """The labels as they are stored, (H, W); of the image, only its size is read.

        Raises:
            CorruptSample, InputError: as for the pair, or a label is beyond a byte.
        """
        files, names = self.encoded(index)
        mask = read_mask(files[1], names[1])
        if mask.max() > IGNORE or mask.min() < 0:
            wrong = mask.max() if mask.min() >= 0 else mask.min()
            raise InputError(f"{names[1]} holds the label {wrong}; those of classes are numbers from 0 to {IGNORE}")
        _check_sizes(names, _size(files[0], names[0]), mask)
        return mask

    def __getitem__(self, index: int) -> Pair:
        """
        Raises:
            CorruptSample: one of them cannot be read.
            InputError: they do not fit each other or the classes.
        """
        files, names = self.encoded(index)
        picture, array = decode(files[0], names[0], self._mode), read_mask(files[1], names[1])
        _check_sizes(names, picture.size, array)
        classes = torch.from_numpy(self.labels.classes(array, names[1]))
        return tv_tensors.Image(picture), tv_tensors.Mask(classes)


def _check_sizes(names: Sequence[str], size: tuple[int, int], mask: np.ndarray) -> None:
    if size != mask.shape[::-1]:
        sizes = [f"{width} x {height}" for width, height in (size, mask.shape[::-1])]
        raise InputError(f"{names[0]} has {sizes[0]} pixels, {names[1]} {sizes[1]}; replace one of them")


def labels_in(splits: Iterable[Pairs]) -> list[int]:
    """Every label that the masks hold; those of corrupt files, which a run skips or refuses, are not among them.

    Raises:
        InputError: masks that hold no class numbers, or labels beyond a byte, or are of another size than their images;
            says so of the first few.
    """
    seen, problems = set(), []

    def look(pairs: Pairs, index: int) -> set[int]:
        try:
            return set(np.unique(pairs.checked_mask(index)).tolist())
        except CorruptSample:
            return set()
        except InputError as error:
            problems.append(str(error))
            return set()

    with ThreadPoolExecutor() as pool:
        for pairs in splits:
            seen.update(*pool.map(partial(look, pairs), range(len(pairs))))
    if problems:
        more = f"; and {len(problems) - SHOWN:,} more such files" if len(problems) > SHOWN else ""
        raise InputError("; ".join(sorted(problems)[:SHOWN]) + more)
    return sorted(seen)


class FolderPairs(Pairs):
    """Files of :func:`find_pairs`."""

    def __init__(self, files: list[tuple[Path, Path]], **kwargs) -> None:
        super().__init__(**kwargs)
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, index: int) -> tuple[Sequence[Path], Sequence[str]]:
        return self.files[index], tuple(map(str, self.files[index]))

    def facts(self) -> Iterator[str]:
        for files in zip(*self.files, strict=True):
            yield from of_files(files, files[0].parent)


class HubPairs(Pairs):
    """The same out of two columns of a Hugging Face data set.

    Raises:
        InputError: it cannot be opened, or has no such columns.
    """

    def __init__(self, reader: str, split: str, root: str | None, columns: dict[str, str], **kwargs) -> None:
        from datasets import Image

        super().__init__(**kwargs)
        table = load_hub(reader, split, cache_dir=root)
        for key, column in columns.items():
            if not isinstance(table.features.get(column), Image):
                there = f"{reader} has no such column of images, only {', '.join(table.column_names)}"
                raise InputError(f"data.reader_args.{key}={column}: {there}")
        self._columns = [EncodedImages(table, columns[key]) for key in ("image", "annotation")]
        self._names = [f"{reader}, {split}, {columns[key]}" for key in ("image", "annotation")]

    def __len__(self) -> int:
        return len(self._columns[0])

    def encoded(self, index: int) -> tuple[Sequence[str | bytes], Sequence[str]]:
        return [column[index] for column in self._columns], [f"{name}, row {index}" for name in self._names]

    def facts(self) -> Iterator[str]:
        yield str(len(self))
        for column in self._columns:
            yield from column.facts()
