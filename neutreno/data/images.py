"""Labelled images as sequences of (PIL image, class index): class folders, parquet, or any reader that timm has."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from neutreno.data.fingerprint import of_array, of_files, sampled
from neutreno.data.loading import CorruptSample, derive_seed, seed_cpu
from neutreno.errors import InputError, one_line

STREAMS = ("hfids/", "tfds/", "wds/")  # readers without random access
SPLIT_SEED = 20230613  # fixes the splits for every run, whatever its seed
SYNONYMS = {  # of a split, in any case
    "val": ("val", "validation", "valid", "dev"),
    "train": ("train", "training"),
    "test": ("test", "testing"),
}


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


def _shown(path: str) -> bool:
    """Whether no part of a path is hidden or macOS' own: what editors, notebooks and archives leave behind."""
    return not any(part[:1] == "." or part == "__MACOSX" for part in path.split(os.sep))


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMG_EXTENSIONS) and _shown(path)


def _class_folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if _shown(path.name) and path.is_dir()]


class _ClassFolders(ImageFolder):
    def __init__(self, root: str) -> None:
        super().__init__(root, is_valid_file=lambda path: _is_image(path[len(root) :]))

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        classes = [folder.name for folder in _class_folders(Path(directory))]
        return classes, {name: number for number, name in enumerate(classes)}


class FolderImages(Images):
    """``root/CLASS/…/image``: classes are the folders' names in order, hidden ones left out."""

    def __init__(self, folder: Path, mode: str = "RGB") -> None:
        if not _class_folders(folder):
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


class EncodedImages(Sequence):
    """A column of images in a table of Hugging Face ``datasets``, as files or their content."""

    def __init__(self, table: Any, column: str) -> None:
        from datasets import Image

        self._table, self._column = table.select_columns([column]).cast_column(column, Image(decode=False)), column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> bytes | str:
        cell = self._table[index][self._column] or {"bytes": None, "path": None}
        return cell["bytes"] if cell["bytes"] is not None else cell["path"] or b""

    def facts(self) -> Iterator[str]:
        for index in sampled(len(self)):
            content = self[int(index)]
            if isinstance(content, bytes):
                yield str(len(content))
            else:
                yield f"{Path(content).name} {os.path.getsize(content) if os.path.isfile(content) else None}"


class TableImages(Images):
    """Two columns of such a table: images, and integer labels. Where these have no names, the numbers that occur are
    the names of the classes."""

    def __init__(self, table: Any, image: str, label: str, where: str, mode: str = "RGB") -> None:
        labels, names = np.asarray(table[label]), getattr(table.features[label], "names", None)
        if not names:  # the labels that occur, in order; what is negative (the hub's -1 for "no label") is no class
            names = np.unique(labels[labels >= 0])
            labels = np.where(labels < 0, -1, np.searchsorted(names, labels)).astype(labels.dtype)
        super().__init__(labels, map(str, names), mode)
        self._images, self._where = EncodedImages(table, image), where

    def content(self, index: int) -> tuple[bytes | str, str]:
        return self._images[index], f"{self._where}, row {index}"

    def facts(self) -> Iterator[str]:
        yield from super().facts()
        yield from self._images.facts()


class TorchvisionImages(Images):
    """A data set of torchvision, which decodes its images itself."""

    def __init__(self, dataset: Dataset, mode: str = "RGB") -> None:
        super().__init__(dataset.targets, map(str, dataset.classes), mode)
        self._dataset = dataset

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._dataset[index]
        return image.convert(self._mode), label

    def facts(self) -> Iterator[str]:
        yield from super().facts()
        yield from (of_array(self[int(index)][0]) for index in sampled(len(self), 100))


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


class Stream(IterableDataset):
    """An iterable data set of timm's ``create_dataset`` (``hfids/HUB_ID``, ``wds/…``, ``tfds/…``): no random access.

    Order and augmentation are functions of (seed, epoch, process, loading worker), so they repeat only with the same
    numbers of processes and workers; and an epoch that is resumed starts over, see :class:`StreamLoader`.

    Args:
        open_dataset: makes timm's data set; called anew for every epoch, so that no worker keeps an old state.
        classes: how many there are; a label beyond them is refused.
    """

    def __init__(self, open_dataset, transform, classes: int, seed: int = 0, rank: int = 0) -> None:
        self._open, self._transform, self._classes = open_dataset, transform, classes
        self._seed, self._rank, self.epoch = seed, rank, 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        worker = get_worker_info()
        dataset = self._open()
        if worker is not None:
            dataset.set_loader_cfg(num_workers=worker.num_workers)
        dataset.set_epoch(self.epoch)
        try:
            for i, (image, label) in enumerate(dataset):
                if not 0 <= label < self._classes or label != int(label):
                    raise InputError(f"the stream holds the label {label}; data.num_classes={self._classes}")
                seed_cpu(derive_seed(self._seed, self.epoch, self._rank, worker.id if worker else 0, i))
                yield self._transform(image), int(label)
        except (OSError, SyntaxError) as error:  # Pillow's; the library decodes, and its iterator ends with it
            raise InputError(
                f"the stream holds a corrupt image ({error}), which only data read by index can skip: use class "
                "folders, parquet at data.root, or hfds/…"
            ) from error


