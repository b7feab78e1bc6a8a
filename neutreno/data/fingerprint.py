"""What tells data from other data, wherever it lies: names, counts, labels, and the sizes of a fixed sample of files.

A split whose class has a method ``facts()``, lines of text, has a fingerprint. It takes seconds at ImageNet's size, so
it does not read the images: two sets alike in all of this, but for pixels of compressed files of the same sizes, pass
for one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

SAMPLED = 1000  # samples whose size is looked at


def fingerprint(samples: Any) -> str | None:
    """sha256 of what is known of a split; None if nothing is."""
    facts = _facts(samples)
    return None if facts is None else digest(facts)


def _facts(samples: Any) -> Iterable[str] | None:
    if isinstance(samples, Subset):
        facts = _facts(samples.dataset)
        return None if facts is None else [*facts, of_array(samples.indices)]
    return samples.facts() if hasattr(samples, "facts") else None


def digest(lines: Iterable[str]) -> str:
    found = hashlib.sha256()
    for line in lines:
        found.update(f"{line}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def of_array(values: Any) -> str:
    """A line for an array of numbers."""
    array = np.ascontiguousarray(values)
    kind = "u" if array.dtype.kind == "b" else array.dtype.kind
    return f"{array.shape} {kind} {hashlib.sha256(array.astype(f'{kind}8')).hexdigest()}"


def sampled(count: int, most: int = SAMPLED) -> np.ndarray:
    """Indices of at most ``most`` of ``count`` samples, evenly spaced."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, most)).astype(int))


def of_files(paths: Sequence[str | Path], folder: str | Path) -> Iterator[str]:
    """The names within ``folder`` of all files that lie there, and the sizes of some."""
    start = len(str(folder))  # a million of pathlib's take seven seconds
    yield from (str(path)[start:] for path in paths)
    yield from (str(os.stat(paths[index]).st_size) for index in sampled(len(paths)))
