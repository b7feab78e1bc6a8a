"""Layer-wise metrics of labelled tokens, against plain transcriptions; sizes and odd cases."""

import math

import pytest
import torch

from neutreno.errors import InputError
from neutreno.oversmoothing import groups
from neutreno.oversmoothing.metrics import metric_named
from neutreno.oversmoothing.tokens import LayerTokens

NAMES = ["group_distance_ratio", "group_distance_ratio_paper", "instance_information_gain"]


@pytest.fixture
def tokens():
    draw = torch.Generator().manual_seed(0)
    x, inputs = torch.randn(2, 40, 5, generator=draw), torch.rand(2, 40, 9, generator=draw)
    labels = torch.randint(0, 3, (2, 40), generator=draw)
    return LayerTokens(x + labels[..., None], None, labels, inputs)


def value(name, tokens):
    return metric_named(name).function(tokens)


def pairs(x, y, squared):
    distances = [(a - b).square().sum() for a in x for b in y]
    return torch.stack([d if squared else d.sqrt() for d in distances]).mean()


def released(x, labels, inputs):
    x = x.double() / x.double().norm(dim=-1, keepdim=True)
    classes = [x[labels == c] for c in labels.unique()]
    intra = torch.stack([pairs(c, c, True) for c in classes]).mean()
    between = [pairs(a, b, True) for i, a in enumerate(classes) for b in classes[:i]]
    return torch.stack(between).mean() / intra


def printed(x, labels, inputs):
    classes = [x[labels == c].double() for c in labels.unique()]
    intra = torch.stack([pairs(c, c, False) for c in classes]).mean()
    between = [pairs(a, b, False) for i, a in enumerate(classes) for j, b in enumerate(classes) if i != j]
    return torch.stack(between).sum() / (len(classes) - 1) ** 2 / intra


def gain(x, labels, inputs, variance=0.1):
    """Entropies in full, constants and all."""
    unit = inputs.double() / inputs.double().norm(dim=-1, keepdim=True)

    def entropy(u):
        n, d = u.shape
        density = torch.stack([torch.exp(-(a - u).square().sum(-1) / (8 * variance)).sum() for a in u]) / n
        upper = d / 2 - (density.log() - d / 2 * math.log(2 * math.pi * 4 * variance)).mean()
        return upper + math.log(0.25) * d / 2

    predicted = x.argmax(-1)
    inside = [(predicted == c).double().mean() * entropy(unit[predicted == c]) for c in predicted.unique()]
    return (entropy(unit) - sum(inside)) / math.log(2)


