"""Graphs of labelled nodes: what a batch is, the splits, the raw formats, and files that are broken or hostile."""

import io
import os
import pickle
import sys
import zipfile
from collections import defaultdict
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits
from support.graphs import (
    BEFORE,
    CLASSES,
    LEFT_OUT,
    NODES,
    PER_CLASS,
    VALIDATION,
    dumps,
    npz,
    planetoid,
    write_npz,
    write_planetoid,
)

from neutreno.config.trust import check_reading
from neutreno.data.graph_files import UNLABELLED, Graph
from neutreno.data.graphs import DigitsGraph, GraphData, GraphFiles, NpzGraph, Planetoid
from neutreno.errors import InputError

STEPS = {"val_every_n_steps": 3}


class Given(GraphData):
    """Six nodes in a ring, two classes, two nodes for each split; ``changes`` replace a part of it."""

    def __init__(self, changes=None, **kwargs):
        super().__init__(**STEPS, **kwargs)
        self.changes = changes or {}

    def read_graph(self):
        ring = np.arange(6)
        pairs = np.array([[*ring, *np.roll(ring, -1)], [*np.roll(ring, -1), *ring]])
        parts = {"features": np.ones((6, 3), np.float32), "edges": pairs, "labels": ring % 2}
        parts["masks"] = {"train": ring < 2, "val": (ring >= 2) & (ring < 4), "test": ring >= 4}
        masks = self.changes.get("masks")
        changes = self.changes | ({"masks": parts["masks"] | masks} if masks else {})
        return Graph(**(parts | changes)), "the ring"


def ready(data):
    data.setup()
    return data


def cora(folder, **kwargs):
    return ready(Planetoid(name="cora", root=folder, **STEPS, **kwargs))


def with_trainer(data, **settings):
    data.trainer = SimpleNamespace(**{"world_size": 1, "global_rank": 0, "accumulate_grad_batches": 1, **settings})
    return data


def test_the_digits_are_split_in_the_same_way_for_every_seed():
    first, second = (ready(DigitsGraph(seed=seed, **STEPS)) for seed in (0, 1))
    labels = first.graph.labels
    assert np.bincount(labels[first.masks["train"]]).tolist() == [20] * 10
    assert np.bincount(labels[first.masks["val"]]).tolist() == [40] * 10
    assert first.record()["graph"]["splits"] == {"train": 200, "val": 400, "test": 1197}
    assert all(np.array_equal(first.masks[split], second.masks[split]) for split in first.masks)
    assert first.digests == second.digests


def test_a_digit_is_joined_to_those_nearest_by_cosine_in_both_directions():
    pixels = load_digits().data
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -1)
    edges = ready(DigitsGraph(**STEPS)).graph.edges
    joined = sparse.coo_array((np.ones(edges.shape[1]), tuple(edges)), similar.shape).toarray()
    assert joined.max() == 1 and np.array_equal(joined, joined.T) and not joined.diagonal().any()
    node = 123
    nearest = set(np.argsort(-similar[node])[:8].tolist())
    assert nearest <= set(np.flatnonzero(joined[node]).tolist())
    for other in set(np.flatnonzero(joined[node]).tolist()) - nearest:  # then it is among the nearest of that one
        assert node in np.argsort(-similar[other])[:8]


def test_a_batch_holds_the_whole_graph_and_labels_of_its_split_alone():
    data = with_trainer(ready(Given()))
    (x, train, val), _, _ = data.train_dataloader()
    assert x.shape == (1, 6, 3) and x.dtype == torch.float32 and train.dtype == torch.int64
    assert train.tolist() == [[0, 1] + 4 * [UNLABELLED]]
    assert val.tolist() == [[UNLABELLED, UNLABELLED, 0, 1, UNLABELLED, UNLABELLED]]
    for loader, labels in ((data.val_dataloader(), val), (data.test_dataloader(), None)):
        assert len(loader) == 1
        ((inputs, found),) = loader
        assert inputs is x and (labels is None or found is labels)
    assert found.tolist() == [4 * [UNLABELLED] + [0, 1]]
    assert [part.shape[0] for part in data.splits["train"][0]] == [6, 6, 6] and len(data.splits["train"]) == 1


def test_an_epoch_is_the_steps_between_two_validations_and_resumes_within():
    data = with_trainer(ready(Given()))
    loader = data.train_dataloader()
    assert len(loader) == len(list(loader)) == data.whole_epoch == 3
    loader.load_state_dict({"given": 2})
    assert len(list(loader)) == 1 and len(list(loader)) == 3


