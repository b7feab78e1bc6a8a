"""Graphs from data sets of PyTorch Geometric."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neutreno.data.graph_files import SPLITS, UNLABELLED, Graph, undirected
from neutreno.errors import InputError, needing, one_line


def read_pyg(reader: str, root: str | Path | None, reader_args: Mapping[str, Any], split: int | None) -> Graph:
    """The one graph of a data set of PyTorch Geometric: ``pyg/NAME``, a class of ``torch_geometric.datasets``.

    Args:
        root: where it keeps its files.
        reader_args: further arguments of the class.
        split: which one, where the data set has several; None: the first.

    Raises:
        InputError: there is no such data set, it cannot be read, or it is not one graph of classified nodes.
    """
    dataset, where = _pyg_class(reader), f"data.reader={reader}"
    arguments = dict(reader_args)
    if "root" in inspect.signature(dataset).parameters:
        if root is None:
            raise InputError(f"{where} keeps files: give it a folder, data.root=FOLDER")
        arguments["root"] = str(root)
    try:
        found = dataset(**arguments)
        data = found[0] if len(found) == 1 else None
    except Exception as error:  # each data set fails in its own way
        said = one_line(error)[:200] or type(error).__name__
        raise InputError(f"{where} with data.reader_args={dict(reader_args)} cannot be read: {said}") from error
    x, edges, labels = (getattr(data, name, None) for name in ("x", "edge_index", "y"))
    if not all(isinstance(part, torch.Tensor) for part in (x, edges, labels)):
        raise InputError(f"{where} is not one graph with features, edges and labels of nodes (x, edge_index, y)")
    labels = labels.squeeze(-1) if labels.shape[1:] == (1,) else labels
    if labels.ndim != 1 or labels.is_floating_point():
        said = f"its labels are {str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        raise InputError(f"{where} does not give each node one class: {said}")
    labels = labels.long().numpy()
    joined = undirected(edges.numpy(), len(labels), where)
    labels = np.where(labels < 0, UNLABELLED, labels)
    return Graph(x.to_dense().float().numpy(), joined, labels, _pyg_masks(data, split, where))


def _pyg_class(reader: str) -> Callable:
    kind, _, name = reader.partition("/")
    if kind != "pyg" or not name:
        raise InputError(f"data.reader={reader} is no reader of graphs; give pyg/NAME, such as pyg/WikiCS")
    with needing(f"data.reader={reader}", "PyTorch Geometric", "graphs"), warnings.catch_warnings(action="ignore"):
        from torch_geometric import datasets
    if name not in datasets.__all__:
        near = difflib.get_close_matches(name, datasets.__all__, 1)
        meant = f"; did you mean pyg/{near[0]}?" if near else ""
        raise InputError(f"data.reader={reader}: torch_geometric.datasets has no {one_line(name)}{meant}")
    return getattr(datasets, name)


def _pyg_masks(data: Any, split: int | None, where: str) -> dict[str, np.ndarray]:
    """The masks of the three splits; none where the data set lacks one. Of several splits (N, S), number ``split``."""
    split = split or 0
    found = {name: getattr(data, f"{name}_mask", None) for name in SPLITS}
    if any(mask is None for mask in found.values()):
        return {}
    there = max((mask.shape[1] for mask in found.values() if mask.ndim == 2), default=1)
    if split >= there:
        raise InputError(f"data.split={split}: {where} has {there} split(s), numbered from 0")
    return {name: (mask[:, split] if mask.ndim == 2 else mask).bool().numpy() for name, mask in found.items()}
