"""Graphs of labelled nodes, and where they are read from: raw Planetoid files, npz files, PyTorch Geometric."""

from __future__ import annotations

import difflib
import inspect
import io
import math
import operator
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from neutreno.data.base import check_root
from neutreno.errors import InputError, one_line

UNLABELLED = -100  # cross entropy's ignore_index
SPLITS = ("train", "val", "test")
MOST_AXES = 8  # of an array in a pickle
MOST_ENTRIES = 2**30  # of the feature matrix, which is kept dense: 4 GiB
PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
VALIDATION_NODES = 500  # of the public splits
BROKEN_NPZ = (  # what np.load raises; a RuntimeError of an encrypted file
    *(OSError, ValueError, TypeError, EOFError, MemoryError, OverflowError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
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


def find_folder(root: Path, pattern: str, folders: tuple[str, ...]) -> Path:
    """The folder of the files ``pattern``: ``root``, or within it at most two of ``folders``, in any spelling.

    Raises:
        InputError: there is none.
    """
    level = [root]
    try:
        for _ in range(3):
            for folder in level:
                if any(folder.glob(pattern)):
                    return folder
            level = [p for f in level for p in sorted(f.iterdir()) if p.name.lower() in folders and p.is_dir()]
    except OSError as error:
        raise InputError(f"data.root={root} cannot be read: {error.strerror}") from error
    raise InputError(f"data.root={root} holds no {pattern}, nor does {'/'.join(folders)} in it; {WHERE}")


class _Made:
    """What a pickle asks for: the arguments of the call, the state set on the result, and the items put into it."""

    name: str

    def __new__(cls, *args: Any) -> _Made:
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, {}
        return made

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class _Recorder(pickle.Unpickler):
    """Notes what a Planetoid pickle asks for and makes none of it: a pickle may name any function to call."""

    NAMES = (
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "scipy.sparse.csr.csr_matrix",
        "collections.defaultdict",
        "__builtin__.list",
    )

    def find_class(self, module: str, name: str) -> type[_Made]:
        path = f"{module}.{name}"
        if path not in self.NAMES:
            raise InputError(f"names {one_line(path[:100])}, which no file of this kind does; refused")
        return type(path, (_Made,), {"name": path})  # a new one each time: a pickle can set its attributes


def read_pickle(file: Path) -> Any:
    """An array, a sparse matrix as a dense array, or the neighbours by node, out of a raw Planetoid file.

    Raises:
        InputError: it is missing, cut short, or holds anything else.
    """
    try:
        return _made(_Recorder(io.BytesIO(file.read_bytes()), encoding="latin1").load())
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {WHERE}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{file} {error}; {WHERE}") from error
    except Exception as error:  # a broken pickle raises anything
        said = one_line(error)[:200] or type(error).__name__
        raise InputError(f"{file} is cut short or broken ({said}); {WHERE}") from error


def _made(made: Any) -> Any:
    if not isinstance(made, _Made):
        raise InputError(f"holds a {type(made).__name__} where an array is expected")
    if made.name == "collections.defaultdict":
        return made.items
    return _matrix(made.state) if made.name == "scipy.sparse.csr.csr_matrix" else _array(made)


def _array(made: Any) -> np.ndarray:
    """The array of a pickle's ``_reconstruct`` and its state: version, shape, dtype, whether columns come first, bytes.

    Raises:
        InputError: it is no array of plain numbers, or its bytes are not as many as its shape says.
    """
    if not isinstance(made, _Made) or made.name != "numpy.core.multiarray._reconstruct":
        raise InputError("holds no array where one is expected")
    _, shape, dtype, by_column, content = made.state
    kind, order = dtype.args[0], dtype.state[1]
    if dtype.name != "numpy.dtype" or type(kind) is not str:  # a nested tuple's text may have no end
        raise InputError("holds an array whose kind is no text")
    if not re.fullmatch("[fiub][1248]", kind) or order not in ("<", ">", "|"):
        raise InputError(f"holds an array of {one_line(kind)[:20]!r}, not of plain numbers")
    if type(shape) is not tuple or len(shape) > MOST_AXES or any(type(length) is not int for length in shape):
        raise InputError("holds an array whose shape is no tuple of a few whole numbers")
    content, dtype = content.encode("latin1"), np.dtype(kind).newbyteorder(order)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise InputError(f"holds an array of shape {str(shape)[:100]} with {len(content):,} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")


def _matrix(state: Mapping[str, Any]) -> np.ndarray:
    return dense(compressed(*(_array(state[part]) for part in ("data", "indices", "indptr")), state["_shape"]))


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
    return matrix.toarray().astype(np.float32)


def check_size(nodes: int, features: int) -> None:
    """
    Raises:
        InputError: the feature matrix would not fit into memory.
    """
    if nodes * features > MOST_ENTRIES:
        raise InputError(f"holds {nodes:,} x {features:,} features, more than the {MOST_ENTRIES:,} that are read")


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


def read_npz(root: str | Path | None, file: str) -> Graph:
    """A graph of Shchur et al. (2018), without a split: sparse ``adj_…`` and ``attr_…`` matrices, and ``labels``.

    A feature is whether the word occurs, as PyTorch Geometric reads it.

    Raises:
        InputError: the file is missing, broken, or holds pickled objects.
    """
    path = find_folder(check_root(root, "pyg/NAME"), file, ("cs", "raw")) / file
    try:
        with np.load(path, allow_pickle=False) as found:
            links, words = (
                compressed(*(found[f"{kind}_{part}"] for part in ("data", "indices", "indptr", "shape")))
                for kind in ("adj", "attr")
            )
            labels = found["labels"]
        if not np.isfinite(words.data).all() or words.data.min(initial=0) < 0:
            raise InputError("counts a word NaN, Inf or less than 0 times")
        features = dense(words) > 0
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
    return Graph(features.astype(np.float32), edges, labels.astype(np.int64))


def read_pyg(reader: str, root: str | Path | None, reader_args: Mapping[str, Any], split: int) -> Graph:
    """The one graph of a data set of PyTorch Geometric: ``pyg/NAME``, a class of ``torch_geometric.datasets``.

    Args:
        root: where it keeps its files.
        reader_args: further arguments of the class.
        split: which one, where the data set has several.

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
    try:
        with warnings.catch_warnings(action="ignore"):
            from torch_geometric import datasets
    except ImportError as error:
        said = f"data.reader={reader} needs PyTorch Geometric ({one_line(error)})"
        raise InputError(f"{said}: pip install 'neutreno[graphs]'") from error
    if name not in datasets.__all__:
        near = difflib.get_close_matches(name, datasets.__all__, 1)
        meant = f"; did you mean pyg/{near[0]}?" if near else ""
        raise InputError(f"data.reader={reader}: torch_geometric.datasets has no {one_line(name)}{meant}")
    return getattr(datasets, name)


def _pyg_masks(data: Any, split: int, where: str) -> dict[str, np.ndarray]:
    """The masks of the three splits; none where the data set lacks one. Of several splits (N, S), number ``split``."""
    found = {name: getattr(data, f"{name}_mask", None) for name in SPLITS}
    if any(mask is None for mask in found.values()):
        return {}
    there = max((mask.shape[1] for mask in found.values() if mask.ndim == 2), default=1)
    if split >= there:
        raise InputError(f"data.split={split}: {where} has {there} split(s), numbered from 0")
    return {name: (mask[:, split] if mask.ndim == 2 else mask).bool().numpy() for name, mask in found.items()}
