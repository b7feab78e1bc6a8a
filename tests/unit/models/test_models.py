from functools import partial

import pytest
import timm
import torch

import neutreno.models  # noqa: F401  (registers them with timm)
from neutreno.attention import NeutrenoAttention, ReAttention, SoftmaxAttention
from neutreno.errors import InputError
from neutreno.models.language_model import LanguageModel
from neutreno.models.segmenter import Segmenter
from neutreno.models.transformer import FeatScaleBlock, Trunk
from neutreno.models.vit import VisionTransformer

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("deit_tiny_patch16_224", "deit_tiny_softmax_patch16_224"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_softmax_patch16_224"),
        ("vit_tiny_patch16_224", "vit_tiny_softmax_patch16_224"),
    ],
)
def test_softmax_equals_timms_model(theirs, ours):
    reference, model = timm.create_model(theirs).eval(), timm.create_model(ours).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=0, atol=1e-5)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in reference.named_parameters()}


def test_lam_zero_gives_timms_logits():
    reference = timm.create_model("deit_tiny_patch16_224").eval()
    model = timm.create_model("deit_tiny_neutreno_patch16_224", lam=0).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=0, atol=1e-5)


def test_the_first_layers_values_reach_every_later_layer():
    model = VisionTransformer(**SMALL, attention=partial(NeutrenoAttention, lam=0.6)).eval()
    seen = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, args, out: seen.append((args[1], out[1])))
    model(torch.randn(1, 3, 16, 16))
    assert seen[0][0] is None
    assert all(v0 is seen[0][1] for v0, _ in seen[1:])


def test_hidden_states_are_the_embedding_and_every_blocks_output():
    model = VisionTransformer(**SMALL).eval()
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: outputs.append(out[0]))
    hidden = model.hidden_states(torch.randn(2, 3, 16, 16))
    assert len(hidden) == 4 and hidden[0].shape == (2, 17, 24)
    assert all(torch.equal(a, b) for a, b in zip(hidden[1:], outputs, strict=True))


def test_distilled_model_gives_both_logits_in_distilled_training_only():
    model = VisionTransformer(**SMALL, distilled=True)
    images = torch.randn(2, 3, 16, 16)
    assert model(images).shape == (2, 5)
    model.distilled_training = True
    assert [logits.shape for logits in model(images)] == [(2, 5), (2, 5)]
    assert model.eval()(images).shape == (2, 5)


def test_norms_biases_and_embeddings_are_not_decayed():
    from timm.optim import create_optimizer_v2

    model = VisionTransformer(**SMALL, distilled=True)
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in model.named_parameters() if n.endswith("weight") and "norm" not in n}


@pytest.mark.parametrize("attention", [SoftmaxAttention, partial(NeutrenoAttention, lam=0.6)])
def test_no_n_by_n_matrix_under_fused_attention(attention):
    """Memory of one layer grows with N, not N²: 16 times the tokens at well under 16² times the bytes."""

    def largest_tensor(tokens):
        layer, sizes = attention(32, num_heads=2), []
        x, v0 = torch.randn(1, tokens, 32), torch.randn(1, 2, tokens, 16)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(x, v0)[0].sum().backward()
        return max(sizes)

    assert largest_tensor(1024) <= 16 * largest_tensor(64)


