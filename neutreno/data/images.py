"""Labelled images on disk, as class folders or as parquet files, read as sequences of (PIL image, class index)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder

from neutreno.errors import InputError

SYNONYMS = {"val": ("val", "validation", "valid"), "train": ("train", "training"), "test": ("test",)}


def _decode(content: str | bytes, where: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "is empty" if _is_empty(content) else "is not a readable image"
        raise InputError(f"{where} {reason}; replace or remove it") from error


def _is_empty(content: str | bytes) -> bool:
    return not content if isinstance(content, bytes) else Path(content).is_file() and not Path(content).stat().st_size


class FolderImages:
    """``root/CLASS/…/image``: classes are the folders' names in order."""

    def __init__(self, folder: Path) -> None:
        try:
            self._files = ImageFolder(str(folder), loader=lambda path: path)
        except FileNotFoundError as error:  # torchvision's word for no class folder, and for one without an image
            if not any(p.is_dir() for p in folder.iterdir()):
                raise InputError(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE files") from error
            raise InputError(f"{folder}: {str(error).split(' Supported')[0].rstrip('.')}") from error
        self.classes = self._files.classes
        self.labels = np.asarray(self._files.targets)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._files.samples[index]
        return _decode(path, path), label


class ParquetImages:
    """Parquet as Hugging Face ``datasets`` writes it: a column of image bytes and one of integer labels."""

    def __init__(self, files: list[str]) -> None:
        import datasets

        datasets.disable_progress_bars()
        self._where = str(Path(files[0]).parent)
        try:
            table = datasets.load_dataset("parquet", data_files={"images": files}, split="images")
        except Exception as error:  # datasets wraps what pyarrow says of a broken file in several kinds of its own
            raise InputError(f"cannot read {', '.join(files)} as parquet ({type(error).__name__})") from error
        columns = table.column_names
        image = next((c for c in ("image", "img") if c in columns), None)
        label = next((c for c in ("label", "labels", "fine_label") if c in columns), None)
        if image is None or label is None:
            raise InputError(f"{self._where}: expected columns 'image' and 'label', found {', '.join(columns)}")
        self.labels = np.asarray(table[label])
        self.classes = getattr(table.features[label], "names", None) or [str(c) for c in np.unique(self.labels)]
        self._images = table.cast_column(image, datasets.Image(decode=False)).select_columns([image])
        self._column = image

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        cell = self._images[index][self._column]
        content = cell["bytes"] if cell["bytes"] is not None else cell["path"] or b""
        return _decode(content, f"{self._where}, row {index}"), int(self.labels[index])


class Subset:
    """Part of a sequence of images, by index."""

    def __init__(self, images: Sequence, indices: np.ndarray) -> None:
        self._images, self._indices = images, indices
        self.classes, self.labels = images.classes, images.labels[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._images[int(self._indices[index])]


def open_split(root: str | Path, split: str) -> FolderImages | ParquetImages | None:
    """The split under ``root`` in whichever layout is there, or None if it is in neither.

    Layouts: ``root/SPLIT/CLASS/IMAGE``, ``root/SPLIT-*.parquet``, ``root/SPLIT.parquet``, ``root/SPLIT/*.parquet``,
    ``root/data/SPLIT-*.parquet``; ``validation`` and ``valid`` are read as ``val``.
    """
    root = Path(root)
    for name in SYNONYMS[split]:
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet", f"data/{name}-*.parquet"):
            if files := sorted(map(str, root.glob(pattern))):
                return ParquetImages(files)
        if (root / name).is_dir():
            return FolderImages(root / name)
    return None
