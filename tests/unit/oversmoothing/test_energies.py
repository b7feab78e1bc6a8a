"""The energies J and G of models by layer, and where the descent diverges."""

import math
from functools import partial

import pandas as pd
import pytest
import torch

from neutreno.attention import NeutrenoAttention
from neutreno.errors import InputError
from neutreno.models.language_model import LanguageModel
from neutreno.models.segmenter import Segmenter
from neutreno.models.timm import timm_model
from neutreno.models.vit import VisionTransformer
from neutreno.oversmoothing.energies import descent, measure_energies


def test_beyond_one_it_diverges():
    _, ends = descent([1.0, 1.3], steps=60)
    assert ends.rate[0] < 1 < ends.rate[1] and ends.E[0] < 1 < 100 < ends.E[1]


def plain_energies(blocks, x, causal):
    """J and G by layer, written out: double sums over pairs of tokens, the N × N matrix explicit."""
    energies, v0 = [], None
    for block in blocks:
        attn = block.attn
        q, k, v = (
            y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2).double()
            for y in attn.qkv(block.norm1(x) if block.norm_first else x).chunk(3, -1)
        )
        v0 = v if v0 is None else v0
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=torch.float64).triu(1)
        a = scores.softmax(-1)
        apart = (v.unsqueeze(-2) - v.unsqueeze(-3)).square().sum(-1)
        degrees = a.sum(-1) + a.sum(-2)
        size = v.square().sum((1, 2, 3))
        j = (a * apart).sum((1, 2, 3)) / 2 / size
        g = (degrees * (v - v0).square().sum(-1)).sum((1, 2)) / 2 / size
        energies.append((j, g))
        x = block(x, None if len(energies) == 1 else v0.to(x.dtype))[0]
    return energies


@pytest.mark.parametrize("kind", ["vit", "segmenter", "language model"])
@torch.no_grad()
def test_energies_of_a_model_are_those_of_its_values_under_its_attention(kind):
    torch.manual_seed(0)
    attention = partial(NeutrenoAttention, lam=0.6)
    small = {"depth": 3, "embed_dim": 16, "num_heads": 2, "attention": attention}
    inputs = torch.randn(11, 3, 16, 16)
    if kind == "vit":
        model = VisionTransformer(size="mini", img_size=16, patch_size=4, **small)
        trunks = {"blocks": (model.blocks, model.hidden_states(inputs)[0])}
    elif kind == "segmenter":
        model = Segmenter(size="mini", img_size=16, patch_size=4, num_classes=3, **small).eval()
        hidden = model.encoder.hidden_states(inputs)
        classes = model.decoder.cls_emb.expand(11, -1, -1)
        entering = torch.cat([model.decoder.proj_dec(model.encoder.norm(hidden[-1])[:, 1:]), classes], 1)
        trunks = {
            "encoder.blocks": (model.encoder.blocks, hidden[0]),
            "decoder.blocks": (model.decoder.blocks, entering),
        }
    else:
        model = LanguageModel(30, drop_rate=0.1, **small).eval()
        inputs = torch.randint(30, (11, 12))
        trunks = {"blocks": (model.blocks, model.hidden_states(inputs)[0])}
    model.train()
    rows = pd.DataFrame(measure_energies(model, inputs, batch_size=4, run="x"))
    assert model.training and set(rows.run) == {"x"} and set(rows.samples) == {11} and set(rows["stack"]) == set(trunks)
    model.eval()
    for stack, (blocks, x) in trunks.items():
        for layer, energies in enumerate(plain_energies(blocks, x, kind == "language model"), start=1):
            for name, values in zip("JG", energies, strict=True):
                row = rows[(rows["stack"] == stack) & (rows.metric == name) & (rows.layer == layer)]
                assert row["mean"].item() == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-9)
                assert row.sd.item() == pytest.approx(values.std().item(), rel=1e-3, abs=1e-7)
        g = rows[(rows["stack"] == stack) & (rows.metric == "G")].sort_values("layer")["mean"]
        assert g.iloc[0] == 0 and (g.iloc[1:] > 0.1).all()


def test_a_model_with_attention_of_its_own_is_refused():
    with pytest.raises(InputError, match="does not use this project's attention or propagation"):
        measure_energies(timm_model("test_vit"), torch.randn(2, 3, 160, 160))
