import math
from functools import partial

import pytest
import torch

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.errors import InputError


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