FORMULAS = dict(zip(NAMES, [released, printed, gain], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_its_formula_sample_by_sample(tokens, name):
    expected = [FORMULAS[name](*sample) for sample in zip(tokens.features, tokens.labels, tokens.inputs, strict=True)]
    torch.testing.assert_close(value(name, tokens), torch.stack(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_outside_the_mask_do_not_count_not_even_as_nan(tokens, name):
    mask = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.6
    features = tokens.features.masked_fill(~mask[..., None], math.nan)
    found = value(name, LayerTokens(features, mask, tokens.labels, tokens.inputs))
    for i in range(2):
        alone = LayerTokens(*(x[i : i + 1, mask[i]] for x in (tokens.features, mask, tokens.labels, tokens.inputs)))
        torch.testing.assert_close(found[i], value(name, alone)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES[:2])
def test_unlabelled_tokens_are_left_out(tokens, name):
    kept = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden = LayerTokens(tokens.features, None, tokens.labels.masked_fill(~kept, -100))
    masked = LayerTokens(tokens.features, kept, tokens.labels)
    torch.testing.assert_close(value(name, hidden), value(name, masked))


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_class_without_tokens_does_not_count(tokens, name):
    gap = LayerTokens(tokens.features, None, tokens.labels * 2)
    torch.testing.assert_close(value(name, gap), value(name, tokens))


@pytest.mark.parametrize("formula", [groups.squared_distance_ratio, groups.distance_ratio])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_collapsed_features_a_single_class_and_no_label_at_all_count_as_one(formula, kind):
    labels = torch.arange(60) % 3
    for x in (torch.full((60, 4), 100.1), torch.full((60, 4), 0.1), torch.zeros(60, 4)):
        assert formula(x.to(kind), labels) == 1
    assert formula(torch.randn(60, 4).to(kind), labels * 0) == 1
    assert formula(torch.zeros(0, 4, dtype=kind), labels[:0]) == 1


@pytest.mark.parametrize("formula", [groups.squared_distance_ratio, groups.distance_ratio])
def test_classes_of_one_point_each_are_infinitely_far_apart(formula):
    labels = torch.arange(12) % 3
    assert formula(torch.eye(3)[labels], labels) == math.inf


def test_the_ratio_of_the_released_code_is_one_or_more(tokens):
    assert (value(NAMES[0], LayerTokens(torch.randn(2, 40, 5), None, tokens.labels)) >= 1).all()


def test_a_prediction_that_is_the_same_for_all_tells_nothing_and_each_by_itself_all():
    inputs = torch.eye(16)
    everything = groups.information_gain(torch.arange(16), groups.kernel(inputs))
    nothing = groups.information_gain(torch.zeros(16, dtype=torch.int64), groups.kernel(inputs))
    assert nothing == 0
    overlap = math.exp(-2 / 0.8)
    torch.testing.assert_close(everything.item(), -math.log2((1 + 15 * overlap) / 16))


def test_rectified_tokens_of_zeros_count_as_the_first_class():
    x = torch.zeros(1, 10, 3)
    assert value(NAMES[2], LayerTokens(x, None, None, torch.rand(1, 10, 4))) == 0


@pytest.mark.parametrize("blocks", [1, 7, 10**9])
def test_blocks_of_rows_make_no_difference(tokens, monkeypatch, blocks):
    expected = [value(name, tokens) for name in NAMES]
    monkeypatch.setattr(groups, "_BLOCK", 40 * blocks)
    groups._KEPT.clear()
    for name, whole in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(value(name, tokens), whole, rtol=1e-12, atol=1e-12)


def test_layers_of_one_pass_share_the_kernel_of_their_inputs(tokens, monkeypatch):
    made = []
    kernel = groups.kernel
    monkeypatch.setattr(groups, "kernel", lambda inputs: made.append(1) or kernel(inputs))
    first = value(NAMES[2], tokens)
    again = value(NAMES[2], LayerTokens(tokens.features.clone(), None, None, tokens.inputs))
    assert torch.equal(first, again) and len(made) == 2  # two samples


def test_kernels_that_are_large_taken_together_are_not_kept(tokens, monkeypatch):
    groups._KEPT.clear()
    monkeypatch.setattr(groups, "_MOST_KEPT", 2 * 40**2 - 1)  # more than one sample's
    value(NAMES[2], tokens)
    assert not groups._KEPT
    monkeypatch.setattr(groups, "_MOST_KEPT", 2 * 40**2)
    value(NAMES[2], tokens)
    assert groups._KEPT


@pytest.mark.parametrize(
    "name, change, said",
    [
        (
            NAMES[0],
            {"labels": torch.zeros(2, dtype=torch.int64)},
            r"a label of every token, \(2, 40\), not labels \(2,\)",
        ),
        (NAMES[1], {"labels": torch.zeros(2, 4, 10, dtype=torch.int64)}, "a label of every token"),
        (NAMES[2], {"inputs": torch.zeros(2, 40, dtype=torch.int64)}, r"inputs of every token, \(2, 40\) × F, not"),
        (NAMES[2], {"inputs": torch.zeros(2, 3, 8, 8)}, "inputs of every token"),
        *((name, {"features": torch.full((2, 40, 5), math.nan)}, "NaN or Inf") for name in NAMES),
    ],
)
def test_what_is_not_of_every_token_is_refused_in_one_line(tokens, name, change, said):
    with pytest.raises(InputError, match=said) as error:
        value(name, LayerTokens(**{**vars(tokens), **change}))
    assert "\n" not in str(error.value)


def test_no_tensor_of_nodes_times_nodes_is_built(monkeypatch):
    monkeypatch.setattr(groups, "_BLOCK", 2**14)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    x, labels = torch.randn(1500, 20), torch.arange(1500) % 3
    with Sizes():
        groups.squared_distance_ratio(x, labels)
        groups.distance_ratio(x, labels)
        groups.information_gain(labels, groups.kernel(x))
    assert max(sizes) == 1500 * 20