FORMS = {
    "plain": {},
    "average": {"global_pool": "avg"},
    "attention pooling": {"global_pool": "map"},
    "registers": {"reg_tokens": 2},
    "positions of patches alone": {"reg_tokens": 2, "no_embed_class": True},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "any size": {"dynamic_img_size": True},
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_softmax_vit_does_all_that_timms_does(form):
    ours = VisionTransformer(**SMALL, **FORMS[form]).eval()
    theirs = timm.models.VisionTransformer(**SMALL, **FORMS[form]).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, *((24, 32) if form == "any size" else (16, 16)))
    torch.testing.assert_close(ours(images), theirs(images))

    def flat(found):
        if isinstance(found, torch.Tensor):
            return [found]
        return [tensor for x in (found.values() if isinstance(found, dict) else found) for tensor in flat(x)]

    for how in (
        {},
        {"indices": 2, "norm": True},
        {"indices": [2, 0], "stop_early": True, "output_fmt": "NLC", "return_prefix_tokens": True},
        {"indices": [1], "intermediates_only": True},
        {"output_dict": True, "return_prefix_tokens": True},
    ):
        found, expected = ours.forward_intermediates(images, **how), theirs.forward_intermediates(images, **how)
        assert type(found) is type(expected)
        for a, b in zip(flat(found), flat(expected), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("attention", ["softmax", "neutreno"])
@torch.no_grad()
def test_features_only_gives_the_hidden_states(attention):
    torch.manual_seed(0)
    name = f"deit_tiny_{attention}_patch16_224"
    whole = timm.create_model(name, img_size=48).eval()
    pruned = timm.create_model(name, img_size=48, features_only=True, out_indices=(3, 7)).eval()
    pruned.model.load_state_dict(whole.state_dict(), strict=False)
    assert len(pruned.model.blocks) == 8 and type(pruned.model.blocks) is Trunk
    images = torch.randn(2, 3, 48, 48)
    hidden = whole.hidden_states(images)
    for found, tokens in zip(pruned(images), (hidden[4], hidden[8]), strict=True):
        assert found.shape == (2, 192, 3, 3)
        torch.testing.assert_close(found.flatten(2).mT, tokens[:, 1:])
    assert pruned.feature_info.channels() == [192, 192]
    for how in ({"stop_early": True}, {}):
        (_, found) = whole.forward_intermediates(images, [2], output_fmt="NLC", **how)
        torch.testing.assert_close(found[0], hidden[3][:, 1:])


@pytest.mark.parametrize(
    "attention",
    [SoftmaxAttention, NeutrenoAttention, *(partial(NeutrenoAttention, anchor=a) for a in ("detached", "shuffled"))],
    ids=["softmax", "neutreno", "detached", "shuffled"],
)
@pytest.mark.parametrize("kind", ["vit", "segmenter", "language model"])
def test_activation_checkpointing_changes_no_output_and_no_gradient(kind, attention):
    """Dropout and stochastic depth included."""

    def outcome(checkpointing):
        torch.manual_seed(0)
        inputs = torch.randn(3, 3, 16, 16)
        if kind == "vit":
            model = VisionTransformer(**SMALL, attention=attention, drop_path_rate=0.2, proj_drop_rate=0.1)
        elif kind == "segmenter":
            model = Segmenter(**SMALL, attention=attention, drop_path_rate=0.2, decoder_drop_rate=0.1)
        else:
            model, inputs = LanguageModel(9, 24, 3, 2, 2, attention=attention), torch.randint(9, (3, 6))
        model.train().set_grad_checkpointing(checkpointing)
        kept = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            out = model(inputs)
        out.square().mean().backward()
        return out, {name: p.grad for name, p in model.named_parameters()}, sum(kept)

    (plain, gradients, held), (out, again, less) = outcome(False), outcome(True)
    assert torch.equal(out, plain) and less < held / 2
    assert all(g is not None for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_a_batch_norm_counts_a_batch_once_under_activation_checkpointing():
    def state(checkpointing):
        torch.manual_seed(0)
        model = VisionTransformer(**SMALL, attention=ReAttention)
        model.set_grad_checkpointing(checkpointing)
        model(torch.randn(3, 3, 16, 16)).square().mean().backward()
        return model.state_dict()

    plain, again = state(False), state(True)
    assert any("running_var" in name for name in plain)
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, msg=name)


def test_patch_dropout_keeps_class_and_distillation_token():
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL, distilled=True, patch_drop_rate=0.75).train()
    tokens = model._embed(torch.randn(5, 3, 16, 16))
    assert tokens.shape == (5, 2 + 4, 24)
    prefix = torch.cat([model.cls_token, model.dist_token], 1) + model.pos_embed[:, :2]
    torch.testing.assert_close(tokens[:, :2], prefix.expand(5, -1, -1))


@pytest.mark.parametrize("option", ["init_values", "qk_norm", "block_fn", "pre_norm", "fix_init"])
def test_an_option_of_timms_that_no_block_would_heed_is_refused(option):
    with pytest.raises(TypeError, match=option):
        timm.create_model("deit_tiny_neutreno_patch16_224", **{option: 1})
    with pytest.raises(InputError, match="takes no mask"):
        VisionTransformer(**SMALL)(torch.randn(1, 3, 16, 16), attn_mask=torch.ones(1))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"class_token": False}, "class_token=false leaves no token for global_pool=token"),
        ({"distilled": True, "reg_tokens": 1}, "distilled=true reads class and distillation token"),
        ({"global_pool": "some"}, "global_pool=some"),
        ({"dynamic_img_pad": True}, "it needs dynamic_img_size=true"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        VisionTransformer(**SMALL, **options)


def test_patch_must_divide_the_image():
    with pytest.raises(InputError, match="patch_size=5 does not divide img_size=16"):
        VisionTransformer(**{**SMALL, "patch_size": 5})


def test_unknown_size_names_the_known_ones():
    with pytest.raises(InputError, match="mini, tiny, small, base"):
        VisionTransformer("huge")


def test_featscale_starts_as_the_plain_block_and_then_follows_its_formula():
    plain = VisionTransformer(**SMALL, attention=partial(NeutrenoAttention, lam=0.6)).eval()
    model = VisionTransformer(**SMALL, attention=partial(NeutrenoAttention, lam=0.6), block=FeatScaleBlock).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all("featscale" in name for name in missing) and len(missing) == 2 * SMALL["depth"]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))
        block, x = model.blocks[0], torch.randn(2, 5, 24)
        dc_weight, hc_weight = block.featscale_dc.normal_(), block.featscale_hc.normal_()
        out = block.attn(block.norm1(x))[0]
        scaled = torch.empty_like(out)
        for sample in range(2):
            for channel in range(24):
                dc = sum(out[sample, t, channel] for t in range(5)) / 5
                for t in range(5):
                    hc = out[sample, t, channel] - dc
                    scaled[sample, t, channel] = (
                        out[sample, t, channel] + dc_weight[channel] * dc + hc_weight[channel] * hc
                    )
        y = x + scaled
        torch.testing.assert_close(block(x)[0], y + block.mlp(block.norm2(y)))


def test_featscale_is_learned_and_not_decayed():
    from timm.optim import create_optimizer_v2

    model = VisionTransformer(**SMALL, block=FeatScaleBlock)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    scales = [p for name, p in model.named_parameters() if "featscale" in name]
    assert all(p.grad.abs().sum() > 0 for p in scales)
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {id(p) for p in scales} <= undecayed
