"""Norms of graph networks: the closed form of group normalization, and the others against their formulas."""

import copy
import warnings

import pytest
import torch
from benchmarks.graph import NaiveGroupNorm
from hydra.utils import instantiate
from omegaconf import OmegaConf

from neutreno.config.composing import CONFIGS
from neutreno.errors import InputError
from neutreno.models.graph_norms import BatchNorm, GroupNorm, NodeNorm, NoNorm, PairNorm

NODES, DIM = 50, 6


@pytest.fixture(scope="module")
def pyg():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch_geometric.nn")


def nodes(seed=0, n=NODES, dim=DIM):
    return torch.randn(1, n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair_of_norms(groups=4, dim=DIM, **options):
    """Closed form and formula written out, with the same parameters, drawn, and running statistics."""
    torch.manual_seed(0)
    closed, naive = (
        kind(dim, groups=groups, **{"skip_weight": 0.7, **options}) for kind in (GroupNorm, NaiveGroupNorm)
    )
    for parameter in closed.parameters():
        torch.nn.init.normal_(parameter)
    naive.load_state_dict(closed.state_dict())
    return closed.double(), naive.double()


def outcome(norm, x, weights):
    """Output and all gradients of a pass."""
    x = x.clone().requires_grad_()
    norm.zero_grad()
    out = norm(x)
    out.backward(weights.to(out.dtype))
    return [out.detach(), x.grad, *(p.grad.clone() for p in norm.parameters())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 10])
def test_the_closed_form_is_the_formula_in_values_gradients_and_running_statistics(groups, training):
    closed, naive = (norm.train() for norm in pair_of_norms(groups))
    for seed in range(3):
        for norm in (closed, naive):
            norm(nodes(seed) + seed)
    for norm in (closed, naive):
        norm.train(training)
    for ours, plain in zip(*(outcome(norm, nodes(5), nodes(6)) for norm in (closed, naive)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    for name, buffer in naive.named_buffers():
        torch.testing.assert_close(closed.get_buffer(name), buffer, rtol=1e-10, atol=1e-10)


def test_gradients_of_the_closed_form_are_those_of_finite_differences():
    closed, _ = pair_of_norms()
    assert torch.autograd.gradcheck(closed, nodes(n=7).requires_grad_())


def test_one_group_is_batch_normalization_with_a_skip_connection():
    closed, _ = pair_of_norms(groups=1)
    batch = BatchNorm(DIM).double()
    batch.bn.load_state_dict(closed.bn.state_dict())
    assert closed.group_func is None
    torch.testing.assert_close(closed(nodes()), nodes() + 0.7 * batch(nodes()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-5, 0.0])
def test_on_collapsed_features_it_errs_at_most_a_fifth_more_than_the_formula_and_is_never_nan(spread, training):
    """Nodes of length 100 or so and almost alike, where E[x²] − E[x]² of float32 is negative for half the channels."""
    errors = {"closed": [], "naive": []}
    for seed in range(5):
        closed, naive = pair_of_norms(groups=10, dim=16)
        draw = torch.Generator().manual_seed(seed)
        common = 100 * torch.randn(16, generator=draw, dtype=torch.float64)
        x = (common * (1 + spread * torch.randn(1, 2708, 16, generator=draw, dtype=torch.float64))).float()
        weights = torch.randn(1, 2708, 16, generator=draw)
        for norm in (closed, naive):
            norm.train()
            norm(x.double())  # running statistics of such features
            norm.train(training)
        exact = outcome(copy.deepcopy(naive), x.double(), weights.double())
        for name, norm in {"closed": closed.float(), "naive": naive.float()}.items():
            found = outcome(norm, x, weights)
            assert all(value.isfinite().all() for value in found)
            errors[name].append([(a - b).norm() / b.norm() for a, b in zip(found[:2], exact[:2], strict=True)])
    ours, plain = (torch.tensor(errors[name]).mean(0) for name in ("closed", "naive"))
    assert (ours <= 1.2 * plain + 1e-6).all(), (ours, plain)


@pytest.mark.parametrize("training", [True, False])
def test_under_mixed_precision_only_the_result_is_rounded(training):
    norm = pair_of_norms()[0].float().train(training)
    again = copy.deepcopy(norm)
    x = nodes().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, again(x.float()).bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), again.buffers(), strict=True))