def quiet_hub() -> None:
    """No progress bars, and no line for every retry."""
    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def load_hub(reader: str, split: str | None = None, /, **kwargs):
    """``hfds/HUB_ID`` or ``hfds/FOLDER`` by Hugging Face ``datasets``; a split of it, or all by name.

    Raises:
        InputError: it cannot be opened; says what the library says.
    """
    import datasets

    quiet_hub()
    try:
        return datasets.load_dataset(reader.removeprefix("hfds/"), split=split, **kwargs)
    except Exception as error:  # datasets, huggingface_hub, pyarrow: exceptions differ by cause
        raise reader_error(reader, split, error) from error


def open_reader(name: str, split: str, root: str | None, mode: str = "RGB", download: bool = False, /, **kwargs):
    """A split of ``hfds/HUB_ID`` or ``torch/NAME`` as :class:`Images`, or a stream as timm opens it.

    Raises:
        InputError: it cannot be opened: not there, no access, no network; says what its library says.
    """
    if name.startswith("hfds/"):
        columns = [kwargs.pop(key, default) for key, default in (("input_key", "image"), ("target_key", "label"))]
        table = load_hub(name, split, cache_dir=root, **kwargs)
        if missing := [column for column in columns if column not in table.column_names]:
            hint = "name its columns with data.reader_args={input_key: …, target_key: …}"
            raise InputError(f"data.reader={name}, split {split}: it has no column {missing[0]}; {hint}")
        check_columns(table, *columns, f"data.reader={name}, split {split}")
        return TableImages(table, *columns, name, mode)
    if not name.startswith(("torch/", *STREAMS)):
        raise InputError(f"data.reader={name} is not one of timm's: torch/…, hfds/…, hfids/…, tfds/… or wds/…")
    if name.startswith("torch/") and root is None:
        raise InputError(f"data.reader={name} needs data.root=FOLDER, where torchvision keeps its files")
    from timm.data import create_dataset

    quiet_hub()
    try:
        dataset = create_dataset(name, root=root, split=split, input_img_mode=mode, download=download, **kwargs)
        return dataset if name.startswith(STREAMS) else TorchvisionImages(dataset, mode)
    except Exception as error:  # timm, datasets, torchvision, webdataset: exceptions differ by cause
        raise reader_error(name, split, error) from error


def check_columns(table: Any, image: str, label: str, where: str) -> None:
    """
    Raises:
        InputError: the columns of a table are not images and integer labels.
    """
    import datasets

    found = table.features[image]
    texts, contents = ("string", "large_string"), ("binary", "large_binary")
    if isinstance(found, dict):  # of content and path
        known = {"bytes": (*contents, "null"), "path": (*texts, "null")}
        encoded = found.keys() <= known.keys() and all(_kind(found[name]) in known[name] for name in found)
    else:
        encoded = isinstance(found, datasets.Image) or _kind(found) in (*contents, *texts)
    if not encoded:
        raise InputError(f"{where}: the column {image} holds {_kind(found)}, not images")
    if len(table) == table.data.column(image).null_count > 0:
        raise InputError(f"{where}: the column {image} is empty in every row; give the images")
    if not _kind(table.features[label]).startswith(("int", "uint")):  # what else there is would be cut to numbers
        said = f"{where}: the column {label} holds {_kind(table.features[label])}, not integer labels"
        raise InputError(f"{said}; number the classes from 0 on, e.g. by class_encode_column of Hugging Face datasets")
    if table.data.column(label).null_count:
        raise InputError(f"{where}: the column {label} has rows without a label; give them one or remove them")


def _kind(feature: Any) -> str:
    if isinstance(feature, dict):
        return f"records of {', '.join(f'{name} ({_kind(kind)})' for name, kind in feature.items())}"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def reader_error(name: str, split: str | None, error: Exception) -> InputError:
    """What the library behind ``data.reader`` said, and the way out."""
    said = " ".join(str(error).split()) or type(error).__name__
    if "num_samples" in said:
        said = "its length is not known; give data.samples.train and data.samples.val"
    elif name.startswith(("hfds/", "hfids/")):
        said = f"{said[:400]}; if it needs access, accept its terms on the hub and run `hf auth login`, "
        said += "or give a local copy with data.root=FOLDER and data.reader=null"
    return InputError(f"data.reader={name}{f', split {split}' if split else ' cannot be read'}: {said}")


