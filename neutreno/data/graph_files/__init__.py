"""Graphs of labelled nodes; a module for each kind of files that they are read from."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from neutreno.errors import InputError, one_line

UNLABELLED = -100  # cross entropy's ignore_index
SPLITS = ("train", "val", "test")
MOST_ENTRIES = 2**30  # of the feature matrix, which is kept dense: 4 GiB
WHERE = "scripts/prepare_graphs.py says where to get it"


@dataclass
class Graph:
    """A graph whose nodes are classified.

    Attributes:
        features: (N, F), float32.
        edges: (2, E), both directions of every edge, without self-loops and duplicates (see :func:`undirected`).
        labels: (N,), classes from 0 on; ``UNLABELLED`` for a node that has none.
        masks: the nodes (N,) of each split, where the data set says so.
    """

    features: np.ndarray
    edges: np.ndarray
    labels: np.ndarray
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return int(self.labels.max(initial=-1)) + 1

    @property
    def sizes(self) -> dict[str, int]:
        """As they are published, edges without direction."""
        nodes, features = self.features.shape
        edges = self.edges.shape[1] // 2
        return {"nodes": nodes, "edges": edges, "features": features, "classes": self.num_classes}


def undirected(pairs: np.ndarray, nodes: int, where: str | Path) -> np.ndarray:
    """Both directions of every pair of nodes (2, E) that an edge joins, sorted, without self-loops and duplicates.

    Raises:
        InputError: an edge leads to a node that is not there.
    """
    if pairs.size and (pairs.min() < 0 or pairs.max() >= nodes):
        wrong = next(int(n) for n in pairs.flat if not 0 <= n < nodes)
        raise InputError(f"{where}: an edge leads to node {wrong}, and there are only 0 to {nodes - 1}")
    first, second = pairs[:, pairs[0] != pairs[1]].astype(np.int64)
    both = np.concatenate([first * nodes + second, second * nodes + first])
    return np.stack(np.divmod(np.unique(both), nodes))


def check_graph(graph: Graph, where: str | Path) -> None:
    """
    Raises:
        InputError: the features are no finite numbers, or the labels no classes from 0 on, two or more.
    """
    nodes, labels = len(graph.labels), graph.labels
    if graph.features.ndim != 2 or len(graph.features) != nodes or not graph.features.size:
        shape = " x ".join(map(str, graph.features.shape))
        raise InputError(f"{where} has {shape} features for {nodes:,} labels; expected a row of numbers for each node")
    if not np.isfinite(graph.features).all():
        node = int(np.flatnonzero(~np.isfinite(graph.features).all(1))[0])
        raise InputError(f"{where}: the features of node {node} hold NaN or Inf; repair them")
    if len(wrong := labels[(labels < 0) & (labels != UNLABELLED)]) or graph.num_classes > nodes:
        label = int(wrong[0]) if len(wrong) else graph.num_classes - 1
        raise InputError(f"{where}: label {label} is out of range; number the classes from 0 on")
    if graph.num_classes < 2:
        raise InputError(f"{where} has fewer than two classes of nodes; there is nothing to classify")


def check_masks(masks: Mapping[str, np.ndarray], graph: Graph, where: str | Path) -> None:
    """
    Raises:
        InputError: a split has no node, two share one, one holds a node without label, or a class no training node.
    """
    for split, mask in masks.items():
        if mask.shape != graph.labels.shape or mask.dtype != bool:
            raise InputError(f"{where}: the {split} mask is not a yes or no for each of {len(graph.labels):,} nodes")
        if not mask.any():
            raise InputError(f"{where}: the {split} split has no node")
        if (graph.labels[mask] == UNLABELLED).any():
            raise InputError(f"{where}: the {split} split holds nodes without label")
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := np.count_nonzero(masks[a] & masks[b]):
            raise InputError(f"{where}: {shared:,} nodes are in both the {a} and the {b} split")
    per_class = np.bincount(graph.labels[masks["train"]], minlength=graph.num_classes)
    if not per_class.all():
        raise InputError(f"{where}: class {int(np.argmin(per_class))} has no training node")


def draw_masks(labels: np.ndarray, per_class: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """``per_class["train"]`` and ``["val"]`` nodes of every class, drawn with ``seed``; the rest is to test.

    A class with fewer nodes gives what it has, to training first.
    """
    draw, masks = np.random.default_rng(seed), {split: np.zeros(len(labels), bool) for split in SPLITS}
    ends = np.cumsum([per_class["train"], per_class["val"]])
    for label in np.unique(labels[labels != UNLABELLED]):
        drawn = draw.permutation(np.flatnonzero(labels == label))
        for split, nodes in zip(SPLITS, np.split(drawn, ends), strict=True):
            masks[split][nodes] = True
    return masks


def find_folder(root: Path, pattern: str, folders: Sequence[str]) -> Path:
    """The folder of the files ``pattern``: ``root``, or within it one of ``folders``, or within that another.

    Capital letters in their names make no difference.

    Raises:
        InputError: there is none.
    """
    level, names = [root], {name.lower() for name in folders}
    try:
        for _ in range(3):
            for folder in level:
                if any(folder.glob(pattern)):
                    return folder
            level = [p for f in level for p in sorted(f.iterdir()) if p.name.lower() in names and p.is_dir()]
    except OSError as error:
        raise InputError(f"data.root={root} cannot be read: {error.strerror}") from error
    raise InputError(f"data.root={root} holds no {pattern}, nor do folders in it named {', '.join(folders)}; {WHERE}")


def compressed(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: Any) -> sparse.csr_array:
    """A matrix in compressed sparse rows.

    Raises:
        InputError: it is not of real numbers, or its indices lead outside it (SciPy's C code would follow them).
    """
    if data.dtype.kind not in "biuf" or indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        kinds = ", ".join(str(part.dtype) for part in (data, indices, indptr))
        raise InputError(f"holds a sparse matrix of {kinds}, where numbers and two arrays of indices are expected")
    try:
        matrix = sparse.csr_array((data, indices, indptr), shape=tuple(map(operator.index, shape)))
        matrix.check_format(full_check=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"holds a broken sparse matrix ({one_line(error)[:100]})") from error
    return matrix


def dense(matrix: sparse.csr_array) -> np.ndarray:
    """
    Raises:
        InputError: it would not fit into memory.
    """
    check_size(*matrix.shape)
    return matrix.astype(np.float32).toarray()


def check_size(nodes: int, features: int) -> None:
    """
    Raises:
        InputError: the feature matrix would not fit into memory.
    """
    if nodes * features > MOST_ENTRIES:
        raise InputError(f"holds {nodes:,} x {features:,} features, more than the {MOST_ENTRIES:,} that are read")
