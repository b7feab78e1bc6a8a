"""Layer-wise metrics of PyTorch Geometric's networks, as they are."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import APPNP, GAT, GCN, DeepGCNLayer, GCNConv, GENConv, GPSConv, Sequential
from torch_geometric.utils import to_undirected

import neutreno
from neutreno.errors import InputError
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


def test_each_graph_of_a_batch_is_a_sample(graph):
    """As if each had come alone; they have different numbers of nodes."""
    model = GCN(WIDTH, 16, 2, 3).eval()
    sizes = (20, 25, 5)
    edges = [to_undirected(torch.randint(size, (2, 3 * size))) for size in sizes]
    starts = (0, 20, 45)
    whole = torch.cat([part + start for part, start in zip(edges, starts, strict=True)], 1)
    batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    metrics = ["cosine", "effective_rank"]
    found = neutreno.profile(model, {"x": graph["x"], "edge_index": whole, "batch": batch}, metrics)
    alone = [
        neutreno.profile(model, {"x": x, "edge_index": part}, metrics)["mean"]
        for x, part in zip(graph["x"].split(sizes), edges, strict=True)
    ]
    assert found["mean"].tolist() == pytest.approx((sum(alone) / 3).tolist(), abs=1e-5)
    assert (found["samples"] == 3).all() and found["tokens"].tolist() == pytest.approx([NODES / 3] * len(found))


def test_a_network_without_layers_says_what_was_looked_for(graph):
    with pytest.raises(InputError, match="for graph layers of PyTorch Geometric; name them by layers="):
        neutreno.profile(nn.Linear(WIDTH, 2), graph["x"][None])
