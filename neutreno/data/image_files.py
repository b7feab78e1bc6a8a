"""Where the images of a data set may lie under its folder: splits in folders or parquet, or all without splits."""

from __future__ import annotations

import re
from pathlib import Path

from neutreno.data.images import FolderImages, Images, class_folders, is_image
from neutreno.data.readers import open_parquet
from neutreno.data.split_names import is_meant, seeming_split, split_of, split_of_shard
from neutreno.errors import InputError


def _split_of(path: Path) -> str | None:
    """The split that a folder or a parquet file is named after, if it is."""
    if path.suffix.lower() == ".parquet":
        return split_of_shard(path.stem)
    return split_of(path.name) if path.is_dir() else None


def _parquet_in(folder: Path) -> list[Path]:
    files = (path for path in sorted(folder.glob("*")) if path.suffix.lower() == ".parquet" and path.is_file())
    return [file for file in files if is_meant([file.name])]


def open_split(root: str | Path, split: str, mode: str = "RGB") -> Images | None:
    """The split under ``root`` in whichever layout is there, or None if it is in none.

    Layouts: ``root/SPLIT/CLASS/IMAGE``, ``root/SPLIT/*.parquet``, and under ``root`` or ``root/data`` ``SPLIT.parquet``
    or shards, ``SPLIT-*.parquet``, ``SPLIT_*.parquet``, ``SPLIT0.parquet``. SPLIT is any of
    :data:`neutreno.data.split_names.NAMES`.

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
    there = [path for path in (*_parquet_in(root), *class_folders(root)) if not _split_of(path)]
    found = {path.name: seeming_split(path.stem if path.is_file() else path.name) for path in there}
    return {name: split for name, split in found.items() if split}


def outside_splits(root: Path) -> list[Path]:
    """Parquet files, or else class folders, under ``root`` that are named after no split.

    Raises:
        InputError: some seem to be splits, see :func:`seeming_splits`.
    """
    found = [path for path in _parquet_in(root) if not _split_of(path)]
    if not found:
        folders = [path for path in class_folders(root) if not _split_of(path)]
        inside = (str(path.relative_to(root)) for folder in folders for path in folder.rglob("*"))
        found = folders if any(map(is_image, inside)) else []
    seeming = seeming_splits(root)
    if likely := [path for path in found if path.name in seeming]:
        names = (seeming[path.name] + path.suffix.lower() * path.is_file() for path in likely)
        said = f"{root} holds {', '.join(path.name for path in likely)}; if that is meant as a split, rename it"
        raise InputError(f"{said} ({', '.join(names)}); if not, move all training images into {root}/train")
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
