"""Every variant against its formula, with a fidelity term and causal, and what all of them must keep.

Where their authors have them: test_released.py.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from neutreno.attention import (
    GFSA,
    AttnScale,
    CenteredAttention,
    ExclusiveAttention,
    LaplacianHeads,
    LinearAttention,
    NeutrenoAttention,
    ReAttention,
    SoftmaxAttention,
    ValueResidual,
    Variant,
)
from neutreno.config.building import locate
from neutreno.config.composing import CONFIGS
from neutreno.errors import InputError
from neutreno.models.language_model import LanguageModel
from neutreno.models.transformer import Block, ContraNormBlock, LayerScaleBlock
from neutreno.models.vit import VisionTransformer

FILES = {group: sorted((CONFIGS / group).glob("*.yaml")) for group in ("attention", "block")}
ATTENTION, BLOCK = ([file.stem for file in files] for files in FILES.values())
TARGETS = {file.stem: OmegaConf.load(file).get("_target_") for files in FILES.values() for file in files}
SEES_ALL = [name for name, target in TARGETS.items() if target and locate(target).sees_all]
HEADS, TOKENS, DIM = 3, 7, 4


def built(attention="softmax", block="plain", *overrides):
    """The constructors that the configs name."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["model=deit", f"attention={attention}", f"block={block}", *overrides])
    return {"attention": instantiate(config.attention), "block": instantiate(config.block)}


def weights(q, k, causal):
    """A and D, row by row."""
    a, d = torch.zeros(2, *q.shape[:2], TOKENS, TOKENS, dtype=q.dtype)
    for i in range(TOKENS):
        seen = i + 1 if causal else TOKENS
        a[..., i, :seen] = torch.softmax((q[..., i, None, :] * k[..., :seen, :]).sum(-1) / math.sqrt(DIM), dim=-1)
        d[..., i, :seen] = 1 / seen
    return a, d


def attnscale(layer, a, d, v, v0):
    return (d + (1 + layer.omega[:, None, None]) * (a - d)) @ v


def laplacian(layer, a, d, v, v0):
    return torch.stack([(torch.eye(TOKENS) - a[:, h]) @ v[:, h] if h < 2 else a[:, h] @ v[:, h] for h in range(3)], 1)


def gfsa(layer, a, d, v, v0):
    return (a + layer.filter[:, None, None] * (a + 3 * (a @ a - a))) @ v


def exclusive(layer, a, d, v, v0):
    y = a @ v
    return y - (y * v).sum(-1, keepdim=True) * v / v.square().sum(-1, keepdim=True)


RULES = {  # attention: (arguments, what it gives from A, D, V and V_0)
    AttnScale: ({}, attnscale),
    CenteredAttention: ({}, lambda layer, a, d, v, v0: (a - d) @ v),
    LaplacianHeads: ({"fraction": 0.6}, laplacian),
    GFSA: ({}, gfsa),
    ExclusiveAttention: ({}, exclusive),
    ValueResidual: ({}, lambda layer, a, d, v, v0: a @ v if v0 is None else a @ (v0 / 2 + v / 2)),
}


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(4, 2, HEADS, TOKENS, DIM, dtype=torch.float64)


def learned(layer):
    """The layer with its own parameters away from where they start."""
    for name, parameter in layer.named_parameters():
        if not name.startswith(("qkv", "proj")):
            torch.nn.init.normal_(parameter)
    return layer.double()


