"""What tells data from other data, wherever it lies: names, counts, labels, and the sizes of a fixed sample of files.

A split whose class has a method ``facts()``, lines of text, has a fingerprint. It takes seconds at ImageNet's size, so
it does not read the images: two sets alike in all of this, but for pixels of compressed files of the same sizes, pass
for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
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
    return f"{array.shape} {array.dtype.kind} {hashlib.sha256(array.astype(array.dtype.kind + '8')).hexdigest()}"


def sampled(count: int, most: int = SAMPLED) -> np.ndarray:
    """Indices of at most ``most`` of ``count`` samples, evenly spaced."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, most)).astype(int))


def of_files(paths: list[Path], root: Path) -> Iterator[str]:
    """The names of all, relative to ``root``, and the sizes of some."""
    yield from (str(path.relative_to(root)) for path in paths)
    yield from (str(paths[index].stat().st_size) for index in sampled(len(paths)))
