import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from support import ROOT

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.errors import InputError
from neutreno.models.segmenter import Segmenter
from neutreno.models.transformer import FeatScaleBlock
from neutreno.oversmoothing.recorder import tokens_of

GOLDEN = ROOT / "tests/golden/shared_segmenter_neutreno.npz"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def save(model, file, **more):
    torch.save({"model": model.state_dict() | more}, file)
    return str(file)


def test_a_released_checkpoint_loads_with_its_unused_head(tmp_path):
    """Under the released names, ``encoder.head`` included, as the authors' training script saves it."""
    golden = np.load(GOLDEN)
    meta = json.loads(str(golden["meta"]))
    weights = {k.removeprefix("w/"): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("w/")}
    assert "encoder.head.weight" in weights
    torch.save({"model": weights, "n_cls": 9, "epoch": 63}, tmp_path / "checkpoint.pth")
    model = Segmenter(
        num_classes=9,
        img_size=meta["crop"],
        patch_size=meta["patch"],
        embed_dim=meta["d_model"],
        depth=meta["n_layers"],
        num_heads=meta["n_heads"],
        attention=partial(NeutrenoAttention, lam=meta["lambda_"]),
        weights=str(tmp_path / "checkpoint.pth"),
    ).eval()
    with torch.no_grad():
        masks = model(torch.from_numpy(golden["x"]).float())
    torch.testing.assert_close(masks, torch.from_numpy(golden["masks"]).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("distilled", [False, True])
def test_the_encoder_is_timms_deit_at_its_own_size(tmp_path, distilled):
    reference = timm.create_model("deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224").eval()
    file = save(reference, tmp_path / "deit.pth")
    model = Segmenter("tiny", img_size=224, encoder_weights=file, distilled=distilled, norm_eps=1e-6).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference.forward_features(images)
        torch.testing.assert_close(model.encoder.forward_features(images), expected, rtol=0, atol=1e-5)


def test_positions_are_resized_bilinearly_to_the_crop(tmp_path):
    """As the released code does: no antialiasing, corners not aligned, class token's position untouched."""
    reference = timm.create_model("deit_tiny_patch16_224")
    model = Segmenter("tiny", img_size=512, encoder_weights=save(reference, tmp_path / "deit.pth"))
    grid = reference.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(32, 32), mode="bilinear").flatten(2).mT
    torch.testing.assert_close(model.encoder.pos_embed[:, 1:], expected, rtol=0, atol=1e-6)
    assert torch.equal(model.encoder.pos_embed[:, :1], reference.pos_embed[:, :1])


@pytest.mark.parametrize("size", [(32, 32), (64, 40), (33, 47), (8, 8), (5, 61)])
def test_an_image_of_any_size_gives_logits_of_its_size(size):
    model = Segmenter(**SMALL).eval()
    images = torch.randn(2, 3, *size)
    padded = F.pad(images, (0, -size[1] % 8, 0, -size[0] % 8))
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 5, *size)
        torch.testing.assert_close(logits, model(padded)[..., : size[0], : size[1]])


VARIANTS = {
    "softmax": {"attention": SoftmaxAttention},
    "neutreno": {"attention": partial(NeutrenoAttention, lam=0.6)},
    "featscale": {"attention": partial(NeutrenoAttention, lam=0.6), "block": FeatScaleBlock},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_in_encoder_and_decoder_and_trains(variant):
    model = Segmenter(**SMALL, **VARIANTS[variant])
    for part in (model.encoder, model.decoder):
        assert all(
            type(b.attn) is getattr(VARIANTS[variant]["attention"], "func", SoftmaxAttention) for b in part.blocks
        )
        assert all(isinstance(b, VARIANTS[variant].get("block", object)) for b in part.blocks)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_encoder_and_decoder_keep_first_layer_values_of_their_own():
    model = Segmenter(**SMALL, attention=partial(NeutrenoAttention, lam=0.6)).eval()
    seen = {"encoder": [], "decoder": []}
    for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        for block in part.blocks:
            block.attn.register_forward_hook(lambda module, args, out, name=name: seen[name].append((args[1], out[1])))
    model(torch.randn(1, 3, 32, 32))
    for calls in seen.values():
        assert calls[0][0] is None and all(v0 is calls[0][1] for v0, _ in calls[1:])
    assert seen["encoder"][0][1].shape != seen["decoder"][0][1].shape


def test_tokens_of_encoder_and_decoder_are_those_that_the_masks_come_from():
    model = Segmenter(**SMALL).eval()
    found = tokens_of(model, torch.randn(2, 3, 32, 32))
    shapes = [(place.stack, place.layer, tuple(tokens.features.shape)) for place, tokens in found]
    assert shapes == [("encoder.blocks", k, (2, 17, 24)) for k in range(4)] + [
        ("decoder.blocks", k, (2, 21, 24)) for k in range(3)
    ]
    encoded, entering = found[3][1].features, found[4][1].features
    assert torch.equal(entering[:, :16], model.decoder.proj_dec(model.encoder.norm(encoded)[:, 1:]))
    assert model.token_subsets("encoder.blocks", 17)["patch"].tolist() == [False] + [True] * 16
    assert model.token_subsets("decoder.blocks", 21)["patch"].tolist() == [True] * 16 + [False] * 5


def test_positions_and_embeddings_are_not_decayed():
    from timm.optim import create_optimizer_v2

    model = Segmenter(**SMALL)
    names = {p: n for n, p in model.named_parameters()}
    groups = create_optimizer_v2(model, opt="adamw", weight_decay=0.05).param_groups
    plain = {names[p] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {n for n in plain if not n.endswith(".bias") and "norm" not in n} == {
        "encoder.cls_token",
        "encoder.pos_embed",
        "decoder.cls_emb",
    }


def test_a_segmenters_encoder_starts_another(tmp_path):
    other = Segmenter(**SMALL)
    model = Segmenter(**{**SMALL, "num_classes": 3, "img_size": 64}, encoder_weights=save(other, tmp_path / "seg.pth"))
    assert torch.equal(model.encoder.blocks[2].mlp.fc1.weight, other.encoder.blocks[2].mlp.fc1.weight)
    assert model.encoder.pos_embed.shape[1] == 65


def test_weights_of_other_classes_need_a_word_of_the_user(tmp_path):
    file = save(Segmenter(**SMALL), tmp_path / "seg.pth")
    with pytest.raises(InputError, match=r"for 5 classes, the model has 3; model\.new_head=true"):
        Segmenter(**{**SMALL, "num_classes": 3}, weights=file)
    Segmenter(**{**SMALL, "num_classes": 3}, weights=file, new_head=True)


def test_encoder_weights_of_another_width_are_refused(tmp_path):
    file = save(Segmenter(**SMALL), tmp_path / "seg.pth")
    with pytest.raises(InputError, match=r"model\.encoder_weights=.*seg\.pth has a width of 24, the model of 32"):
        Segmenter(**{**SMALL, "embed_dim": 32}, encoder_weights=file)


def test_encoder_weights_of_a_distilled_model_name_what_is_left_over(tmp_path):
    file = save(Segmenter(**SMALL, distilled=True), tmp_path / "seg.pth")
    with pytest.raises(InputError, match="unexpected: dist_token"):
        Segmenter(**SMALL, encoder_weights=file)