@pytest.mark.parametrize("first_layer", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lam", [None, 0.4])
@pytest.mark.parametrize("attention", RULES, ids=lambda kind: kind.__name__)
def test_a_variant_equals_its_formula(qkv, attention, lam, causal, first_layer):
    q, k, v, v0 = qkv
    v0 = None if first_layer else v0
    arguments, rule = RULES[attention]
    layer = learned(attention(HEADS * DIM, num_heads=HEADS, causal=causal, lam=lam, **arguments))
    expected = rule(layer, *weights(q, k, causal), v, v0)
    if lam is not None and v0 is not None:
        expected = expected + lam * (v0 - v)
    torch.testing.assert_close(layer.mix(q, k, v, v0), expected)


@pytest.mark.parametrize("training", [True, False])
def test_reattention_equals_its_formula(qkv, training):
    q, k, v, v0 = qkv
    layer = learned(ReAttention(HEADS * DIM, num_heads=HEADS)).train(training)
    layer.norm.running_var.fill_(0.5)
    a, _ = weights(q, k, causal=False)
    mixed = torch.stack([sum(layer.theta[g, h] * a[:, h] for h in range(HEADS)) for g in range(HEADS)], 1)
    mean = mixed.mean((0, 2, 3), keepdim=True) if training else torch.zeros(1, dtype=torch.float64)
    var = mixed.var((0, 2, 3), correction=0, keepdim=True) if training else torch.full((1,), 0.5, dtype=torch.float64)
    scale, shift = layer.norm.weight[:, None, None], layer.norm.bias[:, None, None]
    expected = ((mixed - mean) / (var + 1e-5).sqrt() * scale + shift) @ v
    torch.testing.assert_close(layer.mix(q, k, v, v0), expected)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lam", [None, 0.4])
@pytest.mark.parametrize("chunk", [64, 3, 1])
def test_linear_attention_equals_its_formula(qkv, causal, lam, chunk, scaled):
    q, k, v, v0 = qkv
    layer = LinearAttention(HEADS * DIM, num_heads=HEADS, causal=causal, lam=lam, scale_output=scaled).double()
    layer.chunk = chunk
    products = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
    if causal:
        products = products.tril()
    expected = products @ v / products.sum(-1, keepdim=True) / (math.sqrt(DIM) if scaled else 1) + (lam or 0) * (v0 - v)
    torch.testing.assert_close(layer.mix(q, k, v, v0), expected)
    torch.testing.assert_close(layer.weights(q, k), products / products.sum(-1, keepdim=True))


def test_linear_attention_keeps_float32_sums_in_half_precision(qkv):
    q, k, v, _ = qkv.repeat(1, 1, 1, 200, 1)
    layer = LinearAttention(HEADS * DIM, num_heads=HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer.mix(q.bfloat16(), k.bfloat16(), v.bfloat16(), None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), layer.double().mix(q, k, v, None), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("norm_first", [True, False])
def test_layerscale_scales_both_sublayers(norm_first):
    torch.manual_seed(0)
    block = LayerScaleBlock(12, 3, SoftmaxAttention, init_values=0.1, norm_first=norm_first).double()
    plain = Block(12, 3, SoftmaxAttention, norm_first=norm_first).double()
    plain.load_state_dict(block.state_dict(), strict=False)
    torch.nn.init.normal_(block.ls1.gamma)
    torch.nn.init.normal_(block.ls2.gamma)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    if norm_first:
        first = x + block.ls1.gamma * plain.attn(plain.norm1(x))[0]
        expected = first + block.ls2.gamma * plain.mlp(plain.norm2(first))
    else:
        first = plain.norm1(x + block.ls1.gamma * plain.attn(x)[0])
        expected = plain.norm2(first + block.ls2.gamma * plain.mlp(first))
    torch.testing.assert_close(block(x)[0], expected)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("placement", ["branch", "stream"])
def test_contranorm_equals_its_formula_in_either_placement(placement, normalize, norm_first):
    torch.manual_seed(0)
    own = {"placement": placement, "scale": 0.3, "temperature": 0.7, "normalize": normalize}
    block = ContraNormBlock(12, 3, SoftmaxAttention, norm_first=norm_first, **own).double()
    plain = Block(12, 3, SoftmaxAttention, norm_first=norm_first).double()
    plain.load_state_dict(block.state_dict(), strict=placement == "branch")  # whose parameters are a plain block's

    def contrasted(y):
        by = y / y.norm(dim=-1, keepdim=True) if normalize else y
        y = y - 0.3 * torch.softmax(by @ by.mT / 0.7, dim=-1) @ y
        mean, var = y.mean(-1, keepdim=True), y.var(-1, correction=0, keepdim=True)
        return (y - mean) / (var + 1e-6).sqrt()

    x = torch.randn(2, 5, 12, dtype=torch.float64)
    if placement == "stream":
        expected = contrasted(plain(x)[0])
    elif norm_first:
        first = x + plain.attn(contrasted(x))[0]
        expected = first + plain.mlp(contrasted(first))
    else:
        first = contrasted(x + plain.attn(x)[0])
        expected = contrasted(first + plain.mlp(first))
    torch.testing.assert_close(block(x)[0], expected)


@pytest.mark.parametrize("attention", ["attnscale", "gfsa"])
@pytest.mark.parametrize("block", ["plain", "featscale"])
def test_what_starts_at_zero_starts_as_softmax(attention, block):
    torch.manual_seed(0)
    varied = VisionTransformer(
        "mini", img_size=8, patch_size=2, in_chans=1, depth=3, num_classes=5, **built(attention, block)
    ).eval()
    softmax = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=3, num_classes=5).eval()
    assert not softmax.load_state_dict(varied.state_dict(), strict=False).missing_keys
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(varied(images), softmax(images), rtol=0, atol=1e-5)


def test_a_learned_value_residual_starts_at_halves():
    torch.manual_seed(0)
    fixed, free = (ValueResidual(12, num_heads=3, learned=learned) for learned in (False, True))
    assert not fixed.load_state_dict(free.state_dict(), strict=False).missing_keys
    x, v0 = torch.randn(2, 7, 12), torch.randn(2, 3, 7, 4)
    torch.testing.assert_close(fixed(x, v0)[0], free(x, v0)[0])
    free(x, v0)[0].sum().backward()
    assert free.shares.grad.abs().min() > 0 and "shares" not in fixed.state_dict()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("block", BLOCK)
def test_every_combination_trains_all_its_parameters(attention, block):
    torch.manual_seed(0)
    overrides = [] if attention == "softmax" else ["attention.lam=0.6"]
    model = VisionTransformer(
        "mini", img_size=8, patch_size=2, in_chans=1, depth=3, num_classes=5, **built(attention, block, *overrides)
    )
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    # softmax does not feel the keys' biases, and so on; but no parameter of a method may be left out of the graph
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("block", [b for b in BLOCK if b not in SEES_ALL])
@pytest.mark.parametrize("attention", [a for a in ATTENTION if a not in SEES_ALL])
def test_no_causal_variant_leaks_the_future(attention, block):
    torch.manual_seed(0)
    overrides = [] if attention == "softmax" else ["attention.lam=0.4"]
    sizes = {"embed_dim": 12, "depth": 3, "num_heads": 3, "mlp_ratio": 2, "init_std": 0.3}
    model = LanguageModel(11, **sizes, **built(attention, block, *overrides)).double().eval()
    for module in model.modules():
        if isinstance(module, Variant):
            learned(module)
    LinearAttention.chunk, chunk = 4, LinearAttention.chunk
    ids = torch.randint(0, 11, (2, 14))
    changed = ids.clone()
    changed[:, 9:] = (ids[:, 9:] + 1) % 11
    try:
        with torch.no_grad():
            before, after = model(ids), model(changed)
    finally:
        LinearAttention.chunk = chunk
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-12)
    assert (before[:, 9:] - after[:, 9:]).abs().amin((0, 2)).min() > 1e-9


