"""One graph as data: what a batch is, the splits, what is drawn, and graphs that cannot be learned."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits
from support.graphs import STEPS, ready

from neutreno.data.graph_files import UNLABELLED, Graph
from neutreno.data.graphs import DigitsGraph, GraphData
from neutreno.errors import InputError


def mask(*nodes):
    return np.isin(np.arange(6), nodes)


def masks(**others):
    return {"train": mask(0, 1), "val": mask(2, 3), "test": mask(4, 5), **others}


class Given(GraphData):
    """Six nodes in a ring, two classes, two nodes for each split; ``changes`` replace a part of it."""

    def __init__(self, changes=None, **kwargs):
        super().__init__(**STEPS, **kwargs)
        self.changes = changes or {}

    def read_graph(self):
        ring = np.arange(6)
        pairs = np.array([[*ring, *np.roll(ring, -1)], [*np.roll(ring, -1), *ring]])
        parts = {"features": np.ones((6, 3), np.float32), "edges": pairs, "labels": ring % 2}
        parts["masks"] = masks()
        return Graph(**(parts | self.changes)), "the ring"


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
    (held,) = data.splits["train"]
    assert all(a is b for a, b in zip(held, (x, train, val), strict=True))


def test_an_epoch_is_the_steps_between_two_validations_and_resumes_within():
    data = with_trainer(ready(Given()))
    loader = data.train_dataloader()
    assert len(loader) == len(list(loader)) == data.whole_epoch == 3
    loader.load_state_dict({"given": 2})
    assert len(list(loader)) == 1 and len(list(loader)) == 3


def test_features_of_a_node_sum_to_one_and_a_node_without_any_keeps_none():
    features = np.array([[1, 3, 0], [0, 0, 0], [2, 2, 4]] * 2, np.float32)
    x = ready(Given({"features": features})).splits["val"][0][0][0]
    assert torch.allclose(x, torch.tensor([[0.25, 0.75, 0], [0, 0, 0], [0.25, 0.25, 0.5]]).repeat(2, 1))
    assert features.sum() == 24  # what was read is as it was


def test_all_features_outside_the_training_split_are_missing_at_a_share_of_one():
    x = ready(DigitsGraph(missing=1.0, **STEPS))
    filled = x.splits["train"][0][0][0].any(1).numpy()
    assert np.array_equal(filled, x.masks["train"])


def test_a_share_of_missing_features_is_drawn_by_the_seed_and_leaves_the_digest():
    runs = [ready(DigitsGraph(missing=0.25, seed=seed, **STEPS)) for seed in (0, 0, 1)]
    empty = [~data.splits["val"][0][0][0].any(1).numpy() for data in runs]
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
    changed = {
        "features": graph.features * 2,
        "edges": graph.edges[:, ::-1],
        "labels": 1 - graph.labels,
        "masks": masks(val=graph.masks["test"], test=graph.masks["val"]),
    }
    assert ready(Given()).digests != ready(Given({part: changed[part]})).digests


@pytest.mark.parametrize(
    ("option", "value", "only"),
    [
        *[(option, 2, "1") for option in ("batch_size", "eval_batch_size", "micro_batch_size", "repeats")],
        ("num_workers", 2, "0"),
        ("max_corrupt", 0.1, "less than or equal to 0"),
    ],
)
def test_a_graph_is_one_batch_and_nothing_is_loaded_or_skipped(option, value, only):
    with pytest.raises(InputError, match=f"{option}={value} should be {only}"):
        Given(**{option: value})


def test_more_than_one_process_or_micro_batch_is_refused():
    data = ready(Given())
    assert data.accumulated_batches(1) == data.eval_batches(1) == 1
    with pytest.raises(InputError, match=r"for one process, not 2: set trainer\.devices=1"):
        data.accumulated_batches(2)
    with pytest.raises(InputError, match=r"trainer\.accumulate_grad_batches=4: .* cannot be split"):
        data.accumulated_batches(1, 4)
    with pytest.raises(InputError, match=r"for one process, not 3"):
        with_trainer(data, world_size=3).val_dataloader()


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": masks(val=mask())}, "the val split has no node"),
        ({"masks": masks(test=mask(3, 4))}, "1 nodes are in both the val and the test split"),
        ({"masks": masks(val=mask(1, 2))}, "1 nodes are in both the train and the val split"),
        ({"masks": masks(train=mask(0))}, "class 1 has no training node"),
        ({"masks": masks(train=np.ones(5, bool))}, "the train mask is not a yes or no for each of 6 nodes"),
        ({"masks": masks(train=np.ones(6))}, "the train mask is not a yes or no for each of 6 nodes"),
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
    with pytest.raises(InputError) as caught:
        Given(changes).setup()
    assert str(caught.value).startswith("the ring") and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_graph_without_a_split_says_how_one_is_drawn():
    with pytest.raises(InputError, match=r"the ring has no split of its own; draw one: 'data\.per_class="):
        Given({"masks": {}}).setup()
    drawn = ready(Given({"masks": {}}, per_class={"train": 1, "val": 1}))
    assert [drawn.count(split) for split in drawn.masks] == [2, 2, 2]