def test_features_of_a_node_sum_to_one_and_a_node_without_any_keeps_none():
    features = np.array([[1, 3, 0], [0, 0, 0], [2, 2, 4]] * 2, np.float32)
    x = ready(Given({"features": features})).splits["val"][0][0]
    assert torch.allclose(x, torch.tensor([[0.25, 0.75, 0], [0, 0, 0], [0.25, 0.25, 0.5]]).repeat(2, 1))
    assert features.sum() == 24  # what was read is as it was


def test_all_features_outside_the_training_split_are_missing_at_a_share_of_one():
    x = ready(DigitsGraph(missing=1.0, **STEPS))
    filled = x.splits["train"][0][0].any(1).numpy()
    assert np.array_equal(filled, x.masks["train"])


def test_a_share_of_missing_features_is_drawn_by_the_seed_and_leaves_the_digest():
    runs = [ready(DigitsGraph(missing=0.25, seed=seed, **STEPS)) for seed in (0, 0, 1)]
    empty = [~data.splits["val"][0][0].any(1).numpy() for data in runs]
    assert [e.sum() for e in empty] == [399] * 3  # of 1,597
    assert not (empty[0] & runs[0].masks["train"]).any()
    assert np.array_equal(empty[0], empty[1]) and not np.array_equal(empty[0], empty[2])
    assert runs[0].digests == ready(DigitsGraph(**STEPS)).digests


def test_a_drawn_split_depends_on_the_seed_and_leaves_the_rest_to_test():
    per_class = {"train": 5, "val": 10}
    runs = [ready(DigitsGraph(per_class=per_class, seed=seed, **STEPS)) for seed in (0, 0, 1)]
    labels, masks = runs[0].graph.labels, runs[0].masks
    assert np.bincount(labels[masks["train"]]).tolist() == [5] * 10
    assert np.bincount(labels[masks["val"]]).tolist() == [10] * 10
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()
    assert np.array_equal(masks["train"], runs[1].masks["train"])
    assert not np.array_equal(masks["train"], runs[2].masks["train"])
    with pytest.raises(InputError, match="per_class needs both numbers"):
        DigitsGraph(per_class={"train": 5}, **STEPS)


def test_the_model_is_given_the_edges_and_the_probe_all_labels():
    data = Given()
    given = data.model_arguments()
    assert (given["num_features"], given["num_classes"]) == (3, 2)
    assert given["edges"].shape == (2, 12) and given["edges"].dtype == torch.int64
    x, labels = data.probe_samples(128)
    assert x.shape == (1, 6, 3) and labels.tolist() == [[0, 1, 0, 1, 0, 1]]
    assert data.count("train") == 2 and data.samples_per_step == 6
    assert data.record()["graph"]["edges"] == 6


@pytest.mark.parametrize("part", ["features", "edges", "labels", "masks"])
def test_the_digest_tells_graphs_apart_by_each_of_their_parts(part):
    graph = Given().read_graph()[0]
    masks = graph.masks | {"val": graph.masks["test"], "test": graph.masks["val"]}
    changed = {
        "features": graph.features * 2,
        "edges": graph.edges[:, ::-1],
        "labels": 1 - graph.labels,
        "masks": masks,
    }
    assert ready(Given()).digests != ready(Given({part: changed[part]})).digests


@pytest.mark.parametrize("option", ["batch_size", "repeats", "micro_batch_size"])
def test_a_graph_is_one_batch_and_nothing_else(option):
    with pytest.raises(InputError, match=f"{option}=2 should be 1"):
        Given(**{option: 2})


def test_more_than_one_process_or_micro_batch_is_refused():
    data = ready(Given())
    assert data.accumulated_batches(1) == data.eval_batches(1) == 1
    with pytest.raises(InputError, match=r"for one process, not 2: set trainer\.devices=1"):
        data.accumulated_batches(2)
    with pytest.raises(InputError, match=r"trainer\.accumulate_grad_batches=4: .* cannot be split"):
        data.accumulated_batches(1, 4)
    with pytest.raises(InputError, match=r"for one process, not 3"):
        with_trainer(data, world_size=3).val_dataloader()


def test_a_model_of_anything_but_nodes_is_refused():
    class Model(torch.nn.Module):
        output = "tokens"

    data = ready(Given())
    data.check_model(torch.nn.Linear(1, 1), {})  # says nothing
    with pytest.raises(InputError, match="a graph needs a model of nodes, and Model gives tokens; leave model"):
        data.check_model(Model(), {})