def _split_of(path: Path) -> str | None:
    """The split that a folder or a parquet file is named after (``Train``, ``dev_0.parquet``), if it is."""
    shard = re.fullmatch(r"([a-z]+)([-_\d].*)?\.parquet", path.name.lower())
    name = shard[1] if shard else path.name.lower()
    split = next((split for split, names in SYNONYMS.items() if name in names), None)
    return split if shard or (split and path.is_dir()) else None


def _parquet_in(folder: Path) -> list[Path]:
    return [x for x in sorted(folder.glob("*")) if x.suffix.lower() == ".parquet" and _shown(x.name) and x.is_file()]


def open_split(root: str | Path, split: str, mode: str = "RGB") -> Images | None:
    """The split under ``root`` in whichever layout is there, or None if it is in none.

    Layouts: ``root/SPLIT/CLASS/IMAGE``, ``root/SPLIT/*.parquet``, and under ``root`` or ``root/data`` ``SPLIT.parquet``
    or shards, ``SPLIT-*.parquet``, ``SPLIT_*.parquet``, ``SPLIT0.parquet``. SPLIT is any of ``SYNONYMS``.

    Raises:
        InputError: two of them are there.
    """
    root, found = Path(root), {}
    for path in (*sorted(root.iterdir()), *_parquet_in(root / "data")):
        if _split_of(path) == split:
            source = path.relative_to(root).with_name(re.sub(r"[-_\d].*\.", "*.", path.name))
            found.setdefault(source, []).append(path)
    if len(found) > 1:
        raise InputError(f"{root} holds {' and '.join(map(str, found))}, each a {split} split; keep one of them")
    for there in found.values():
        files = [file for path in there for file in (_parquet_in(path) if path.is_dir() else [path])]
        return open_parquet(list(map(str, files)), mode) if files else FolderImages(there[0], mode)
    return None


def seeming_splits(root: Path) -> dict[str, str]:
    """Class folders and parquet files under ``root`` that have a split's name in theirs, as a word, but are not read as
    it: ``test_set``. The values are the splits."""
    words = {split: rf"(?<![^\W\d_])({'|'.join(x)})(set|data|images)?(?![^\W\d_])" for split, x in SYNONYMS.items()}
    there = [path for path in (*_parquet_in(root), *_class_folders(root)) if not _split_of(path)]
    return {path.name: split for path in there for split, word in words.items() if re.search(word, path.name.lower())}


def outside_splits(root: Path) -> list[Path]:
    """Parquet files, or else class folders, under ``root`` that are named after no split.

    Raises:
        InputError: some seem to be splits, see :func:`seeming_splits`.
    """
    found = [path for path in _parquet_in(root) if not _split_of(path)]
    if not found:
        folders = [path for path in _class_folders(root) if not _split_of(path)]
        inside = (str(path.relative_to(root)) for folder in folders for path in folder.rglob("*"))
        found = folders if any(map(_is_image, inside)) else []
    seeming = seeming_splits(root)
    if likely := {
        path.name: seeming[path.name] + path.suffix.lower() * path.is_file() for path in found if path.name in seeming
    }:
        said = (
            f"{root} holds {', '.join(likely)}; if that is meant as a split, rename it ({', '.join(likely.values())})"
        )
        raise InputError(f"{said}; if not, move all training images into {root}/train")
    return found


def open_whole(root: str | Path, mode: str = "RGB") -> Images | None:
    """What lies under ``root`` without splits, ``root/*.parquet`` or ``root/CLASS/IMAGE``; None if nothing does, or if
    a split lies beside it.

    Raises:
        InputError: see :func:`outside_splits`.
    """
    root = Path(root)
    if any(map(_split_of, root.iterdir())) or not (found := outside_splits(root)):
        return None
    return FolderImages(root, mode) if found[0].is_dir() else open_parquet(list(map(str, found)), mode)


def open_parquet(files: list[str], mode: str = "RGB") -> TableImages:
    """Parquet as Hugging Face ``datasets`` writes it: a column of image bytes and one of integer labels.

    Raises:
        InputError: no such files or columns.
    """
    import datasets

    quiet_hub()
    try:
        table = datasets.load_dataset("parquet", data_files={"images": files}, split="images")
    except Exception as error:  # datasets wraps what pyarrow says of a broken file in several exception types
        raise InputError(f"cannot read {', '.join(files)} as parquet ({type(error).__name__})") from error
    where, there = Path(files[0]).parent, table.column_names
    image = next((name for name in ("image", "img") if name in there), None)
    label = next((name for name in ("label", "labels", "fine_label") if name in there), None)
    if image is None or label is None:
        kind = InputError if image is None else Unlabelled
        raise kind(f"{where}: expected columns 'image' and 'label', found {', '.join(there)}")
    check_columns(table, image, label, str(where))
    return TableImages(table, image, label, str(where), mode)


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
