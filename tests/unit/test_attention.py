import math
from functools import partial

import pytest
import torch

from neutreno.attention import NeutrenoAttention, SoftmaxAttention, Variant, anchored, fidelity
from neutreno.errors import InputError

ARMS = [(anchor, pull) for anchor in ("v0", "none", "detached", "shuffled") for pull in (True, False)]
ARMS.remove(("none", False))


def plain_attention(layer, x, v0, lam):
    """The paper's equation, with the N × N matrix written out."""
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(layer.num_heads):
        d = x.shape[-1] // layer.num_heads
        part = slice(h * d, (h + 1) * d)
        a = torch.softmax(q[..., part] @ k[..., part].mT / math.sqrt(d), dim=-1)
        u = a @ v[..., part]
        if v0 is not None:
            u = u + lam * (v0[:, h] - v[..., part])
        heads.append(u)
    return layer.proj(torch.cat(heads, dim=-1))


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return torch.randn(2, 7, 12, dtype=torch.float64), torch.randn(2, 3, 7, 4, dtype=torch.float64)


@pytest.mark.parametrize("attention, lam", [(SoftmaxAttention, 0.0), (partial(NeutrenoAttention, lam=0.6), 0.6)])
@pytest.mark.parametrize("first_layer", [True, False])
def test_fused_attention_equals_the_papers_equation(tokens, attention, lam, first_layer):
    x, v0 = tokens
    v0 = None if first_layer else v0
    layer = attention(12, num_heads=3).double()
    out, v = layer(x, v0)
    torch.testing.assert_close(out, plain_attention(layer, x, v0, lam))
    assert v.shape == (2, 3, 7, 4)


def test_lam_zero_is_softmax_bit_for_bit(tokens):
    x, v0 = tokens
    softmax, neutreno = SoftmaxAttention(12, num_heads=3).double(), NeutrenoAttention(12, num_heads=3, lam=0).double()
    neutreno.load_state_dict(softmax.state_dict())
    assert torch.equal(neutreno(x, v0)[0], softmax(x, v0)[0])
    v0[0] = math.inf  # 0 · ∞ would be NaN
    assert torch.equal(neutreno(x, v0)[0], softmax(x, v0)[0])


def test_first_layer_has_no_fidelity_term(tokens):
    x, _ = tokens
    softmax, neutreno = SoftmaxAttention(12, num_heads=3).double(), NeutrenoAttention(12, num_heads=3, lam=0.6).double()
    neutreno.load_state_dict(softmax.state_dict())
    assert torch.equal(neutreno(x)[0], softmax(x)[0])


def test_gradient_reaches_the_first_layers_values(tokens):
    x, v0 = tokens
    v0.requires_grad_()
    NeutrenoAttention(12, num_heads=3, lam=0.5).double()(x, v0)[0].sum().backward()
    assert v0.grad.abs().sum() > 0


@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf, "abc", None, True])
def test_lam_must_be_a_finite_number_not_below_zero(lam):
    with pytest.raises(InputError, match=r"^lam="):
        NeutrenoAttention(12, num_heads=3, lam=lam)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="num_heads=5 does not divide embed_dim=12"):
        SoftmaxAttention(12, num_heads=5)