def test_nothing_as_large_as_nodes_times_groups_times_width_is_built():
    closed, naive = (norm.float() for norm in pair_of_norms(groups=10, dim=16))
    largest = {}

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            found = [x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)]
            largest[norm] = max([largest.get(norm, 0), *found])
            return out

    for norm in (closed, naive):
        with Sizes():
            outcome(norm, nodes(n=300, dim=16).float(), nodes(n=300, dim=16))
    assert largest[naive] == 300 * 10 * 16 and largest[closed] == 300 * 16


def test_without_a_bias_of_the_groups_group_norm_is_that_of_pytorch_geometric(pyg):
    closed, _ = pair_of_norms(groups=4, skip_weight=0.01)
    theirs = pyg.DiffGroupNorm(DIM, 4, lamda=0.01, momentum=0.3).double()
    theirs.lin.weight.data, theirs.norm.weight.data = closed.group_func.weight.data, closed.bn.weight.data
    theirs.norm.bias.data = closed.bn.bias.data
    closed.group_func.bias.data.zero_()  # theirs has none
    torch.testing.assert_close(closed(nodes()), theirs(nodes()[0])[None])
    torch.testing.assert_close(closed.bn.running_var, theirs.norm.running_var)
    torch.testing.assert_close(closed.eval()(nodes(1)), theirs.eval()(nodes(1)[0])[None])


def test_pair_norm_centers_and_makes_the_mean_squared_length_one():
    x = PairNorm(DIM)(nodes() * 5 + 3)
    torch.testing.assert_close(x.mean(1), torch.zeros_like(x.mean(1)))
    torch.testing.assert_close(x.square().sum(-1).mean().item(), 1.0, rtol=1e-6, atol=0)


def test_pair_norm_is_that_of_pytorch_geometric(pyg):
    torch.testing.assert_close(PairNorm(DIM)(nodes())[0], pyg.PairNorm(eps=1e-6)(nodes()[0]))
    theirs = pyg.PairNorm(scale=2.0, scale_individually=True, eps=0.0)(nodes()[0])
    torch.testing.assert_close(PairNorm(DIM, individually=True, scale=2.0)(nodes())[0], theirs, rtol=1e-5, atol=1e-5)


def test_pair_norm_si_gives_every_centered_node_the_same_length():
    x = PairNorm(DIM, individually=True, scale=2.0)(nodes() + 3)
    torch.testing.assert_close(x.norm(dim=-1), torch.full((1, NODES), 2.0).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_node_norm_divides_by_a_root_of_each_nodes_own_deviation(power):
    deviation = nodes().std(-1, correction=0, keepdim=True) ** (1 / power)
    torch.testing.assert_close(NodeNorm(DIM, power=power)(nodes()), nodes() / deviation, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [PairNorm, NodeNorm, BatchNorm, GroupNorm])
def test_equal_nodes_leave_every_norm_finite_with_finite_gradients(norm):
    x = torch.ones(1, NODES, DIM, requires_grad=True)
    out = norm(DIM)(x)
    out.square().sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()


def test_no_norm_leaves_nodes_as_they_are():
    assert NoNorm(DIM)(x := nodes()) is x


@pytest.mark.parametrize("options", [{"skip_weight": -1.0}, {"groups": 0}, {"momentum": 2.0}, {"skip_weight": True}])
def test_options_out_of_bounds_are_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))):
        GroupNorm(DIM, **options)


@pytest.mark.parametrize("file", sorted((CONFIGS / "norm").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_builds_a_norm_of_a_width(file):
    config = OmegaConf.load(file)
    if below := config.pop("defaults", None):
        config = OmegaConf.merge(OmegaConf.load(file.with_stem(below[0])), config)
    config = OmegaConf.merge({"recipe": {"skip_weight": 0.01}, "norm": config}, {})
    norm = instantiate(config.norm)(DIM).double()
    assert norm(nodes()).shape == nodes().shape
