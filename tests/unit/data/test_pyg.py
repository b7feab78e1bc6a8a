"""Graphs of PyTorch Geometric: what is taken from a data set, and data sets that hold no classified nodes."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from support.graphs import STEPS, ready, write_planetoid

from neutreno.config.trust import check_reading
from neutreno.data.graph_files import UNLABELLED
from neutreno.data.graphs import GraphFiles, Planetoid
from neutreno.errors import InputError


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


def test_a_split_is_chosen_of_a_readers_alone_and_none_is_drawn_beside_it(geometric):
    with pytest.raises(InputError, match=r"data\.split=0 goes with data\.reader; leave it out"):
        geometric_data(reader=None, split=0)
    with pytest.raises(InputError, match=r"data\.split=1 is the reader's, and data\.per_class draws another"):
        geometric_data(split=1, per_class={"train": 1, "val": 1})


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
