"""Data sets of other libraries: Hugging Face ``datasets`` (the hub, folders, parquet), torchvision, streams of timm."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from neutreno.data.fingerprint import of_array, sampled
from neutreno.data.images import Images, Unlabelled
from neutreno.data.loading import derive_seed, seed_cpu
from neutreno.errors import InputError, needing

STREAMS = ("hfids/", "tfds/", "wds/")  # without random access


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

    if name.startswith("wds/"):
        with needing(f"data.reader={name}", "WebDataset", "readers"):
            importlib.import_module("webdataset")
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
