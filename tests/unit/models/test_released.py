"""Every variant where its authors' code has it: a block against a plain transcription, whose source the test names."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from neutreno import attention as rules
from neutreno.models.transformer import Block, ContraNormBlock, FeatScaleBlock, LayerScaleBlock

HEADS, TOKENS, DIM = 3, 7, 4
WIDTH = HEADS * DIM


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(4, TOKENS, WIDTH, dtype=torch.float64)


def made(attention=rules.SoftmaxAttention, block=Block, **kwargs):
    """A block whose parameters are all away from where they start."""
    built = block(WIDTH, HEADS, attention, mlp_ratio=2, **kwargs).double()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return built


def layer_norm(norm, x):
    centered = x - x.mean(-1, keepdim=True)
    return norm.weight * centered / (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt() + norm.bias


def heads(attention, x):
    """Queries, keys and values, (B, H, N, D) each."""
    parts = F.linear(x, attention.qkv.weight, attention.qkv.bias).split(WIDTH, dim=-1)
    return [torch.stack(part.split(DIM, dim=-1), 1) for part in parts]


def softmax_of(q, k, causal=False):
    scores = q @ k.mT * DIM**-0.5
    if causal:
        scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1) == 1, -math.inf)
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def projected(attention, u):
    return F.linear(torch.cat([*u.unbind(1)], -1), attention.proj.weight, attention.proj.bias)


def pre_norm(block, x, rule, norm=layer_norm):
    """The block of the released code for images; ``rule`` gives U from q, k and v."""
    x = x + projected(block.attn, rule(*heads(block.attn, norm(block.norm1, x))))
    return x + block.mlp(norm(block.norm2, x))


def plain(q, k, v):
    return softmax_of(q, k) @ v


def test_attnscale_is_where_the_released_code_has_it(x):
    """VITA-Group/ViT-Anti-Oversmoothing, attnscale.py: A − D is scaled by 1 + ω before attention's dropout and V."""
    block = made(rules.AttnScale)

    def rule(q, k, v):
        low = torch.full((TOKENS, TOKENS), 1 / TOKENS, dtype=v.dtype)
        return (low + (softmax_of(q, k) - low) * (1 + block.attn.omega.view(1, HEADS, 1, 1))) @ v

    torch.testing.assert_close(block(x)[0], pre_norm(block, x, rule))


def test_centered_attention_is_its_papers_formula(x):
    """From the paper's formula (arXiv 2306.01610): the rows of A are shifted to sum to 0."""
    block = made(rules.CenteredAttention)
    expected = pre_norm(block, x, lambda q, k, v: (softmax_of(q, k) - 1 / TOKENS) @ v)
    torch.testing.assert_close(block(x)[0], expected)


def test_gfsa_is_where_the_released_code_has_it(x):
    """jeongwhanchoi/GFSA, Image/gfsa.py: (K − 1) (A − I) A and A, both times λ, are added to A; K = 4."""
    block = made(rules.GFSA)

    def rule(q, k, v):
        a = softmax_of(q, k)
        higher = 3 * (a - torch.eye(TOKENS)) @ a + a
        return (a + block.attn.filter.view(1, HEADS, 1, 1) * higher) @ v

    torch.testing.assert_close(block(x)[0], pre_norm(block, x, rule))


def test_laplacian_heads_are_where_the_released_code_has_them(x):
    """yuchongzhang/nanochat, tests/test_gpt_arch.py: V − A V in some heads, before the output projection. There the
    last heads; here the first."""
    block = made(partial(rules.LaplacianHeads, fraction=1 / 3))

    def rule(q, k, v):
        u = plain(q, k, v)
        return torch.stack([v[:, 0] - u[:, 0], u[:, 1], u[:, 2]], 1)

    torch.testing.assert_close(block(x)[0], pre_norm(block, x, rule))


@pytest.mark.parametrize("training", [True, False])
def test_reattention_is_where_the_released_code_has_it(x, training):
    """DeepViT's models/deep_vision_transformer.py, read in a copy that names no repository: softmax, dropout, a 1 × 1
    convolution over heads, batch norm, V. Its bias is none of ours: in training the norm takes it away."""
    block = made(rules.ReAttention).train(training)
    mix = torch.nn.Conv2d(HEADS, HEADS, 1).double()
    mix.weight.data = block.attn.theta.data[..., None, None]
    if not training:
        torch.nn.init.zeros_(mix.bias)
        block.attn.norm.running_mean += 0.1
        block.attn.norm.running_var += 1
    norm = torch.nn.BatchNorm2d(HEADS).double().train(training)
    norm.load_state_dict(block.attn.norm.state_dict())
    expected = pre_norm(block, x, lambda q, k, v: norm(mix(softmax_of(q, k))) @ v)
    torch.testing.assert_close(block(x)[0], expected)


def test_reattention_starts_as_softmax_in_evaluation_mode_and_far_from_it_in_training_mode(x):
    attention = rules.ReAttention(WIDTH, num_heads=HEADS).double()
    softmax = rules.SoftmaxAttention(WIDTH, num_heads=HEADS).double()
    softmax.load_state_dict(attention.state_dict(), strict=False)
    torch.testing.assert_close(attention.eval()(x)[0], softmax(x)[0], rtol=0, atol=1e-4)
    assert (attention.train()(x)[0] - softmax(x)[0]).abs().max() > 0.1


