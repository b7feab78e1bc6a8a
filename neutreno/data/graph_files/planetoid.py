"""Citation graphs from raw Planetoid files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neutreno.data.base import check_root
from neutreno.data.graph_files import UNLABELLED, WHERE, Graph, check_size, find_folder, undirected
from neutreno.data.graph_files.pickles import read_pickle
from neutreno.errors import InputError, one_line

PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
VALIDATION_NODES = 500  # of the public splits


def read_planetoid(root: str | Path | None, name: str) -> Graph:
    """A citation graph of Yang et al. (2016) with its public split, from the raw files ``ind.NAME.*``.

    The training nodes come first, the next 500 validate; ``test.index`` numbers the rows of ``tx``. Numbers that it
    leaves out (Citeseer has 15) are nodes without features, edges and label: where other readers give them class 0,
    here they have none, which changes no split.

    Raises:
        InputError: a file is missing or broken, or they do not fit each other.
    """
    folder = find_folder(check_root(root, "pyg/NAME"), f"ind.{name}.*", (name, "raw"))
    x, tx, allx, y, ty, ally, neighbours = (read_pickle(folder / f"ind.{name}.{part}") for part in PLANETOID[:-1])
    test = _read_indices(folder / f"ind.{name}.test.index")
    where, matrices = folder / f"ind.{name}.*", (x, tx, allx, y, ty, ally)
    if not isinstance(neighbours, dict) or any(getattr(matrix, "ndim", 0) != 2 for matrix in matrices):
        raise InputError(f"{where}: features and labels should be matrices, and graph the neighbours by node; {WHERE}")
    widths = {m.shape[1] for m in (x, tx, allx)}, {m.shape[1] for m in (y, ty, ally)}
    rows = [(len(x), len(y)), (len(tx), len(ty)), (len(tx), len(test)), (len(allx), len(ally))]
    if any(len(width) > 1 for width in widths) or any(a != b for a, b in rows):
        raise InputError(f"{where} do not fit each other: features and labels differ in size; {WHERE}")
    nodes, before = len(neighbours), len(allx)
    if len(np.unique(test)) < len(test) or test.min(initial=before) < before or test.max(initial=0) >= nodes:
        raise InputError(f"{where}: test.index should number nodes from {before} to {nodes - 1}, each once; {WHERE}")
    if len(y) + VALIDATION_NODES > before:
        raise InputError(f"{where} hold {before:,} nodes before those to test, too few for the public split; {WHERE}")
    check_size(nodes, allx.shape[1])
    features = np.zeros((nodes, allx.shape[1]), np.float32)
    features[:before], features[test] = allx, tx
    labels = np.full(nodes, UNLABELLED)
    labels[:before], labels[test] = _classes(ally, where), _classes(ty, where)
    numbers = np.arange(nodes)
    masks = {"train": numbers < len(y), "test": np.isin(numbers, test)}
    masks["val"] = ~masks["train"] & (numbers < len(y) + VALIDATION_NODES)
    pairs = _pairs(neighbours, folder / f"ind.{name}.graph")
    return Graph(features, undirected(pairs, nodes, where), labels, masks)


def _classes(one_hot: np.ndarray, where: Path) -> np.ndarray:
    """Labels (n,) of one-hot rows; a row of zeros is a node without label."""
    marked = one_hot == 1
    if (marked.sum(1) > 1).any() or (one_hot[~marked] != 0).any():
        raise InputError(f"{where}: a row of labels marks several classes; {WHERE}")
    return np.where(marked.any(1), marked.argmax(1), UNLABELLED)


def _read_indices(file: Path) -> np.ndarray:
    try:
        return np.array([int(line) for line in file.read_text().split()], np.int64)
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {WHERE}") from error
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{file} is no list of numbers ({one_line(error)[:100]}); {WHERE}") from error


def _pairs(neighbours: Mapping[Any, Any], file: Path) -> np.ndarray:
    """The neighbours of every node as edges (2, E), read from ``file``.

    Raises:
        InputError: they are not lists of whole numbers, one for each node from 0 on.
    """
    if any(type(found) is not list for found in neighbours.values()):
        raise InputError(f"{file}: the graph is no list of neighbours by node; {WHERE}")
    if any(type(node) is not int or not 0 <= node < len(neighbours) for node in neighbours):
        raise InputError(f"{file}: its nodes are not numbered from 0 to {len(neighbours) - 1}; {WHERE}")
    counts = [len(found) for found in neighbours.values()]
    if sum(counts) > (size := file.stat().st_size):  # nodes may share a list, and each link takes a byte or more
        raise InputError(f"{file}: {sum(counts):,} links are more than a file of {size:,} bytes can hold; {WHERE}")
    ends = [other for found in neighbours.values() for other in found]
    if any(type(other) is not int or other.bit_length() > 63 for other in ends):
        raise InputError(f"{file}: a neighbour is not the number of a node; {WHERE}")
    return np.stack([np.array([*neighbours], np.int64).repeat(counts), np.array(ends, np.int64)])
