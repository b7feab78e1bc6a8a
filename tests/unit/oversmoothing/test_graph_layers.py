"""Layer-wise metrics of PyTorch Geometric's networks, as they are."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    DeepGCNLayer,
    GATConv,
    GCNConv,
    GENConv,
    GPSConv,
    HeteroConv,
    Sequential,
)
from torch_geometric.utils import to_undirected

import neutreno
from neutreno.errors import InputError
from neutreno.oversmoothing import groups
from neutreno.oversmoothing.groups import squared_distance_ratio
from neutreno.oversmoothing.layers import find_layers
from neutreno.oversmoothing.metrics import mean_cosine_similarity

NODES, WIDTH = 50, 8


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.steps = GCNConv(WIDTH, 16), GCNConv(16, 3), APPNP(5, 0.1)

    def forward(self, x, edge_index):
        return self.steps(self.conv2(self.conv1(x, edge_index).relu(), edge_index), edge_index)


class Blocks(nn.Module):
    def __init__(self, block) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(3))

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


def residual_block():
    return DeepGCNLayer(GENConv(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU())


def two_convolutions():
    return Sequential("x, edge_index", [(GCNConv(8, 8), "x, edge_index -> x"), (GCNConv(8, 8), "x, edge_index -> x")])


NETWORKS = {
    "a list of convolutions": (lambda: GCN(WIDTH, 16, 4, 3, norm="BatchNorm"), [f"convs.{i}" for i in range(4)]),
    "attention over edges": (lambda: GAT(WIDTH, 16, 3, 3, heads=2), [f"convs.{i}" for i in range(3)]),
    "attributes": (ByName, ["conv1", "conv2", "steps"]),
    "residual blocks": (lambda: Blocks(residual_block), [f"layers.{i}" for i in range(3)]),
    "blocks of two convolutions": (lambda: Blocks(two_convolutions), [f"layers.{i}" for i in range(3)]),
    "graph transformer": (
        lambda: Blocks(lambda: GPSConv(WIDTH, GCNConv(WIDTH, WIDTH), heads=2)),
        [f"layers.{i}" for i in range(3)],
    ),
}


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return {"x": torch.randn(NODES, WIDTH), "edge_index": to_undirected(torch.randint(NODES, (2, 100)))}


@pytest.mark.parametrize("make, names", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_layers_are_found_and_what_they_give_is_measured(make, names, graph):
    model = make().eval()
    assert [layer.name for layer in find_layers(model)] == names
    given = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda module, args, output: given.append(output))
    table = neutreno.profile(model, graph, metrics="cosine")
    expected = [mean_cosine_similarity(x).item() for x in (graph["x"], *given)]
    assert table["mean"].tolist() == pytest.approx(expected, abs=1e-9) and len(table) == len(names) + 1
    assert (table["tokens"] == NODES).all() and (table["samples"] == 1).all()


def test_labels_and_inputs_of_nodes_are_told(graph):
    labels, given = torch.randint(3, (NODES,)), []
    model = GCN(WIDTH, 16, 2, 3).eval()
    model.convs[-1].register_forward_hook(lambda module, args, output: given.append(output))
    found = neutreno.profile(model, (graph, labels), ["group_distance_ratio", "instance_information_gain"])
    last = found[found.layer == 2].set_index("metric")["mean"]
    assert last["group_distance_ratio"] == pytest.approx(squared_distance_ratio(given[0].double(), labels).item())
    assert last["instance_information_gain"] > 0


@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "unsorted"])
def test_each_graph_of_a_batch_is_a_sample(graph, shuffled):
    """As if each had come alone; they have different numbers of nodes."""
    model = GCN(WIDTH, 16, 2, 3).eval()
    sizes = (20, 25, 5)
    edges = [to_undirected(torch.randint(size, (2, 3 * size))) for size in sizes]
    starts = (0, 20, 45)
    whole = torch.cat([part + start for part, start in zip(edges, starts, strict=True)], 1)
    batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    metrics = ["cosine", "effective_rank"]
    order = torch.randperm(NODES) if shuffled else torch.arange(NODES)
    arguments = {"x": graph["x"][order], "edge_index": order.argsort()[whole], "batch": batch[order]}
    found = neutreno.profile(model, arguments, metrics)
    alone = [
        neutreno.profile(model, {"x": x, "edge_index": part}, metrics)["mean"]
        for x, part in zip(graph["x"].split(sizes), edges, strict=True)
    ]
    assert found["mean"].tolist() == pytest.approx((sum(alone) / 3).tolist(), abs=1e-5)
    assert (found["samples"] == 3).all() and found["tokens"].tolist() == pytest.approx([NODES / 3] * len(found))


def test_a_network_without_layers_says_what_was_looked_for(graph):
    with pytest.raises(InputError, match="for graph layers of PyTorch Geometric; name them by layers="):
        neutreno.profile(nn.Linear(WIDTH, 2), graph["x"][None])


def test_the_inputs_are_the_features_whatever_comes_first(graph):
    model = GCN(WIDTH, 16, 2, 3).eval()
    batch = torch.zeros(NODES, dtype=torch.int64)
    first, last = ({"batch": batch, **graph}, {**graph, "batch": batch})
    found = [neutreno.profile(model, given, "instance_information_gain")["mean"].tolist() for given in (first, last)]
    assert found[0] == found[1] and len(found[0]) == 3


def test_the_kernel_of_the_inputs_is_made_once(graph, monkeypatch):
    made = []
    monkeypatch.setattr(groups, "kernel", lambda x, kernel=groups.kernel: made.append(len(x)) or kernel(x))
    neutreno.profile(GCN(WIDTH, 16, 4, 3), graph, "instance_information_gain")
    assert made == [NODES]


class Tokens(nn.Module):
    """A transformer whose argument is called batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True) for _ in range(2))

    def forward(self, batch):
        for layer in self.layers:
            batch = layer(batch)
        return batch