def test_a_tensor_is_moved_to_a_device_once():
    data = with_trainer(ready(Given()))
    device = torch.device("meta")
    moved = [data.transfer_batch_to_device(batch, device, 0) for batch in data.train_dataloader()]
    (held,) = data.val_dataloader()
    moved.append(data.transfer_batch_to_device(held, device, 0))
    assert all(x.device == device for batch in moved for x in batch)
    assert all(x is y for batch in moved[1:3] for x, y in zip(batch, moved[0], strict=True))
    assert moved[3][0] is moved[0][0] and moved[3][1] is moved[0][2]  # features, and labels to validate
    assert data.transfer_batch_to_device(held, torch.device("cpu"), 0)[0] is held[0]


def mask(*nodes):
    return np.isin(np.arange(6), nodes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": {"val": mask()}}, "the val split has no node"),
        ({"masks": {"test": mask(3, 4)}}, "1 nodes are in both the val and the test split"),
        ({"masks": {"val": mask(1, 2)}}, "1 nodes are in both the train and the val split"),
        ({"masks": {"train": mask(0)}}, "class 1 has no training node"),
        ({"masks": {"train": np.ones(5, bool)}}, "the train mask is not a yes or no for each of 6 nodes"),
        ({"masks": {"train": np.ones(6)}}, "the train mask is not a yes or no for each of 6 nodes"),
        ({"masks": {}}, "has no split of its own; draw one"),
        ({"labels": np.array([0, 1, 0, 1, 0, UNLABELLED])}, "the test split holds nodes without label"),
        ({"labels": np.array([0, 1, 0, 1, 0, -1])}, "label -1 is out of range"),
        ({"labels": np.array([0, 1, 0, 1, 0, 10**15])}, f"label {10**15} is out of range"),
        ({"labels": np.array([0, 1, 0, 1, 0, 3])}, "class 2 has no training node"),
        ({"labels": np.zeros(6, np.int64)}, "has fewer than two classes of nodes"),
        ({"labels": np.full(6, UNLABELLED)}, "has fewer than two classes of nodes"),
        ({"features": np.full((6, 3), np.nan, np.float32)}, "the features of node 0 hold NaN or Inf"),
        ({"features": np.full((6, 3), np.inf, np.float32)}, "the features of node 0 hold NaN or Inf"),
        ({"features": np.ones((5, 3), np.float32)}, "has 5 x 3 features for 6 labels"),
        ({"features": np.ones((6, 0), np.float32)}, "has 6 x 0 features for 6 labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_graph_that_cannot_be_learned_is_refused_in_a_line(changes, words):
    data = Given(changes) if changes != {"masks": {}} else Given()
    if changes == {"masks": {}}:
        read = data.read_graph()
        read[0].masks.clear()
        data.read_graph = lambda: read
    with pytest.raises(InputError) as caught:
        data.setup()
    assert str(caught.value).startswith("the ring") and words in str(caught.value) and "\n" not in str(caught.value)


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
    with pytest.raises(InputError, match=r"data\.root is not set: .*, or data\.reader=pyg/NAME$"):
        coauthors(None)
    with pytest.raises(InputError, match="is not a folder"):
        cora(tmp_path / "nowhere")


class Calls:
    """Pickled, it asks whoever reads it to call ``function``."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


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


def coauthors(folder, **kwargs):
    kwargs = {"per_class": {"train": 3, "val": 2}, **kwargs}
    return ready(NpzGraph(file="ms_academic_cs.npz", root=folder, **STEPS, **kwargs))


def test_an_npz_file_gives_words_edges_without_direction_and_a_drawn_split(tmp_path):
    held, data = npz(), coauthors(write_npz(tmp_path / "CS/raw").parents[1])
    words = sparse.csr_array((held["attr_data"], held["attr_indices"], held["attr_indptr"]), held["attr_shape"])
    assert np.array_equal(data.graph.features, words.toarray() > 0)
    links = sparse.csr_array((held["adj_data"], held["adj_indices"], held["adj_indptr"]), held["adj_shape"]).tocoo()
    pairs = {(int(a), int(b)) for a, b in zip(*links.coords, strict=True) if a != b}
    assert sorted(pairs | {(b, a) for a, b in pairs}) == sorted(map(tuple, data.graph.edges.T.tolist()))
    assert data.record()["graph"]["splits"] == {"train": 12, "val": 8, "test": 20}
    with pytest.raises(InputError, match="has no split of its own; draw one"):
        coauthors(tmp_path, per_class=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.array([0, 1] * 20, dtype=object)}, "cut short or broken"),
        ({"attr_data": np.array([Calls(os.system, "true")] * 9, dtype=object)}, "cut short or broken"),
        ({"attr_indices": np.full_like(npz()["attr_indices"], 10**6)}, "holds a broken sparse matrix"),
        ({"adj_indices": np.full_like(npz()["adj_indices"], -5)}, "holds a broken sparse matrix"),
        ({"attr_shape": np.array([40, 10**12])}, "holds 40 x 1,000,000,000,000 features"),
        ({"adj_shape": np.array([10**12, 40])}, "holds a broken sparse matrix"),
        ({"adj_shape": np.array([np.inf, 40])}, "holds a broken sparse matrix"),
        ({"adj_shape": np.array(40)}, "holds a broken sparse matrix"),
        ({"adj_data": npz()["adj_data"].astype("M8[s]")}, "holds a sparse matrix of datetime64[s], int32, int32"),
        ({"attr_data": npz()["attr_data"] * 1j}, "holds a sparse matrix of complex64, int32, int32"),
        ({"adj_indices": npz()["adj_indices"].astype(float)}, "holds a sparse matrix of float32, float64, int32"),
        ({"adj_indices": npz()["adj_indices"] > 0}, "holds a sparse matrix of float32, bool, int32"),
        ({"attr_indptr": npz()["attr_indptr"].astype(float)}, "holds a sparse matrix of float32, int32, float64"),
        *[({"attr_data": npz()["attr_data"] * n}, "counts a word NaN, Inf or less") for n in (np.nan, np.inf, -1)],
        ({"labels": np.arange(39) % 4}, "does not hold a label for each of 40 nodes"),
        ({"labels": np.zeros(40)}, "does not hold a label for each of 40 nodes"),
        ({"labels": np.arange(40) % 4 - 1}, "label -1 is out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_npz_file_that_is_hostile_or_broken_is_refused_in_a_line(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        coauthors(write_npz(tmp_path, **changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_npz_file_that_is_cut_short_or_lacks_a_part_is_named(tmp_path):
    file = write_npz(tmp_path) / "ms_academic_cs.npz"
    content = file.read_bytes()
    for left in (0, 0.5, 0.99):
        file.write_bytes(content[: int(left * len(content))])
        with pytest.raises(InputError, match=r"ms_academic_cs\.npz is cut short or broken"):
            coauthors(tmp_path)
    directory = content.index(b"PK\1\2")
    file.write_bytes(content[: directory + 8] + b"\1" + content[directory + 9 :])
    with pytest.raises(InputError, match=r"ms_academic_cs\.npz is cut short or broken \(.* is encrypted"):
        coauthors(tmp_path)
    held = io.BytesIO()
    np.save(held, npz()["labels"])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("adj_data.npy", held.getvalue().replace(b"(40,), }" + 20 * b" ", b"(%d,), }" % 10**21))
    with pytest.raises(InputError, match=r"ms_academic_cs\.npz is cut short or broken \(Python int too large"):
        coauthors(tmp_path)
    np.savez(file, labels=np.zeros(3))
    with pytest.raises(InputError, match="adj_data is not a file in the archive"):
        coauthors(tmp_path)
    with pytest.raises(InputError, match="should be a file name, without its folder"):
        NpzGraph(file="../other.npz", root=tmp_path, **STEPS)


@pytest.fixture
def geometric(monkeypatch):
    """A package of the name of PyTorch Geometric with one data set, whose ``found`` is what it holds."""
    ring = torch.arange(6)

    class Ring:
        found = SimpleNamespace(
            x=torch.ones(6, 3),
            edge_index=torch.stack([ring, ring.roll(-1)]),
            y=ring % 2,
            train_mask=torch.stack([ring < 2, ring >= 4], 1),
            val_mask=torch.stack([(ring >= 2) & (ring < 4)] * 2, 1),
            test_mask=torch.stack([ring >= 4, ring < 2], 1),
        )
        graphs = 1

        def __init__(self, root, name="ring"):
            if name != "ring":
                raise AssertionError(f"no {name}")
            self.root = root

        def __len__(self):
            return self.graphs

        def __getitem__(self, index):
            return self.found

    package = ModuleType("torch_geometric")
    package.datasets = ModuleType("torch_geometric.datasets")
    package.datasets.Ring, package.datasets.__all__ = Ring, ["Ring"]
    monkeypatch.setitem(sys.modules, "torch_geometric", package)
    return Ring


def geometric_data(root="folder", reader="pyg/Ring", **kwargs):
    return ready(GraphFiles(root=root, reader=reader, **STEPS, **kwargs))


def test_a_readers_graph_loses_its_directions_and_one_of_its_splits_is_taken(geometric):
    data = geometric_data()
    assert data.record()["graph"]["edges"] == 6 and data.graph.edges.shape == (2, 12)
    assert np.flatnonzero(data.masks["train"]).tolist() == [0, 1]
    assert np.flatnonzero(geometric_data(split=1).masks["train"]).tolist() == [4, 5]
    geometric.found.test_mask = geometric.found.test_mask[:, 0]  # as WikiCS has it
    assert np.flatnonzero(geometric_data().masks["test"]).tolist() == [4, 5]
    geometric.found.y, geometric.found.x = geometric.found.y[:, None], geometric.found.x.to_sparse()
    assert geometric_data().graph.labels.tolist() == [0, 1] * 3


def test_a_readers_graph_without_a_split_is_split_by_seed_if_that_is_asked_for(geometric):
    del geometric.found.val_mask
    with pytest.raises(InputError, match=r"data\.reader=pyg/Ring has no split of its own; draw one: 'data\.per_class="):
        geometric_data()
    data = geometric_data(per_class={"train": 1, "val": 1})
    assert data.record()["graph"]["splits"] == {"train": 2, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("settings", "found", "words"),
    [
        ({"reader": "wds/Ring"}, {}, "data.reader=wds/Ring is no reader of graphs; give pyg/NAME"),
        ({"reader": "pyg/"}, {}, "data.reader=pyg/ is no reader of graphs"),
        ({"reader": "pyg/Rings"}, {}, "torch_geometric.datasets has no Rings; did you mean pyg/Ring?"),
        ({"reader": "pyg/__name__"}, {}, "torch_geometric.datasets has no __name__"),
        ({"root": None}, {}, "data.reader=pyg/Ring keeps files: give it a folder, data.root=FOLDER"),
        ({"reader_args": {"name": "x"}}, {}, "cannot be read: no x"),
        ({"reader_args": {"named": "x"}}, {}, "cannot be read"),
        ({"split": 2}, {}, "data.split=2: data.reader=pyg/Ring has 2 split(s), numbered from 0"),
        ({}, {"x": None}, "is not one graph with features, edges and labels of nodes"),
        ({}, {"y": torch.ones(6, 2)}, "does not give each node one class: its labels are float32 of shape [6, 2]"),
        ({}, {"y": torch.ones(6)}, "does not give each node one class: its labels are float32"),
        ({}, {"edge_index": torch.tensor([[0], [6]])}, "an edge leads to node 6"),
        ({}, {"y": torch.tensor([0, 1, 0, 1, -1, 1])}, "the test split holds nodes without label"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_reader_that_gives_no_classified_nodes_is_refused_in_a_line(geometric, settings, found, words):
    for name, value in found.items():
        setattr(geometric.found, name, value)
    with pytest.raises(InputError) as caught:
        geometric_data(**settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_reader_of_several_graphs_is_refused(geometric):
    geometric.graphs = 2
    with pytest.raises(InputError, match="is not one graph"):
        geometric_data()


def test_without_pytorch_geometric_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(InputError, match=r"needs PyTorch Geometric \(.*\): pip install 'neutreno\[graphs\]'"):
        geometric_data()


def test_a_reader_that_a_run_folder_names_is_refused():
    node = {"_target_": "neutreno.data.graphs.Planetoid", "name": "cora", "root": "folder", "reader": None}
    check_reading(node, "data")
    for further in ({"reader": "pyg/Ring"}, {"reader": "pyg/Ring", "reader_args": {"name": "x"}}):
        with pytest.raises(InputError, match="which decides what reads the data, and may run code; refused"):
            check_reading(node | further, "data")


def test_pytorch_geometric_reads_the_same_graph(tmp_path):
    pytest.importorskip("torch_geometric")
    folder = write_planetoid(tmp_path / "CiteSeer/raw", "citeseer")  # the one in which it expects left-out nodes
    theirs = geometric_data(str(tmp_path), "pyg/Planetoid", reader_args={"name": "CiteSeer"}).graph
    ours = ready(Planetoid(name="citeseer", root=folder, **STEPS)).graph
    assert np.array_equal(theirs.features, ours.features) and np.array_equal(theirs.edges, ours.edges)
    assert all(np.array_equal(theirs.masks[split], ours.masks[split]) for split in ours.masks)
    labelled = ours.labels != UNLABELLED
    assert np.array_equal(theirs.labels[labelled], ours.labels[labelled])
