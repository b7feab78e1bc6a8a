"""Graph networks against PyTorch Geometric's layers, and what all of them must keep."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from neutreno.errors import InputError
from neutreno.functional import descend
from neutreno.models import sparse
from neutreno.models.graph import APPNP, GAT, GCN, GCNII, SGC
from neutreno.models.graph_norms import BatchNorm, GroupNorm, NodeNorm, NoNorm, PairNorm
from neutreno.models.propagation import Graph, InitialResidual, NeutrenoPropagation, Propagation
from neutreno.oversmoothing.measure import measure
from neutreno.oversmoothing.recorder import tokens_of

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
NODES, FEATURES, CLASSES = 30, 12, 4
NETWORKS = [GCN, GAT, SGC, GCNII, APPNP]
WITH_V0 = [GCN, GAT, SGC]
NORMS = [NoNorm, BatchNorm, PairNorm, partial(GroupNorm, groups=3), NodeNorm]


def random_edges(nodes=NODES, pairs=45):
    """Node 0 has no edge."""
    drawn = torch.randint(1, nodes, (2, pairs), generator=torch.Generator().manual_seed(1))
    drawn = drawn[:, drawn[0] != drawn[1]]
    return torch.cat([drawn, drawn.flip(0)], 1).unique(dim=1)


EDGES = random_edges()


def features(share=1.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(1, NODES, FEATURES, generator=draw, dtype=dtype)
    return x * (torch.rand(x.shape, generator=draw) < share)


def built(network, **options):
    torch.manual_seed(0)
    width = {} if network is SGC else {"hidden": 6}
    options = {"depth": 4} | width | options
    return network(FEATURES, CLASSES, EDGES, num_nodes=NODES, **options).double()


def dense(edges=EDGES, nodes=NODES):
    a = torch.eye(nodes, dtype=torch.float64)
    a[edges[1], edges[0]] = 1
    root = a.sum(1).rsqrt()
    return root[:, None] * a * root


def test_the_product_is_that_of_the_normalized_adjacency_forward_and_backward():
    v = torch.randn(1, NODES, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(Graph(EDGES, NODES)(v)[0], dense() @ v[0])
    assert torch.autograd.gradcheck(Graph(EDGES, NODES), v)


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_propagation_is_a_step_on_E_of_the_values_over_the_roots_of_the_degrees(lam):
    """Under the kernel A + I; λ̃ = 0 is a step on J."""
    graph, kernel = Graph(EDGES, NODES), (dense() > 0).double()
    v, v0 = torch.randn(2, 1, NODES, 3, dtype=torch.float64)
    root = kernel.sum(1, keepdim=True).sqrt()
    step = root * descend(v / root, kernel, v0 / root, lam)
    torch.testing.assert_close(NeutrenoPropagation(lam)(graph(v), v, v0), step)


@pytest.mark.parametrize("network", [GCN, GAT, SGC, GCNII])
def test_the_energies_of_a_layer_are_those_of_its_values(network):
    model = built(network, **({"propagation": NeutrenoPropagation} if network in WITH_V0 else {})).eval()
    found = {(row["metric"], row["layer"]): row["mean"] for row in measure(model, features(), ["J", "G"])}
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, args, output: seen.append((layer, args[2], output[1][0])))
    model(features())
    for k, (layer, v0, v) in enumerate(seen, 1):
        v0, size = v if v0 is None else v0[0], v.square().sum()
        if network is GAT:
            identity = torch.eye(NODES, dtype=torch.float64)[None]
            a = model.graph.weighted(layer.weights(v[None], model.graph), identity)[0]
            energy = (a * (v[:, None] - v).square().sum(-1)).sum() / 2
            apart = ((a.sum(0) + 1) * (v - v0).square().sum(1)).sum() / 2
        else:
            energy = (v * (v - dense() @ v)).sum()  # tr Vᵀ (I − Â) V
            apart = (v - v0).square().sum()
        assert found["J", k] == pytest.approx((energy / size).item()) and energy > 0
        assert found["G", k] == pytest.approx((apart / size).item())
    assert found["G", 1] == 0 < found["G", 2] or network is GCNII


def test_a_weighted_product_has_gradients_of_weights_and_values():
    graph = Graph(EDGES, NODES)
    weights = torch.rand(len(graph.source), dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, NODES, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(graph.weighted, (weights, v))


def test_softmax_over_incoming_edges_sums_to_one_at_every_node():
    graph = Graph(EDGES, NODES)
    scores = torch.randn(len(graph.source), dtype=torch.float64) * 1000
    sums = torch.zeros(NODES, dtype=torch.float64).index_add(0, graph.target, graph.softmax(scores))
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize(
    "edges, said",
    [
        (EDGES[:, :-1], "once in each direction"),
        (torch.cat([EDGES, EDGES[:, :1], EDGES[:, :1].flip(0)], 1), "without duplicates"),
        (torch.cat([EDGES, torch.tensor([[3], [3]])], 1), "self-loops"),
        (EDGES.T, r"\(2, E\)"),
        (EDGES.int(), "int64"),
        (EDGES - 1 - EDGES.min(), "name the nodes -1"),
        (EDGES + 10, f"there are 0 … {NODES - 1}"),
    ],
)
def test_edges_that_are_not_those_of_an_undirected_graph_are_refused(edges, said):
    with pytest.raises(InputError, match=said):
        Graph(edges, NODES)


def test_without_their_number_nodes_end_at_the_last_that_has_an_edge():
    assert Graph(torch.tensor([[0, 4], [4, 0]])).num_nodes == 5


def test_a_graph_without_edges_leaves_values_as_they_are():
    v = torch.randn(1, 3, 2)
    assert torch.equal(Graph(torch.zeros(2, 0, dtype=torch.int64), 3)(v), v)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(2, NODES, FEATURES), (1, NODES + 1, FEATURES), (1, NODES, 3), (NODES, FEATURES)])
def test_other_nodes_than_those_of_the_graph_are_refused_in_one_line(network, shape):
    with pytest.raises(InputError, match=r"its one graph, \(1, 30, 12\), not ") as error:
        built(network)(torch.zeros(shape, dtype=torch.float64))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_in_float32_and_has_finite_gradients_everywhere(network, norm):
    model = built(network, norm=norm).float().train()
    model(features(dtype=torch.float32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_can_be_copied_and_its_checkpoint_holds_no_graph(network):
    model, x = built(network).eval(), features()
    again = copy.deepcopy(model)
    assert torch.equal(again(x), model(x))
    assert not [name for name in model.state_dict() if name.startswith("graph")]
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_the_same_again_bit_for_bit(network):
    results = []
    for _ in range(2):
        model = built(network, norm=partial(GroupNorm, groups=3))
        torch.manual_seed(3)
        out = model(features())
        out.sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Widened(NoNorm):
    """Gives float32 under autocast, as the norms that take a root do on a GPU."""

    def forward(self, x):
        return x.float()


@pytest.mark.parametrize("share", [0.1, 1.0])  # sparse features leave the first layer in float32
@pytest.mark.parametrize("norm", [*NORMS, Widened])
@pytest.mark.parametrize("network", NETWORKS)
def test_mixed_precision_runs_and_is_near(network, norm, share):
    model, x = built(network, norm=norm).float().eval(), features(share, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = model(x)
    torch.testing.assert_close(near.float(), model(x), atol=0.05, rtol=0.1)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_recorder_finds_the_layers_and_the_features_before_them(network):
    model = built(network, depth=3).float()
    seen = tokens_of(model, features(dtype=torch.float32))
    layers = [0, 1, 2, 3, 4] if type(model).__name__ == "GCNII" else [0, 1, 2, 3]  # its last gives the logits
    assert [place.layer for place, _ in seen] == layers
    assert seen[-1][1].features.shape[-1] == CLASSES
    assert all(tokens.features.shape[:2] == (1, NODES) for _, tokens in seen)
    labels = torch.arange(NODES)[None] % CLASSES
    names = ["cosine", "group_distance_ratio", "group_distance_ratio_paper", "instance_information_gain"]
    rows = measure(model, (features(dtype=torch.float32), labels), names)
    assert len(rows) == 4 * len(layers) and all(row["mean"] is not None for row in rows)


# Propagation


def plain_transcription(model, x, rule):
    """A GCN or SGC in evaluation mode with dense products; ``rule(Â V, V, V_0)`` in the layers that have V_0."""
    a, h, v0 = dense(), x[0], None
    gcn = isinstance(model, GCN)
    h = h if gcn else model.lin(h)
    for i, layer in enumerate(model.layers):
        v = layer.lin(h) if gcn else h
        acts = 0 < i < len(model.layers) - 1 if gcn else i > 0
        v0 = v if i == 0 else v0
        h = rule(a @ v, v, v0) if acts else a @ v
        h = F.relu(h) if gcn else h
    return h


@pytest.mark.parametrize("network", [GCN, SGC])
@pytest.mark.parametrize(
    "propagation, rule",
    [
        (Propagation, lambda out, v, v0: out),
        (partial(NeutrenoPropagation, lam=0.6), lambda out, v, v0: out + 0.6 * (v0 - v)),
        (partial(NeutrenoPropagation, lam=0.6, anchor="none"), lambda out, v, v0: out - 0.6 * v),
        (partial(NeutrenoPropagation, lam=0.6, pull=False), lambda out, v, v0: out + 0.6 * v0),
        (partial(NeutrenoPropagation, lam=0.6, anchor="detached"), lambda out, v, v0: out + 0.6 * (v0.detach() - v)),
        (partial(InitialResidual, alpha=0.1), lambda out, v, v0: 0.9 * out + 0.1 * v0),
    ],
)
def test_propagation_equals_its_formula_with_gradients(network, propagation, rule):
    model, x = built(network, propagation=propagation).eval(), features()
    found, expected = model(x)[0], plain_transcription(model, x, rule)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(y.square().sum(), list(model.parameters())) for y in (found, expected))
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("network", WITH_V0)
def test_at_strength_zero_a_propagation_is_plain_bit_for_bit(network):
    plain = built(network).eval()(features())
    for propagation in (partial(NeutrenoPropagation, lam=0.0), partial(InitialResidual, alpha=0.0)):
        assert torch.equal(built(network, propagation=propagation).eval()(features()), plain)


@pytest.mark.parametrize("network", WITH_V0)
def test_shuffled_values_are_others_in_training_by_seed_and_always_the_same_in_evaluation(network):
    propagation = partial(NeutrenoPropagation, lam=0.6, anchor="shuffled")
    dropless = {"attn_drop_rate": 0.0} if network is GAT else {}
    model, x = built(network, propagation=propagation, drop_rate=0.0, **dropless), features()

    def run(seed):
        torch.manual_seed(seed)
        return model(x)

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    model.eval()
    assert torch.equal(run(0), run(1))


@pytest.mark.parametrize("network, depth, where", [(GCN, 2, "1 … L − 2"), (GAT, 2, "1 … L − 2"), (SGC, 1, "1 … L − 1")])
@pytest.mark.parametrize("propagation", [NeutrenoPropagation, InitialResidual])
def test_a_network_in_which_the_propagation_would_never_act_is_refused(network, depth, where, propagation):
    with pytest.raises(InputError, match=f"propagation=.* acts in .*{where} only; take model.depth ≥ {depth + 1}"):
        built(network, depth=depth, propagation=propagation)
    built(network, depth=depth + 1, propagation=propagation)


@pytest.mark.parametrize("network", WITH_V0)
def test_the_term_reaches_the_layers_that_it_names(network):
    least = 2 if network is SGC else 3
    plain = built(network, depth=least).eval()
    term = built(network, depth=least, propagation=NeutrenoPropagation).eval()
    term.load_state_dict(plain.state_dict())
    assert not torch.allclose(term(features()), plain(features()))


def test_neither_half_of_the_term_is_refused_by_name():
    with pytest.raises(InputError, match="anchor=none with pull=false"):
        NeutrenoPropagation(anchor="none", pull=False)


def test_a_residual_gcn_adds_the_input_of_its_middle_layers():
    model, x = built(GCN, residual=True).eval(), features()
    a, h = dense(), x[0]
    for i, layer in enumerate(model.layers):
        h = F.relu(a @ layer.lin(h)) + (h if 0 < i < 3 else 0)
    torch.testing.assert_close(model(x)[0], h)


def test_dropout_precedes_the_first_and_the_last_layer_only():
    model = built(GCN, drop_rate=0.5, depth=4)
    seen = {}
    for i, layer in enumerate(model.layers):
        layer.lin.register_forward_hook(lambda lin, args, out, i=i: seen.update({i: (args[0], out)}))
    outputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, args, out: outputs.append(out[0]))
    x = features()
    model(x)
    assert not torch.allclose(seen[0][1], F.linear(x, model.layers[0].lin.weight))
    assert torch.equal(seen[1][0], outputs[0]) and torch.equal(seen[2][0], outputs[1])
    kept = seen[3][0] != 0
    assert torch.equal(seen[3][0][kept], 2 * outputs[2][kept]) and kept.sum() < (outputs[2] != 0).sum()


# Sparse features


def linear(**options):
    torch.manual_seed(0)
    return sparse.FeatureLinear(FEATURES, 5, **{"drop_rate": 0.0, **options}).double()


@pytest.mark.parametrize("bias", [True, False])
def test_sparse_features_give_the_output_and_gradients_of_dense_ones(bias):
    layer, x = linear(bias=bias), features(0.1)
    assert sparse._sparse_form(x) is not None and sparse._sparse_form(features()) is None
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    grads = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (layer(x), expected))
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


def test_dropout_of_sparse_features_keeps_their_mean():
    layer, x = linear(drop_rate=0.6), features(0.1)
    expected = F.linear(x, layer.weight, layer.bias)
    drawn = torch.stack([layer(x) for _ in range(4000)])
    assert not torch.equal(drawn[0], drawn[1])
    error = (drawn.mean(0) - expected).abs() / (drawn.std(0) / math.sqrt(4000) + 1e-12)
    assert error.max() < 5
    assert torch.equal(layer.eval()(x), layer(x))


def test_features_that_were_changed_in_place_are_searched_again():
    layer, x = linear(), features(0.1)
    layer(x)
    x[0, 3, 4] = 7.0
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_features_seen_first_in_inference_mode_can_be_trained_on():
    layer, x = linear(), features(0.1)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    with torch.inference_mode():  # a tensor of inference mode has no version that could be told
        torch.testing.assert_close(layer(x.clone()), layer(x))


def test_features_that_need_a_gradient_get_one():
    layer, x = linear(), features(0.1).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x).contiguous())


# PyTorch Geometric


@pytest.fixture(scope="module")
def pyg():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch_geometric.nn")


def test_gcn_is_that_of_pytorch_geometric(pyg):
    model, h = built(GCN).eval(), features()[0]
    for layer in model.layers:
        theirs = pyg.GCNConv(*reversed(layer.lin.weight.shape), bias=False).double()
        theirs.lin.weight.data = layer.lin.weight.data
        h = theirs(h, EDGES).relu()
    torch.testing.assert_close(model(features())[0], h)


def test_gat_is_that_of_pytorch_geometric_with_its_gradients(pyg):
    model, h, theirs = built(GAT).eval(), features()[0], []
    for layer in model.layers:
        conv = pyg.GATConv(*reversed(layer.lin.weight.shape), bias=False).double()
        conv.lin.weight.data = layer.lin.weight.data
        conv.att_src.data, conv.att_dst.data = layer.att_src.data[None, None], layer.att_dst.data[None, None]
        theirs.append(conv)
        h = conv(h, EDGES).relu()
    found = model(features())[0]
    torch.testing.assert_close(found, h)
    h.square().sum().backward()
    found.square().sum().backward()
    for layer, conv in zip(model.layers, theirs, strict=True):
        torch.testing.assert_close(layer.lin.weight.grad, conv.lin.weight.grad)
        torch.testing.assert_close(layer.att_src.grad, conv.att_src.grad.flatten())
        torch.testing.assert_close(layer.att_dst.grad, conv.att_dst.grad.flatten())


def test_gcnii_is_that_of_pytorch_geometric(pyg):
    model = built(GCNII).eval()
    h = h0 = model.lin_in(features()[0]).relu()
    for i, layer in enumerate(model.layers):
        conv = pyg.GCN2Conv(6, alpha=0.1, theta=0.5, layer=i + 1).double()
        conv.weight1.data = layer.lin.weight.data.T
        h = conv(h, h0, EDGES).relu()
    torch.testing.assert_close(model(features())[0], model.lin_out(h))


def test_appnp_is_that_of_pytorch_geometric(pyg):
    model = built(APPNP).eval()
    h = model.lin_out(model.lin_in(features()[0]).relu())
    torch.testing.assert_close(model(features())[0], pyg.APPNP(K=4, alpha=0.1)(h, EDGES))


def test_sgc_is_that_of_pytorch_geometric(pyg):
    model = built(SGC).eval()
    conv = pyg.SGConv(FEATURES, CLASSES, K=4, bias=False).double()
    conv.lin.weight.data = model.lin.weight.data
    torch.testing.assert_close(model(features())[0], conv(features()[0], EDGES))
