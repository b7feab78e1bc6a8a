"""Weights as files for timm: what it makes of them, and what is refused."""

import json
from functools import partial

import pytest
import timm
import torch
from safetensors import safe_open

from neutreno.attention import NeutrenoAttention
from neutreno.errors import InputError
from neutreno.models.exporting import export_timm
from neutreno.models.timm import timm_model
from neutreno.models.vit import VisionTransformer

SMALL = {"img_size": 8, "patch_size": 2, "depth": 2, "num_classes": 5}
FORMS = {
    "mini": {"size": "mini", "in_chans": 1},
    "narrow": {"size": "small", "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "qkv_bias": False},
    "oblong": {"size": "mini", "img_size": (8, 12)},
    "distilled": {"size": "mini", "distilled": True},
    "registers": {"size": "mini", "reg_tokens": 2, "no_embed_class": True},
    "pooled": {"size": "mini", "global_pool": "avg", "class_token": False},
    "any_size": {"size": "mini", "dynamic_img_size": True},
    "regularized": {"size": "mini", "drop_path_rate": 0.3, "proj_drop_rate": 0.2, "pos_drop_rate": 0.1},
}


def images(network):
    return torch.randn(3, network.patch_embed.proj.in_channels, *network.patch_embed.img_size)


@pytest.mark.parametrize("form", FORMS)
def test_timm_loads_the_file_strictly_and_gives_the_same_logits(form, tmp_path):
    network = VisionTransformer(**(SMALL | FORMS[form])).eval()
    name, arguments = export_timm(network, tmp_path / "w.safetensors")
    net = timm.create_model(name, checkpoint_path=str(tmp_path / "w.safetensors"), **arguments).eval()
    x = images(network)
    torch.testing.assert_close(net(x), network(x), rtol=1e-5, atol=1e-6)
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["timm_name"], json.loads(said["timm_arguments"])) == (name, json.loads(json.dumps(arguments)))
    assert "given_up" not in said


@pytest.mark.parametrize("distilled", [False, True])
def test_a_size_of_the_paper_needs_no_argument_but_the_classes(distilled, tmp_path):
    network = VisionTransformer(size="tiny", num_classes=7, distilled=distilled).eval()
    name, arguments = export_timm(network, tmp_path / "w.safetensors")
    assert name == f"deit_tiny_{'distilled_' if distilled else ''}patch16_224" and arguments == {"num_classes": 7}


def test_a_network_of_timms_keeps_its_name(tmp_path):
    network = timm_model("test_vit", num_classes=3, img_size=32, drop_path_rate=0.1).eval()
    name, arguments = export_timm(network, tmp_path / "w.safetensors")
    assert (name, arguments) == ("test_vit", {"num_classes": 3, "in_chans": 3, "img_size": 32})
    net = timm.create_model(name, checkpoint_path=str(tmp_path / "w.safetensors"), **arguments).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), network(x))


def test_another_function_is_never_written_unsaid(tmp_path):
    network = VisionTransformer(**SMALL, size="mini", attention=partial(NeutrenoAttention, lam=0.4)).eval()
    file = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"w\.safetensors was not written: .* gives other logits"):
        export_timm(network, file)
    assert not file.exists()
    with pytest.warns(
        UserWarning, match="gives up the fidelity term: logits of random images are off by up to"
    ) as told:
        name, arguments = export_timm(network, file, "the fidelity term")
    net = timm.create_model(name, checkpoint_path=str(file), **arguments).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    apart, largest = (net(x) - network(x)).abs().max().item(), network(x).abs().max().item()
    with safe_open(file, "pt") as content:
        said = content.metadata()
    assert said["given_up"] == "the fidelity term" and apart > 0.01
    assert said["logits_apart"] == f"{apart:.3g}, where the largest is {largest:.3g}" in str(told[0].message)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    network = VisionTransformer(**SMALL, size="mini").eval()
    torch.nn.init.constant_(network.norm.weight, torch.nan)
    with pytest.raises(InputError, match=r"hold NaN or Inf: norm\.weight"):
        export_timm(network, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    "network, file, said",
    [
        (VisionTransformer(**SMALL, size="mini"), "w.pth", r"name a \.safetensors file"),
        (VisionTransformer(**SMALL, size="mini"), "no/w.safetensors", "no folder"),
        (VisionTransformer(**SMALL, size="mini", norm_eps=1e-5), "w.safetensors", "timm has no VisionTransformer"),
        (torch.nn.Linear(2, 2), "w.safetensors", "timm has no Linear"),
    ],
)
def test_what_timm_could_not_read_is_refused_in_a_line(network, file, said, tmp_path):
    with pytest.raises(InputError, match=said) as refused:
        export_timm(network.eval(), tmp_path / file)
    assert "\n" not in str(refused.value) and not list(tmp_path.rglob("*.safetensors"))
