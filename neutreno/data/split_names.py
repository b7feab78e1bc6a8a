"""What people call the splits of a data set, in folders and names of files, and what lies there that is no data."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES = {  # of a split, in any case
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}


def split_of(name: str) -> str | None:
    """The split that is called so, if one is."""
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def split_of_shard(stem: str) -> str | None:
    """The same of a file that may be one of several: ``train``, ``train-00000-of-00002``, ``dev_0``, ``test1``."""
    found = re.fullmatch(r"([a-z]+)([-_\d].*)?", stem.lower())
    return split_of(found[1]) if found else None


def seeming_split(name: str) -> str | None:
    """The split whose name stands in this one as a word, if one's does: ``my test_set``, ``TrainData``, ``mytrain``."""
    for letters in re.findall(r"[^\W\d_]+", name):
        for word in re.split("(?<=[a-z])(?=[A-Z])", letters):
            plain = re.sub("(set|data|images)$", "", word.lower()) or word
            if split := split_of("train" if plain.endswith("train") else plain):
                return split
    return None


def is_meant(parts: Iterable[str]) -> bool:
    """Whether no part of a path is hidden or macOS' own: what editors, notebooks and archives leave behind."""
    return not any(part[:1] == "." or part == "__MACOSX" for part in parts)
