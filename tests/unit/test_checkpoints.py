import math
import pickle
import random
import re
import zipfile

import pytest
import timm
import torch
from support.same_run import assert_equal
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from neutreno.checkpoints import load_strictly, load_weights, read_checkpoint
from neutreno.errors import InputError
from neutreno.models.vit import VisionTransformer

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, "epoch": 3},  # DeiT's released files
        lambda weights: {"state_dict": weights, "arch": "vit"},  # timm's training script
        lambda weights: {"state_dict": {f"model.{k}": v for k, v in weights.items()}},  # ours
    ],
    ids=["bare", "deit", "timm", "lightning"],
)
def test_loads_a_file_of_every_known_layout(tmp_path, wrap):
    source, model = VisionTransformer(**SMALL), VisionTransformer(**SMALL)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert same(source, model)


def test_loads_safetensors(tmp_path):
    from safetensors.torch import save_file

    source, model = VisionTransformer(**SMALL), VisionTransformer(**SMALL)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert same(source, model)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_checkpoint_is_refused_or_reads_as_before(tmp_path, seed):
    """Bits flipped, blocks zeroed, cut off or exchanged, anywhere in the file; torch.load takes half of these."""
    content = {"state_dict": VisionTransformer(**SMALL).state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt")
    damaged, draw = bytearray((tmp_path / "last.ckpt").read_bytes()), random.Random(seed)
    here, there = (draw.randrange(len(damaged) - 64) for _ in range(2))
    if seed % 4 == 0:
        damaged[here] ^= 1 << draw.randrange(8)
    elif seed % 4 == 1:
        damaged[here : here + 64] = bytes(64)
    elif seed % 4 == 2:
        del damaged[here:]
    else:
        damaged[here : here + 64], damaged[there : there + 64] = damaged[there : there + 64], damaged[here : here + 64]
    (tmp_path / "last.ckpt").write_bytes(damaged)
    try:
        found = read_checkpoint(tmp_path / "last.ckpt")
    except InputError as error:
        assert "last.ckpt" in str(error) and "\n" not in str(error)
    else:
        assert_equal(found, content)


def test_an_archive_that_inflates_is_refused_before_it_does(tmp_path):
    """A few bytes may stand for gigabytes; torch.save compresses nothing."""
    torch.save({"state_dict": {"w": torch.zeros(8)}}, tmp_path / "last.ckpt")
    with zipfile.ZipFile(tmp_path / "last.ckpt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/more", bytes(10**6))
    with pytest.raises(InputError, match=r"last\.ckpt is a compressed archive"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_loads_a_run_folder(tmp_path):
    source, model = VisionTransformer(**SMALL), VisionTransformer(**SMALL)
    (tmp_path / "checkpoints").mkdir()
    weights = {f"model.{k}": v for k, v in source.state_dict().items()}
    torch.save({"state_dict": weights | {"ema.module.head.bias": torch.zeros(5)}}, tmp_path / "checkpoints/last.ckpt")
    load_weights(model, tmp_path)
    assert same(source, model)


def test_released_names_fit_strictly():
    weights = timm.create_model("deit_tiny_patch16_224").state_dict()
    VisionTransformer("tiny").load_state_dict(weights, strict=True)


def test_weights_of_another_shape_are_named(tmp_path):
    torch.save(VisionTransformer(**SMALL, mlp_ratio=2.0).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"blocks\.0\.mlp\.fc1\.weight \(48, 24\) ≠ \(96, 24\), blocks\.0\.mlp\.fc1\.bias"
    ):
        load_weights(VisionTransformer(**SMALL), tmp_path / "weights.pth")


def test_missing_and_unexpected_parameters_are_named_and_nothing_is_loaded(tmp_path):
    source, model = VisionTransformer(**SMALL), VisionTransformer(**SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = source.state_dict()
    weights["stranger"] = weights.pop("norm.bias")
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"missing: norm\.bias; unexpected: stranger"):
        load_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_and_not_loaded(tmp_path, value):
    weights = VisionTransformer(**SMALL).state_dict()
    weights["blocks.1.attn.qkv.weight"][3, 5] = value
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth hold NaN or Inf: blocks\.1\.attn\.qkv\.weight; "):
        load_weights(VisionTransformer(**SMALL), tmp_path / "x.pth")


def test_each_name_of_a_tied_weight_and_each_buffer_has_to_be_finite():
    def tied():
        module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)})
        module["b"].weight = module["a"].weight
        module.register_buffer("mask", torch.full((2,), -math.inf))  # as it is made
        return module

    for name in ("b.weight", "norm.running_var"):
        weights = {k: v.clone() for k, v in tied().state_dict().items()}
        load_strictly(tied(), weights, "x")
        weights[name].view(-1)[0] = math.nan
        with pytest.raises(InputError, match=rf"hold NaN or Inf: {re.escape(name)}; "):
            load_strictly(module := tied(), weights, "x")
        assert module["a"].weight.isfinite().all()


@pytest.mark.parametrize(
    "odd", [torch.zeros(3, 3).to_sparse(), torch.zeros(3, 3, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_plain_values_are_refused_in_a_line(odd):
    with pytest.raises(InputError, match="x holds tensors that are sparse, quantized or empty of values: weight"):
        load_strictly(nn.Linear(3, 3), {"weight": odd, "bias": torch.zeros(3)}, "x")


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, save):
    save({"model": Evil(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth .*refused"):
        load_weights(VisionTransformer(**SMALL), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(InputError, match=name):
        read_checkpoint(tmp_path / name)


def test_a_source_that_is_nothing_known():
    with pytest.raises(InputError, match="neither a run folder, nor a checkpoint file, nor the name of a timm model"):
        load_weights(VisionTransformer(**SMALL), "no_such_thing")


def test_weights_of_another_resolution_and_patch_size_are_resampled_as_timm_does(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5)  # 4 x 4 patches
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    for sizes in ({"img_size": 96}, {"img_size": 48, "patch_size": 8}):
        model = VisionTransformer("tiny", **sizes, num_classes=5, weights=str(tmp_path / "weights.pth"))
        expected = timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=5)
        expected.load_state_dict(checkpoint_filter_fn(source.state_dict(), expected))
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    "file, words",
    [
        ({"embed_dim": 48}, "model.size (or model.embed_dim) chooses the width"),
        ({"depth": 4}, "model.size (or model.depth) chooses the number of blocks"),
        ({"in_chans": 1}, "data.in_chans chooses the channels"),
        ({"mlp_ratio": 2.0}, "model.mlp_ratio chooses the width of the MLP"),
        ({"distilled": True}, "model.distilled, model.reg_tokens and model.class_token choose the tokens"),
        ({"reg_tokens": 3}, "model.distilled, model.reg_tokens and model.class_token choose the tokens"),
        ({"global_pool": "avg"}, "model.global_pool chooses how tokens are pooled"),
        ({"qkv_bias": False}, "model.qkv_bias chooses whether there is a bias"),
        ({"num_classes": 3}, "model.new_head=true keeps the rest"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_weights_that_do_not_fit_name_the_option_that_chooses_the_models(tmp_path, file, words):
    torch.save(VisionTransformer(**{**SMALL, **file}).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=re.escape(words)):
        load_weights(VisionTransformer(**SMALL), tmp_path / "weights.pth")
