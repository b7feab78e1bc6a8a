import pytest
import timm
import torch
from torch import nn

from neutreno.errors import InputError
from neutreno.models.timm import TimmModel, data_settings, timm_model
from neutreno.models.vit import VisionTransformer
from neutreno.oversmoothing.measure import measure
from neutreno.oversmoothing.recorder import tokens_of

SWIN = {"name": "swin_tiny_patch4_window7_224", "img_size": 64, "embed_dim": 16, "depths": (1, 1, 1, 1)}
SWIN |= {"num_heads": (1, 1, 2, 2), "window_size": 4}


def features(model, images):
    """Tokens by layer."""
    return [tokens.features for _, tokens in tokens_of(model, images)]


def test_hidden_states_of_deit_tiny_are_those_of_our_model_with_the_same_weights(tmp_path):
    torch.save({"model": timm.create_model("deit_tiny_patch16_224").state_dict()}, tmp_path / "deit.pth")
    theirs = timm_model("deit_tiny_patch16_224", weights=str(tmp_path / "deit.pth")).eval()
    ours = VisionTransformer("tiny", weights=str(tmp_path / "deit.pth")).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        pairs = zip(features(theirs, images), ours.hidden_states(images), strict=True)
        for layer, (a, b) in enumerate(pairs):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=lambda m, layer=layer: f"layer {layer}: {m}")
        torch.testing.assert_close(theirs(images), ours(images), rtol=0, atol=1e-5)
    patches = theirs.token_subsets("net.blocks", 197)["patch"]
    assert torch.equal(patches, ours.token_subsets("blocks", 197)["patch"]) and patches.sum() == 196


def test_reading_tokens_leaves_the_model_as_timm_made_it():
    net = timm.create_model("test_vit").train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = TimmModel(net, (3, 160, 160))
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    measure(model, torch.randn(1, 3, 160, 160))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_layers_are_the_embedding_and_every_block():
    model = timm_model("test_vit", img_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    hidden = features(model, images)
    assert len(hidden) == 1 + len(model.net.blocks) and {h.shape for h in hidden} == {(2, 5, 64)}
    x = model.net._pos_embed(model.net.patch_embed(images))
    for h, block in zip(hidden, [nn.Identity(), *model.net.blocks], strict=True):
        x = block(x)
        torch.testing.assert_close(h, x)


@pytest.mark.parametrize(
    "model, prefix, patches",
    [
        ({"name": "deit_tiny_distilled_patch16_224", "img_size": 32, "depth": 2}, 2, 4),  # class and distillation token
        ({"name": "vit_base_patch16_gap_224", "img_size": 32, "depth": 1, "embed_dim": 12, "num_heads": 2}, 0, 4),
        ({"name": "cait_xxs24_224", "img_size": 32, "depth": 2}, 0, 4),  # its class token joins after the blocks
        ({"name": "mixer_s32_224", "img_size": 64}, 0, 4),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_class_and_distillation_tokens_are_told_from_patches(model, prefix, patches):
    side, model = model["img_size"], timm_model(**model)
    rows = measure(model, torch.randn(1, 3, side, side))
    counts = {subset: {r["tokens"] for r in rows if r["subset"] == subset} for subset in ("all", "patch")}
    assert counts == {"all": {prefix + patches}, "patch": {patches} if prefix else set()}


@pytest.mark.parametrize(
    "model, stages",
    [
        ({"name": "test_convnext", "img_size": 64}, 4),
        (SWIN, 4),
        ({"name": "test_resnet", "img_size": 64}, 5),
        ({"name": "resnet10t", "img_size": 128}, 5),  # its first map has as many channels as rows
    ],
    ids=["convnext", "swin", "resnet", "square"],
)
def test_stages_of_a_hierarchical_model_have_a_curve(model, stages):
    images = torch.randn(3, 3, model["img_size"], model["img_size"])
    model = timm_model(**model, num_classes=2)
    rows = measure(model, images)
    assert [r["layer"] for r in rows] == list(range(1, stages + 1)) and {r["stack"] for r in rows} == {"stages"}
    assert all(-1 <= row["mean"] <= 1 for row in rows)  # no NaN either
    maps = model.eval().net.forward_intermediates(images, intermediates_only=True)
    for found, stage in zip(features(model, images), maps, strict=True):  # a token is the channels of a position
        torch.testing.assert_close(found, stage.flatten(2).mT)


def test_activation_checkpointing_is_refused_where_timm_has_none():
    timm_model("test_vit").set_grad_checkpointing()
    with pytest.raises(InputError, match="DLA of timm has no activation checkpointing"):
        timm_model("dla46_c", img_size=32).set_grad_checkpointing()


def test_our_own_models_by_timms_name_keep_their_tokens():
    model = timm_model("deit_tiny_neutreno_patch16_224").eval()
    images = torch.randn(1, 3, 224, 224)
    for a, b in zip(features(model, images), model.net.hidden_states(images), strict=True):
        assert torch.equal(a, b)


def test_timms_choice_of_what_is_not_decayed_passes_through():
    from timm.optim import create_optimizer_v2

    def decayed(model):
        groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1).param_groups
        chosen = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
        return {name for name, p in model.named_parameters() if id(p) in chosen}

    model = timm_model("test_vit")
    assert "net.pos_embed" in dict(model.named_parameters())
    assert decayed(model) == {f"net.{name}" for name in decayed(model.net)}


def test_images_are_made_as_timm_says():
    assert data_settings("vit_tiny_patch16_224")["mean"] == [0.5, 0.5, 0.5]
    assert data_settings("deit_tiny_patch16_224") == {
        "img_size": 224,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert data_settings("vit_base_patch16_384")["img_size"] == 384


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"name": "no_such_model"}, "model.name=no_such_model is not a timm model"),
        ({"name": "deit_tiny_patch16_24"}, "near: deit_tiny_patch16_224"),
        ({"name": "deit_tiny_patch16_224.nope"}, "Invalid pretrained tag"),
        ({"name": "test_vit", "img_size": 8}, r"images of shape \(3, 8, 8\)"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "model.name=vgg11 so: .*drop_path_rate"),
        ({"name": "test_vit", "pretrained": True, "num_classes": 2}, "trained for 1000 classes, not for 2"),
    ],
    ids=["name", "near", "tag", "size", "argument", "classes"],
)
def test_what_cannot_be_built_is_said_in_a_line(arguments, words):
    with pytest.raises(InputError, match=words) as caught:
        timm_model(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, head", [("test_vit", "head"), ("test_resnet", "fc"), ("test_convnext", "head.fc")])
def test_weights_of_other_classes_are_refused_unless_a_new_head_is_asked_for(tmp_path, name, head):
    seven = timm.create_model(name, num_classes=7)
    file = str(tmp_path / "seven.pth")
    torch.save(seven.state_dict(), file)
    with pytest.raises(InputError, match=r"7 classes, the model has 5; model\.new_head=true"):
        timm_model(name, num_classes=5, weights=file)
    net = timm_model(name, num_classes=5, weights=file, new_head=True).net
    assert net.get_submodule(head).weight.shape[0] == 5
    kept = {k for k, v in net.state_dict().items() if k in seven.state_dict() and torch.equal(v, seven.state_dict()[k])}
    assert kept == {k for k in net.state_dict() if not k.startswith(f"{head}.")}


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("test_vit2").state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"do not fit the model: .*unexpected: reg_token"):
        timm_model("test_vit", weights=str(tmp_path / "other.pth"))
