import shutil
from functools import partial

import pytest
import timm
import torch
from torch._inductor import config, metrics

import neutreno.models  # noqa: F401  (registers them with timm)
from neutreno.attention import NeutrenoAttention, fidelity
from neutreno.models.vit import SIZES, VisionTransformer

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize("size", SIZES)
def test_neutreno_adds_no_parameter(size):
    with torch.device("meta"):  # shapes without memory
        softmax, ours = (timm.create_model(f"deit_{size}_{a}_patch16_224") for a in ("softmax", "neutreno"))
    assert {n: p.shape for n, p in softmax.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_parameter_count_is_timms(size):
    with torch.device("meta"):
        count = [
            sum(p.numel() for p in timm.create_model(name).parameters())
            for name in (f"deit_{size}_neutreno_patch16_224", f"deit_{size}_patch16_224")
        ]
    assert count[0] == count[1]


def test_compiles_to_one_graph():
    model = VisionTransformer(**SMALL, attention=partial(NeutrenoAttention, lam=0.6))
    images = torch.randn(1, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for training in (True, False):
        assert torch.equal(compiled.train(training)(images), model.train(training)(images))


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_the_compiled_term_is_one_kernel_forward_and_one_backward():
    term = [torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3)]
    metrics.reset()
    with config.patch(force_disable_caches=True):  # what is cached is not generated
        out = torch.compile(fidelity, fullgraph=True)(*term, 0.6)
        assert metrics.generated_kernel_count == 1
        torch.testing.assert_close(out, fidelity(*term, 0.6))
        out.sum().backward()
    assert metrics.generated_kernel_count == 2


def test_weights_start_as_deits_release_has_them():
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=4096, depth=1, num_heads=2, img_size=16, num_classes=5, distilled=True)
    for token in (model.cls_token, model.dist_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.05) and abs(token.mean().item()) < 2e-3
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(m.weight.std().item() == pytest.approx(0.02, rel=0.02) and not m.bias.any() for m in linears)