@pytest.mark.parametrize("variant", SEES_ALL)
def test_what_sees_all_tokens_is_refused_in_the_language_model(variant):
    group = "attention" if variant in ATTENTION else "block"
    with pytest.raises(InputError, match=f"{group}={variant}.*a language model would see the future"):
        LanguageModel(11, embed_dim=12, depth=2, num_heads=3, **built(**{group: variant}))


@pytest.mark.parametrize(
    "build, said",
    [
        (partial(LaplacianHeads, 12, 3, fraction=1.5), r"^fraction=1\.5"),
        (partial(GFSA, 12, 3, power=1), r"^power=1"),
        (partial(AttnScale, 12, 3, lam=-1), r"^lam=-1"),
        (partial(ContraNormBlock, 12, 3, SoftmaxAttention, scale=0), r"^scale=0"),
        (partial(ContraNormBlock, 12, 3, SoftmaxAttention, placement="block"), r"^placement=block"),
        (partial(ContraNormBlock, 12, 3, SoftmaxAttention, temperature=-1.0), r"^temperature=-1\.0"),
        (partial(LayerScaleBlock, 12, 3, SoftmaxAttention, init_values=math.nan), r"^init_values=nan"),
    ],
)
def test_a_variants_arguments_are_checked(build, said):
    with pytest.raises(InputError, match=said):
        build()


@pytest.mark.parametrize("attention", [a for a in ATTENTION if a not in ("softmax", "neutreno")])
def test_fused_attention_is_kept_where_the_formula_allows(attention, monkeypatch):
    def refused(*arguments):
        raise AssertionError("the N × N matrix was built")

    layer = built(attention)["attention"](12, num_heads=3)
    monkeypatch.setattr(SoftmaxAttention, "weights", refused)
    monkeypatch.setattr(LinearAttention, "weights", refused)
    x, v0 = torch.randn(2, 7, 12), torch.randn(2, 3, 7, 4)
    if attention == "reattention":
        with pytest.raises(AssertionError, match="N × N"):
            layer(x, v0)
    else:
        assert isinstance(layer, NeutrenoAttention)
        layer(x, v0)


@pytest.mark.parametrize("arm", ["anchor=none", "anchor=detached", "anchor=shuffled", "pull=false"])
@pytest.mark.parametrize("attention", [a for a in ATTENTION if a not in SEES_ALL and a != "softmax"])
def test_no_half_of_the_term_leaks_the_future_of_a_tokens_own_sequence_or_of_another(attention, arm):
    torch.manual_seed(0)
    added = f"attention.{arm}" if attention == "neutreno" else f"+attention.{arm}"
    sizes = {"embed_dim": 12, "depth": 3, "num_heads": 3, "mlp_ratio": 2, "init_std": 0.3}
    model = LanguageModel(11, **sizes, **built(attention, "plain", "attention.lam=0.4", added)).double().eval()
    ids = torch.randint(0, 11, (3, 14))
    changed = ids.clone()
    changed[0, 9:] = (ids[0, 9:] + 1) % 11
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-12)
    felt = (before[:, 9:] - after[:, 9:]).abs().amax((1, 2)) > 1e-9
    assert felt.tolist() == [True, arm == "anchor=shuffled", False]