def test_an_argument_of_that_name_may_be_something_else():
    assert len(neutreno.profile(Tokens(), {"batch": torch.randn(4, 5, WIDTH)}, "cosine")) == 3


class TwoKinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kinds = {("a", "to", "b"): GATConv((WIDTH, WIDTH), WIDTH, add_self_loops=False)}
        self.layers = nn.ModuleList([HeteroConv({**kinds, ("b", "to", "a"): next(iter(kinds.values()))})])

    def forward(self, x, edges):
        return self.layers[0](x, edges)


def test_nodes_of_several_kinds_are_left_out():
    x = {"a": torch.randn(12, WIDTH), "b": torch.randn(5, WIDTH)}
    edges = {("a", "to", "b"): torch.tensor([[0, 11], [1, 4]]), ("b", "to", "a"): torch.tensor([[1, 4], [0, 11]])}
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match="nothing was measured"):
        neutreno.profile(TwoKinds(), {"x": x, "edges": edges})


class InDictionaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(OfState() for _ in range(2))

    def forward(self, x, edge_index):
        state = {"x": x, "edge_index": edge_index}
        for layer in self.convs:
            state = layer(state)
        return state["x"]


class OfState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(WIDTH, WIDTH)

    def forward(self, state):
        return {**state, "x": self.conv(state["x"], state["edge_index"])}


def test_a_dictionary_of_one_kind_of_nodes_is_measured(graph):
    assert neutreno.profile(InDictionaries(), graph, "cosine")["layer"].tolist() == [0, 1, 2]


class InParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = GCNConv(WIDTH, 16), GCNConv(16, 3)
        self.convs = nn.ModuleList([GCNConv(16, 16), GCNConv(16, 16)])

    def forward(self, x, edge_index):
        for layer in (self.first, *self.convs, self.last):
            x = layer(x, edge_index).relu()
        return x


def test_the_layers_of_a_network_in_parts_are_one_stack_in_the_order_of_their_calls(graph):
    table = neutreno.profile(InParts(), graph, "cosine")
    assert table["name"].tolist() == ["first", "first", "convs.0", "convs.1", "last"]
    assert table["layer"].tolist() == list(range(5)) and table["stack"].nunique() == 1