def test_value_residual_is_where_the_released_code_has_it(x):
    """Zcchill/Value-Residual-Learning, src/modeling/modeling_llama_resformer.py: in all layers but the first the
    values are halves of the first layer's and their own, before a causal softmax."""
    first, block = made(rules.ValueResidual, causal=True), made(rules.ValueResidual, causal=True)
    tokens, v0 = first(x)
    v_first = heads(first.attn, layer_norm(first.norm1, x))[2]
    torch.testing.assert_close(v0, v_first)
    expected = pre_norm(first, x, lambda q, k, v: softmax_of(q, k, causal=True) @ v)
    torch.testing.assert_close(tokens, expected)
    expected = pre_norm(block, expected, lambda q, k, v: softmax_of(q, k, causal=True) @ (0.5 * v_first + 0.5 * v))
    torch.testing.assert_close(block(tokens, v0)[0], expected)


def test_exclusive_attention_is_where_others_code_has_it(x):
    """open-lm-engine/lm-engine, lm_engine/hf_models/modeling_utils/sequence_mixer_blocks/attention/module.py (not its
    author's code): of A V, what lies along a token's own value is taken away, per head, before the projection."""
    block = made(rules.ExclusiveAttention, causal=True)

    def rule(q, k, v):
        y = softmax_of(q, k, causal=True) @ v
        along = torch.einsum("bhnd,bhnd->bhn", y, v) / torch.einsum("bhnd,bhnd->bhn", v, v)
        return y - along[..., None] * v

    torch.testing.assert_close(block(x)[0], pre_norm(block, x, rule))


def test_linear_attention_with_the_term_is_that_of_the_released_language_model(x):
    """tamnguyen9520/NeuTRENO_NeurIPS2024, wikitext103/src/mem_transformer.py, the second linear layer of the file:
    causal sums, times 1 / √D over (sum of weights + 1e-5), then 0.2 (V_0 − V_l); post-norm."""
    attention = partial(rules.LinearAttention, scale_output=True, lam=0.2)
    first, block = (made(attention, causal=True, norm_first=False, act_layer=torch.nn.ReLU) for _ in range(2))

    def post_norm(block, x, v_first):
        q, k, v = heads(block.attn, x)
        q, k = (torch.where(part > 0, part + 1, part.exp()) for part in (q, k))
        u = torch.zeros_like(v)
        for i in range(TOKENS):
            state = sum(k[..., j, :, None] * v[..., j, None, :] for j in range(i + 1))
            total = (q[..., i, :] * k[..., : i + 1, :].sum(-2)).sum(-1, keepdim=True)
            u[..., i, :] = DIM**-0.5 * (q[..., i, None, :] @ state).squeeze(-2) / (total + 1e-5)
        if v_first is not None:
            u = u + 0.2 * (v_first - v)
        x = layer_norm(block.norm1, x + projected(block.attn, u))
        return layer_norm(block.norm2, x + block.mlp(x)), v

    tokens, v_first = post_norm(first, x, None)
    ours = first(x)
    torch.testing.assert_close(ours[0], tokens, rtol=0, atol=1e-4)  # what the 1e-5 makes
    torch.testing.assert_close(block(*ours)[0], post_norm(block, tokens, v_first)[0], rtol=0, atol=1e-4)


def test_contranorm_is_where_the_released_code_has_it(x):
    """PKU-ML/ContraNorm, ViT_imagenet/models.py and main.py: the ``norm_layer`` of timm's blocks, so within both
    branches: x − s softmax(cosines of the tokens / τ) x, then LayerNorm; s = 0.01 by ViT_imagenet/run.sh, τ = 1."""
    block = made(block=ContraNormBlock)

    def norm(norm, x):
        unit = x / x.square().sum(-1, keepdim=True).sqrt()
        similar = (unit @ unit.mT).exp()
        return layer_norm(norm, x - 0.01 * (similar / similar.sum(-1, keepdim=True)) @ x)

    x.requires_grad_()
    found, expected = block(x)[0], pre_norm(block, x, plain, norm)
    torch.testing.assert_close(found, expected)
    assert (found - pre_norm(block, x, plain)).abs().max() > 1e-4  # a LayerNorm's is another
    ours, theirs = (torch.autograd.grad(out.square().sum(), x) for out in (found, expected))
    torch.testing.assert_close(ours, theirs)  # nothing is detached


def test_featscale_is_where_the_released_code_has_it(x):
    """VITA-Group/ViT-Anti-Oversmoothing, featscale.py (at 44981c3; at 969b564 the scaled parts are added twice): after
    the output projection, before the residual."""
    block = made(block=FeatScaleBlock)
    out = projected(block.attn, plain(*heads(block.attn, layer_norm(block.norm1, x))))
    low = out.mean(-2, keepdim=True)
    tokens = x + out + low * block.featscale_dc + (out - low) * block.featscale_hc
    torch.testing.assert_close(block(x)[0], tokens + block.mlp(layer_norm(block.norm2, tokens)))


def test_layerscale_is_where_the_released_code_has_it(x):
    """facebookresearch/deit, cait_models.py, LayerScale_Block: each branch's output times a γ of its own. Its attention
    mixes heads before and after the softmax besides; here that is no part of it."""
    block = made(block=LayerScaleBlock)
    tokens = x + block.ls1.gamma * projected(block.attn, plain(*heads(block.attn, layer_norm(block.norm1, x))))
    expected = tokens + block.ls2.gamma * block.mlp(layer_norm(block.norm2, tokens))
    torch.testing.assert_close(block(x)[0], expected)
