"""Graphs from npz files of sparse matrices."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neutreno.data.base import check_root
from neutreno.data.graph_files import WHERE, Graph, compressed, dense, find_folder, undirected
from neutreno.errors import InputError, one_line

BROKEN_NPZ = (  # what np.load raises; a RuntimeError of an encrypted file
    *(OSError, ValueError, TypeError, EOFError, MemoryError, OverflowError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def read_npz(root: str | Path | None, file: str, folders: Sequence[str] = ()) -> Graph:
    """A graph of Shchur et al. (2018), without a split: sparse ``adj_…`` and ``attr_…`` matrices, and ``labels``.

    A feature is whether the word occurs, as PyTorch Geometric reads it.

    Args:
        folders: below ``root`` in which the file may lie, itself or in one named raw.

    Raises:
        InputError: the file is missing, broken, or holds pickled objects.
    """
    path = find_folder(check_root(root, "pyg/NAME"), file, (*folders, "raw")) / file
    try:
        with np.load(path, allow_pickle=False) as found:
            links, words = (
                compressed(*(found[f"{kind}_{part}"] for part in ("data", "indices", "indptr", "shape")))
                for kind in ("adj", "attr")
            )
            labels = found["labels"]
        if not np.isfinite(words.data).all() or words.data.min(initial=0) < 0:
            raise InputError("counts a word NaN, Inf or less than 0 times")
        words.data = (words.data > 0).astype(np.float32)
        features = dense(words)
        np.minimum(features, 1, out=features)  # the parts may give an entry twice
    except InputError as error:
        raise InputError(f"{path} {error}; {WHERE}") from error
    except KeyError as error:
        raise InputError(f"{path}: {one_line(error.args[0])}; {WHERE}") from error
    except BROKEN_NPZ as error:
        said = one_line(error)[:200] or type(error).__name__
        raise InputError(f"{path} is cut short or broken ({said}); {WHERE}") from error
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or links.shape != (len(labels), len(labels)):
        raise InputError(f"{path} does not hold a label for each of {links.shape[0]:,} nodes; {WHERE}")
    edges = undirected(np.stack(links.tocoo().coords), len(labels), path)
    return Graph(features, edges, labels.astype(np.int64))
