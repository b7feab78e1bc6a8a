"""Raw Planetoid files: what is read, and files that are missing, broken, hostile or do not fit each other."""

import os
import pickle
from collections import defaultdict

import numpy as np
import pytest
from support.graphs import (
    BEFORE,
    CLASSES,
    LEFT_OUT,
    NODES,
    PER_CLASS,
    STEPS,
    VALIDATION,
    Calls,
    dumps,
    planetoid,
    ready,
    write_planetoid,
)

from neutreno.data.graph_files import UNLABELLED
from neutreno.data.graphs import Planetoid
from neutreno.errors import InputError


def cora(folder, **kwargs):
    return ready(Planetoid(name="cora", root=folder, **STEPS, **kwargs))


def test_raw_files_give_the_public_split_and_every_row_its_node(tmp_path):
    held, data = planetoid(), cora(write_planetoid(tmp_path))
    graph, test = data.graph, held["test.index"]
    assert np.array_equal(graph.features[:BEFORE], held["allx"].toarray())
    assert np.array_equal(graph.features[test], held["tx"].toarray())
    assert np.array_equal(graph.labels[:BEFORE], held["ally"].argmax(1))
    assert np.array_equal(graph.labels[test], held["ty"].argmax(1))
    first = CLASSES * PER_CLASS
    assert np.flatnonzero(data.masks["train"]).tolist() == list(range(first))
    assert np.flatnonzero(data.masks["val"]).tolist() == list(range(first, first + VALIDATION))
    assert np.flatnonzero(data.masks["test"]).tolist() == sorted(test)
    joined = {(a, b) for a, others in held["graph"].items() for b in others if a != b}
    assert (0, 1) in joined and (1, 0) not in joined  # once in the file
    assert sorted(joined | {(b, a) for a, b in joined}) == sorted(map(tuple, graph.edges.T.tolist()))


def test_a_node_that_the_test_index_leaves_out_has_no_features_and_no_label(tmp_path):
    data = cora(write_planetoid(tmp_path))
    assert len(data.graph.labels) == NODES and not data.graph.features[LEFT_OUT].any()
    assert np.flatnonzero(data.graph.labels == UNLABELLED).tolist() == [LEFT_OUT]
    assert not any(mask[LEFT_OUT] for mask in data.masks.values())


@pytest.mark.parametrize("below", ["", "raw", "cora", "Cora/raw", "CORA/RAW", "cora/Cora"])
def test_the_files_are_found_below_the_folder_in_any_spelling_and_read_only(tmp_path, below):
    folder = write_planetoid(tmp_path / below)
    folder.chmod(0o500)
    try:
        assert cora(tmp_path).count("train") == 6 and cora(folder).count("train") == 6
    finally:
        folder.chmod(0o700)


