"""Arrays out of the pickles of raw Planetoid files, without running what they name."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neutreno.data.graph_files import WHERE, compressed, dense
from neutreno.errors import InputError, one_line

MOST_AXES = 8  # of an array in a pickle


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


_KINDS = {
    path: type(path, (_Made,), {"name": path})
    for path in (
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "scipy.sparse.csr.csr_matrix",
        "collections.defaultdict",
        "__builtin__.list",
    )
}


class _Recorder(pickle.Unpickler):
    """Notes what a Planetoid pickle asks for and makes none of it: a pickle may name any function to call."""

    def find_class(self, module: str, name: str) -> type[_Made]:
        path = f"{module}.{name}"
        if path not in _KINDS:
            raise InputError(f"names {one_line(path[:100])}, which no file of this kind does; refused")
        return _KINDS[path]


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
