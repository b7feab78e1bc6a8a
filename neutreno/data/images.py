"""Labelled images as sequences of (PIL image, class index): class folders, parquet, or any reader that timm has."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from torchvision.datasets import ImageFolder

from neutreno.data.loading import CorruptSample, derive_seed, seed_cpu
from neutreno.errors import InputError

SYNONYMS = {"val": ("val", "validation", "valid"), "train": ("train", "training"), "test": ("test",)}


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
        raise CorruptSample(f"{where} {reason}; replace or remove it") from error


class Images(Sequence):
    """Labelled images, read when they are asked for. A subclass' ``_content(index)`` gives the first two arguments of
    :func:`decode`."""

    def __init__(self, labels: Sequence[int], classes: Iterable[str], mode: str = "RGB") -> None:
        self.labels, self.classes, self._mode = np.asarray(labels), list(classes), mode

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return decode(*self._content(index), self._mode), int(self.labels[index])


class FolderImages(Images):
    """``root/CLASS/…/image``: classes are the folders' names in order."""

    def __init__(self, folder: Path, mode: str = "RGB") -> None:
        try:
            files = ImageFolder(str(folder))
        except FileNotFoundError as error:  # torchvision's word for no class folder, and for one without an image
            if not any(p.is_dir() for p in folder.iterdir()):
                raise InputError(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE files") from error
            raise InputError(f"{folder}: {str(error).split(' Supported')[0].rstrip('.')}") from error
        super().__init__(files.targets, files.classes, mode)
        self._paths = [path for path, _ in files.samples]

    def _content(self, index: int) -> tuple[str, str]:
        return self._paths[index], self._paths[index]


class ParquetImages(Images):
    """Parquet as Hugging Face ``datasets`` writes it: a column of image bytes and one of integer labels."""

    def __init__(self, files: list[str], mode: str = "RGB") -> None:
        import datasets

        datasets.disable_progress_bars()
        self._where = str(Path(files[0]).parent)
        try:
            table = datasets.load_dataset("parquet", data_files={"images": files}, split="images")
        except Exception as error:  # datasets wraps what pyarrow says of a broken file in several exception types
            raise InputError(f"cannot read {', '.join(files)} as parquet ({type(error).__name__})") from error
        columns = table.column_names
        image = next((c for c in ("image", "img") if c in columns), None)
        label = next((c for c in ("label", "labels", "fine_label") if c in columns), None)
        if image is None or label is None:
            raise InputError(f"{self._where}: expected columns 'image' and 'label', found {', '.join(columns)}")
        labels = np.asarray(table[label])
        super().__init__(labels, getattr(table.features[label], "names", None) or map(str, np.unique(labels)), mode)
        self._images = table.cast_column(image, datasets.Image(decode=False)).select_columns([image])
        self._column = image

    def _content(self, index: int) -> tuple[bytes | str, str]:
        cell = self._images[index][self._column]
        return cell["bytes"] if cell["bytes"] is not None else cell["path"] or b"", f"{self._where}, row {index}"


class ReaderImages(Images):
    """A map-style data set of timm's ``create_dataset``: ``hfds/HUB_ID``, ``torch/NAME`` and the like."""

    def __init__(self, dataset, where: str, mode: str = "RGB") -> None:
        self._dataset, self._where = dataset, where
        self._reader = getattr(dataset, "reader", None)  # None: torchvision's native one, already decoded
        if self._reader is None:
            names, labels = dataset.classes, dataset.targets
        else:
            names = sorted(self._reader.class_to_idx, key=self._reader.class_to_idx.get)
            labels = list(self._reader.iter_targets())
        super().__init__(labels, map(str, names or np.unique(labels)), mode)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if self._reader is not None:
            return super().__getitem__(index)
        image, label = self._dataset[index]
        return image.convert(self._mode), label

    def _content(self, index: int) -> tuple[bytes, str]:
        with self._reader[index][0] as file:
            return file.read(), f"{self._where}, row {index}"


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
                if not 0 <= label < self._classes:
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


def load_hub(reader: str, split: str | None = None, **kwargs):
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


def open_reader(name: str, split: str, root: str | None, mode: str = "RGB", **kwargs):
    """timm's ``create_dataset(name, root, split, …)`` as :class:`ReaderImages`, or itself if it is a stream.

    Raises:
        InputError: it cannot be opened: not there, no access, no network; says what its library says.
    """
    from timm.data import create_dataset

    if not name.startswith(("torch/", "hfds/", "hfids/", "tfds/", "wds/")):
        raise InputError(f"data.reader={name} is not one of timm's: torch/…, hfds/…, hfids/…, tfds/… or wds/…")
    if name.startswith("torch/") and root is None:
        raise InputError(f"data.reader={name} needs data.root=FOLDER, where torchvision keeps its files")
    try:
        if name.startswith(("hfds/", "hfids/")):
            quiet_hub()
        dataset = create_dataset(name, root=root, split=split, input_img_mode=mode, **kwargs)
        return dataset if isinstance(dataset, IterableDataset) else ReaderImages(dataset, name, mode)
    except Exception as error:  # timm, datasets, huggingface_hub, torchvision, webdataset: exceptions differ by cause
        raise reader_error(name, split, error) from error


def reader_error(name: str, split: str | None, error: Exception) -> InputError:
    """What the library behind ``data.reader`` said, and the way out."""
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "num_samples" in said:
        said = "its length is not known; give data.samples.train and data.samples.val"
    elif isinstance(error, KeyError):
        said = f"it has no column {said}; name its columns with data.reader_args={{input_key: …, target_key: …}}"
    elif name.startswith(("hfds/", "hfids/")):
        said = f"{said[:300]}; if it needs access, accept its terms on the hub and run `hf auth login`, "
        said += "or give a local copy with data.root=FOLDER and data.reader=null"
    return InputError(f"data.reader={name}{f', split {split}' if split else ' cannot be read'}: {said}")


def open_split(root: str | Path, split: str, mode: str = "RGB") -> FolderImages | ParquetImages | None:
    """The split under ``root`` in whichever layout is there, or None if it is in neither.

    Layouts: ``root/SPLIT/CLASS/IMAGE``, ``root/SPLIT-*.parquet``, ``root/SPLIT.parquet``, ``root/SPLIT/*.parquet``,
    ``root/data/SPLIT-*.parquet``; ``validation`` and ``valid`` are read as ``val``.
    """
    root = Path(root)
    for name in SYNONYMS[split]:
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet", f"data/{name}-*.parquet"):
            if files := sorted(map(str, root.glob(pattern))):
                return ParquetImages(files, mode)
        if (root / name).is_dir():
            return FolderImages(root / name, mode)
    return None
