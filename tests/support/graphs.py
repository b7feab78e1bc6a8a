"""Small graphs in the format of the raw Planetoid files, which Python 2 pickled, and in that of the npz files."""

import collections
import io
import pickle
import struct

import numpy as np
from scipy import sparse

CLASSES, PER_CLASS, VALIDATION, TESTED, FEATURES = 3, 2, 500, 12, 7
BEFORE = CLASSES * PER_CLASS + VALIDATION + 20  # nodes before those to test
NODES = BEFORE + TESTED + 1  # one is in no file but the graph's, as some of Citeseer's are
LEFT_OUT = BEFORE + 4
STEPS = {"val_every_n_steps": 3}


class Calls:
    """Pickled, it asks whoever reads it to call ``function``."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


# A run of a second: four layers, twelve steps, a validation of Lightning's after every fourth.
GRAPH = [
    "data=digits_graph",
    "model.depth=4",
    "model.hidden=8",
    "trainer.max_steps=12",
    "trainer.log_every_n_steps=1",
    "data.val_every_n_steps=4",
    "probe.every_n_epochs=1",
    "trainer.accelerator=cpu",
]
ARM = ["propagation=neutreno", "propagation.anchor=shuffled", "norm=group", "checkpoint.every_n_steps=3"]


class _Python2(pickle._Pickler):
    """Bytes are text of one byte a character, as Python 2 wrote them."""

    def save_bytes(self, content, obj=None):
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def dumps(value):
    """As NumPy and SciPy were named when the files were made."""
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(value)
    names = {b"numpy._core.": b"numpy.core.", b"scipy.sparse._csr\n": b"scipy.sparse.csr\n"}
    content = file.getvalue()
    for now, then in names.items():
        content = content.replace(now, then)
    return content


def planetoid():
    """What the raw files hold, by the ends of their names; features and edges are drawn at random."""
    draw = np.random.default_rng(0)
    features = (draw.random((NODES, FEATURES)) < 0.4).astype(np.float32)
    features[LEFT_OUT] = 0
    labels = np.arange(NODES) % CLASSES
    one_hot = np.eye(CLASSES, dtype=np.int32)[labels]
    test = draw.permutation([n for n in range(BEFORE, NODES) if n != LEFT_OUT])
    neighbours = collections.defaultdict(list, {n: [] for n in range(NODES)})
    for a, b in draw.integers(0, NODES, (3 * NODES, 2)).tolist():
        if LEFT_OUT not in (a, b):
            neighbours[a].append(b)
            neighbours[b].append(a)
    neighbours[0] += [0, 1, 1]  # a self-loop and duplicates, as there are in Cora
    first = CLASSES * PER_CLASS
    parts = {"x": features[:first], "tx": features[test], "allx": features[:BEFORE]}
    parts = {name: sparse.csr_matrix(part) for name, part in parts.items()}
    parts |= {"y": one_hot[:first], "ty": one_hot[test], "ally": one_hot[:BEFORE]}
    return {**parts, "graph": neighbours, "test.index": test}


def write_planetoid(folder, name="cora", **changes):
    """The files of :func:`planetoid`; ``changes`` are other values, or bytes, of some (test_index: of test.index)."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, value in (planetoid() | {key.replace("_", "."): value for key, value in changes.items()}).items():
        if not isinstance(value, bytes):
            value = "".join(f"{n}\n" for n in value).encode() if part == "test.index" else dumps(value)
        (folder / f"ind.{name}.{part}").write_bytes(value)
    return folder


def npz():
    """What the npz file holds: 40 nodes of four classes, some of them joined in one direction alone."""
    draw = np.random.default_rng(0)
    links = sparse.csr_array((draw.random((40, 40)) < 0.1).astype(np.float32))
    words = sparse.csr_array(draw.integers(0, 3, (40, 6)).astype(np.float32))
    found = {"labels": np.arange(40) % 4, "class_names": np.array(["a", "b"], dtype=object)}
    for kind, matrix in (("adj", links), ("attr", words)):
        found |= {f"{kind}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    return found


def write_npz(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "ms_academic_cs.npz", **{**npz(), **changes})
    return folder


def ready(data):
    data.setup()
    return data