@pytest.fixture
def term():
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(3, 2, 7, 4, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    "anchor, pull, rule",
    [
        ("v0", True, lambda out, v, v0: out + 0.6 * (v0 - v)),
        ("none", True, lambda out, v, v0: out - 0.6 * v),
        ("v0", False, lambda out, v, v0: out + 0.6 * v0),
        ("detached", True, lambda out, v, v0: out + 0.6 * (v0.detach() - v)),
        ("detached", False, lambda out, v, v0: out + 0.6 * v0.detach()),
        ("shuffled", True, lambda out, v, v0: out + 0.6 * (v0.roll(1, 0) - v)),
        ("shuffled", False, lambda out, v, v0: out + 0.6 * v0.roll(1, 0)),
    ],
)
def test_each_half_of_the_term_is_its_formula_with_its_gradients(term, anchor, pull, rule):
    found = fidelity(term[0], term[1], anchored(term[2], anchor, True, causal=True), 0.6, anchor, pull)
    expected = rule(*term)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grads = (torch.autograd.grad(x.square().sum(), term, allow_unused=True) for x in (found, expected))
    for ours, plain in zip(*grads, strict=True):
        assert (ours is None) == (plain is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_shuffled_values_are_those_of_other_tokens_alike_for_samples_and_heads(term):
    v = torch.arange(50.0)[:, None].expand(3, 2, 50, 4)
    shuffled = anchored(v, "shuffled", training=True)
    assert torch.equal(shuffled, shuffled[:1, :1].expand_as(v))
    assert torch.equal(shuffled.sort(-2).values, v) and (shuffled != v).any(-1).float().mean() > 0.8


def test_a_permutation_in_training_is_a_function_of_torchs_seed():
    v = torch.randn(1, 1, 50, 4)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(anchored(v, "shuffled", training=True))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_permutation_in_evaluation_is_always_the_same_and_draws_nothing():
    v, before = torch.randn(1, 1, 50, 4), torch.get_rng_state()
    first, again = (anchored(v, "shuffled", training=False) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())


def test_other_anchors_hand_the_values_on_and_draw_nothing():
    v, before = torch.randn(1, 1, 50, 4), torch.get_rng_state()
    assert anchored(v, "v0", True) is v and anchored(v, "none", True) is v
    assert torch.equal(before, torch.get_rng_state())


def test_a_single_sequence_has_no_other_to_take_values_from():
    with pytest.raises(InputError, match="another sequence of the batch, and this is a batch of one"):
        anchored(torch.randn(1, 1, 50, 4), "shuffled", training=False, causal=True)


def chained(layers, x, y):
    """What two layers that follow on one another give for tokens x and y."""
    first, v0 = layers[0](x)
    second, _ = layers[1](y, v0)
    return torch.cat([first, second])


def plainly_chained(layers, x, y, anchor, pull, permutation, causal):
    """The same with the formula of each arm written out."""
    outs, v0 = [], None
    for layer, tokens in zip(layers, (x, y), strict=True):
        q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in layer.qkv(tokens).chunk(3, dim=-1))
        scores = q @ k.mT / 2
        if causal:
            scores = scores.masked_fill(torch.ones(7, 7).triu(1) == 1, -math.inf)
        u = scores.softmax(-1) @ v
        if v0 is not None:
            other = {
                "none": torch.zeros_like(v0),
                "detached": v0.detach(),
                "shuffled": torch.stack([v0[1], v0[0]]) if causal else v0[:, :, permutation],
            }.get(anchor, v0)
            u = u + 0.6 * other - (0.6 * v if pull else 0)
        outs.append(layer.proj(u.transpose(1, 2).flatten(2)))
        v0 = v
    return torch.cat(outs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("anchor, pull", ARMS)
def test_two_layers_of_each_arm_equal_its_formula_with_its_gradients(anchor, pull, causal, training):
    torch.manual_seed(0)
    kwargs = {"num_heads": 3, "anchor": anchor, "pull": pull, "causal": causal}
    layers = [NeutrenoAttention(12, **kwargs).double().train(training) for _ in range(2)]
    x, y = torch.randn(2, 2, 7, 12, dtype=torch.float64)
    torch.manual_seed(1)
    found = chained(layers, x, y)
    torch.manual_seed(1)
    permutation = torch.randperm(7, generator=None if training else torch.Generator().manual_seed(0))
    expected = plainly_chained(layers, x, y, anchor, pull, permutation, causal)
    torch.testing.assert_close(found, expected)
    weights = [layer.qkv.weight for layer in layers]
    ours, plain = (torch.autograd.grad(out.square().sum(), weights) for out in (found, expected))
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("attention", [NeutrenoAttention, Variant])
@pytest.mark.parametrize("anchor, pull", ARMS)
def test_every_arm_of_lam_zero_is_softmax_bit_for_bit_and_draws_nothing(tokens, attention, anchor, pull):
    x = tokens[0]
    layers = [attention(12, num_heads=3, lam=0, anchor=anchor, pull=pull).double() for _ in range(2)]
    softmax = [SoftmaxAttention(12, num_heads=3).double() for _ in range(2)]
    for plain, layer in zip(softmax, layers, strict=True):
        plain.load_state_dict(layer.state_dict())
    before = torch.get_rng_state()
    assert torch.equal(chained(layers, x, x + 1), chained(softmax, x, x + 1))
    assert torch.equal(layers[0](x)[1], softmax[0](x)[1]) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("attention", [NeutrenoAttention, Variant])
def test_a_term_of_no_half_is_refused_as_softmax_by_another_name(attention):
    with pytest.raises(InputError, match=r"anchor=none with pull=false is softmax .*; take attention=softmax"):
        attention(12, num_heads=3, lam=0.6, anchor="none", pull=False)
    with pytest.raises(InputError, match=r"^anchor=v1"):
        attention(12, num_heads=3, lam=0.6, anchor="v1")