PARTS = ["x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_raw_file_is_named(tmp_path, part):
    write_planetoid(tmp_path)
    (tmp_path / f"ind.cora.{part}").unlink()
    with pytest.raises(InputError, match=rf"ind\.cora\.{part} is missing; scripts/prepare_graphs\.py says where"):
        cora(tmp_path)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("left", [0, 0.3, 0.9])
def test_a_raw_file_that_is_cut_short_is_named(tmp_path, part, left):
    file = write_planetoid(tmp_path) / f"ind.cora.{part}"
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    with pytest.raises(InputError, match=r"ind\.cora\.") as caught:
        cora(tmp_path)
    assert "\n" not in str(caught.value)
    assert part == "test.index" or f"ind.cora.{part} is cut short or broken" in str(caught.value)


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(InputError, match=rf"data\.root={tmp_path} holds no ind\.cora\.\*"):
        cora(tmp_path)
    with pytest.raises(InputError, match=r"data\.root is not set: .*, or data\.reader=pyg/NAME$"):
        cora(None)
    with pytest.raises(InputError, match="is not a folder"):
        cora(tmp_path / "nowhere")


NESTED = pickle.EMPTY_TUPLE + 60 * (pickle.DUP + pickle.TUPLE2)  # 2^60 tuples, if each is looked at


def array_pickle(shape=(2, 2), kind=b"f8", content=b"\0" * 32, order=b"<"):
    """A pickled array by hand: its shape, its dtype and its bytes need not fit."""
    text = lambda value: value if value is NESTED else pickle.SHORT_BINSTRING + bytes([len(value)]) + value  # noqa: E731
    number = lambda value: value if value is NESTED else pickle.dumps(value, 2)[2:-1]  # noqa: E731
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(kind) + b"K\0K\x01tR(K\x03" + text(order) + b"tb"
    return b"\x80\x02" + made + b"(K\x01" + number(shape) + dtype + b"\x89" + text(content) + b"tb."


@pytest.mark.parametrize("part", ["x", "graph"])
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, pickle.loads])
def test_a_pickle_that_names_a_function_is_refused_and_calls_none(tmp_path, part, function):
    trace = tmp_path / "called"
    hostile = pickle.dumps(Calls(function, f"touch {trace}" if function is os.system else "1"), 2)
    write_planetoid(tmp_path, **{part: hostile})
    said = rf"ind\.cora\.{part} names \w+\.[\w.]+, which no file of this kind does; refused"
    with pytest.raises(InputError, match=said):
        cora(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (array_pickle(kind=b"O8"), "holds an array of 'O8', not of plain numbers"),
        (array_pickle(kind=b"V8"), "not of plain numbers"),
        (array_pickle(kind=b"f9"), "not of plain numbers"),
        (array_pickle(order=b"?"), "not of plain numbers"),
        (array_pickle(shape=(10**9, 10**9)), "holds an array of shape (1000000000, 1000000000) with 32 bytes"),
        (array_pickle(shape=(-2, -2)), "holds an array of shape (-2, -2)"),
        (array_pickle(shape=("a", 2)), "whose shape is no tuple of a few whole numbers"),
        (array_pickle(shape=(True, 4)), "whose shape is no tuple of a few whole numbers"),
        (array_pickle(shape=(1,) * 10**5), "whose shape is no tuple of a few whole numbers"),
        (array_pickle(shape=[2, 2]), "whose shape is no tuple of a few whole numbers"),
        (array_pickle(shape=NESTED), "whose shape is no tuple of a few whole numbers"),
        (array_pickle(kind=NESTED), "holds an array whose kind is no text"),
        (array_pickle(kind=NESTED).replace(b"dtype", b"ndarray"), "holds an array whose kind is no text"),
        (array_pickle(content=b"\0" * 31), "with 31 bytes"),
        (dumps([1, 2]), "holds a list where an array is expected"),
        (dumps(None), "holds a NoneType where an array is expected"),
        (b"\x80\x02cnumpy\nndarray\n.", "holds a type where an array is expected"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "holds no array where one is expected"),
        (b"\x80\x02cnumpy\nndarray\n(dX\x0c\0\0\0__setstate__K\x01s\x86b.", "is cut short or broken"),
        (array_pickle(), "features and labels differ in size"),
        (dumps(np.zeros(6)), "features and labels should be matrices"),
        (dumps(np.zeros((6, 7), object)), "not of plain numbers"),
        (pickle.dumps(np.zeros((6, 7)), 5), "which no file of this kind does; refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_that_is_none_is_refused_in_a_line(tmp_path, content, words):
    with pytest.raises(InputError) as caught:
        cora(write_planetoid(tmp_path, x=content))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def graph_with(found, node=0):
    """The neighbours by node, those of one exchanged."""
    neighbours = planetoid()["graph"]
    neighbours[node] = found
    return {"graph": neighbours}


def renumbered(node):
    """The neighbours by node, the one without any under another number."""
    neighbours = planetoid()["graph"]
    del neighbours[LEFT_OUT]
    neighbours[node] = []
    return {"graph": neighbours}


def broken(**parts):
    matrix = planetoid()["x"]
    for name, value in parts.items():
        setattr(matrix, name, value)
    return dumps(matrix)


@pytest.mark.parametrize(
    "parts",
    [
        {"indices": np.full(3, 10**6, np.int32)},
        {"indices": np.full_like(planetoid()["x"].indices, 10**6)},
        {"indices": np.full_like(planetoid()["x"].indices, -1)},
        {"indptr": np.array([0, 9**9, 0, 0, 0, 0, 10**9], np.int64)},
        {"indptr": np.array([0, 5, 1, 5, 1, 5, len(planetoid()["x"].data)], np.int32)},
        {"_shape": (6, 10**12)},
        {"_shape": (-6, 7)},
    ],
    ids=str,
)
def test_a_sparse_matrix_that_leads_outside_itself_is_refused(tmp_path, parts):
    with pytest.raises(InputError, match=r"ind\.cora\.x (holds a (broken sparse matrix|6 x)|holds 6 x)") as caught:
        cora(write_planetoid(tmp_path, x=broken(**parts)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (graph_with([NODES]), f"an edge leads to node {NODES}, and there are only 0 to"),
        (graph_with([-1]), "an edge leads to node -1"),
        (graph_with(3), "the graph is no list of neighbours by node"),
        (graph_with("12"), "the graph is no list of neighbours by node"),
        *[(graph_with([n]), "a neighbour is not the number of a node") for n in (10**30, "a", "1", 1.7, True, None)],
        *[(renumbered(n), f"are not numbered from 0 to {NODES - 1}") for n in (-1, NODES, 10**30, "4", 1.7)],
        ({"graph": defaultdict(list, dict.fromkeys(range(NODES), [1] * 3000))}, "links are more than a file of"),
        (
            {"graph": defaultdict(list, list(planetoid()["graph"].items())[:BEFORE])},
            "test.index should number nodes from",
        ),
        ({"test_index": [*planetoid()["test.index"][:-1], BEFORE - 1]}, "test.index should number nodes from"),
        ({"test_index": [BEFORE + 1] * 12}, "each once"),
        ({"test_index": planetoid()["test.index"][1:]}, "features and labels differ in size"),
        ({"test_index": b"one\ntwo\n"}, "test.index is no list of numbers"),
        ({"test_index": b"9" * 30}, "test.index is no list of numbers"),
        ({"ally": planetoid()["ally"][1:]}, "features and labels differ in size"),
        ({"ally": np.ones_like(planetoid()["ally"])}, "a row of labels marks several classes"),
        ({"ally": 2 * planetoid()["ally"]}, "a row of labels marks several classes"),
        ({"y": planetoid()["ally"][:50], "x": planetoid()["allx"][:50]}, "too few for the public split"),
        ({"allx": planetoid()["allx"] * np.nan}, "hold NaN or Inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_raw_files_that_do_not_fit_are_refused_in_a_line(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        cora(write_planetoid(tmp_path, **changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)
