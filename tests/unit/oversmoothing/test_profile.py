import math
import warnings
from functools import partial

import pytest
import timm
import torch
from support.networks import IDS, SMALL, SPECIAL, TEXT, hugging_face, swin, t5, tiny_timm
from torch import nn

from neutreno.attention import NeutrenoAttention
from neutreno.errors import InputError
from neutreno.models.segmenter import Segmenter
from neutreno.models.vit import VisionTransformer
from neutreno.oversmoothing.layers import find_layers
from neutreno.oversmoothing.metrics import effective_rank, mean_cosine_similarity, rank_collapse_residual
from neutreno.oversmoothing.profile import profile

TEXT_MODELS = {  # name: model, where its final norm is
    "bert": (partial(hugging_face, "BertModel", "BertConfig", **TEXT), None),
    "roberta": (partial(hugging_face, "RobertaModel", "RobertaConfig", **TEXT), None),
    "gpt2": (
        partial(hugging_face, "GPT2Model", "GPT2Config", n_embd=16, n_layer=3, n_head=4, vocab_size=50, **SPECIAL),
        "ln_f",
    ),
    "llama": (partial(hugging_face, "LlamaModel", "LlamaConfig", **TEXT, num_key_value_heads=2), "norm"),
}


FORMULAS = {"cosine": mean_cosine_similarity, "residual": rank_collapse_residual, "effective_rank": effective_rank}


def assert_measured(table, stack, hidden, mask=None, subset="all"):
    """The rows of a stack are the metrics of these tokens, sample by sample."""
    rows = table[(table["stack"] == stack) & (table["subset"] == subset)]
    assert rows.layer.max() == len(hidden) - 1 and set(rows.metric) == set(FORMULAS)
    for layer, x in enumerate(hidden):
        samples = [sample if mask is None else sample[mask[i]] for i, sample in enumerate(x)]
        for metric, formula in FORMULAS.items():
            values = torch.stack([formula(sample) for sample in samples])
            row = rows[(rows.layer == layer) & (rows.metric == metric)].squeeze()
            assert row["mean"] == pytest.approx(values.mean().item(), abs=1e-5), (layer, metric)
            assert row.sd == pytest.approx(values.std().item(), abs=1e-5), (layer, metric)
            assert (row.samples, row.dim) == (len(x), x.shape[-1])
            assert row.tokens == pytest.approx(sum(map(len, samples)) / len(samples))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_hugging_face_text_models_have_the_measures_of_their_own_hidden_states(name, padded):
    build, norm = TEXT_MODELS[name]
    model = build()
    mask = torch.ones_like(IDS)
    if padded:
        mask[0, 4:] = mask[2, 3:] = 0
    table = profile(model, {"input_ids": IDS, "attention_mask": mask})
    if norm:
        setattr(model, norm, nn.Identity())  # the last of the hidden states is normed, and no layer's output
    with torch.no_grad():
        hidden = model(input_ids=IDS, attention_mask=mask, output_hidden_states=True).hidden_states
    assert table["stack"].nunique() == 1
    assert_measured(table, table["stack"][0], hidden, mask.bool() if padded else None)


def test_encoder_and_decoder_are_stacks_with_padding_of_their_own():
    model = t5()
    mask, decoder_mask = torch.ones_like(IDS), torch.ones_like(IDS)
    mask[0, 4:] = decoder_mask[1, 5:] = 0
    inputs = {"input_ids": IDS, "attention_mask": mask}
    inputs |= {"decoder_input_ids": IDS.flip(0), "decoder_attention_mask": decoder_mask}
    table = profile(model, [inputs])
    model.encoder.final_layer_norm = nn.Identity()
    with torch.no_grad():
        encoder = model(**inputs, output_hidden_states=True).encoder_hidden_states
    assert_measured(table, "encoder.block", encoder, mask.bool())
    model = t5()
    model.decoder.final_layer_norm = nn.Identity()
    with torch.no_grad():
        decoder = model(**inputs, output_hidden_states=True).decoder_hidden_states
    assert_measured(table, "decoder.block", decoder, decoder_mask.bool())


def test_a_layer_that_runs_several_times_counts_at_each_call():
    model = hugging_face("AlbertModel", "AlbertConfig", **TEXT, embedding_size=8)
    with torch.no_grad():
        hidden = model(input_ids=IDS, output_hidden_states=True).hidden_states
    table = profile(model, {"input_ids": IDS})
    assert_measured(table, table["stack"][0], hidden)
    assert table.name.nunique() == 1


def test_hugging_face_vit_has_the_measures_of_its_own_hidden_states():
    model = hugging_face("ViTModel", "ViTConfig", **SMALL, image_size=32, patch_size=8)
    images = torch.randn(4, 3, 32, 32)
    table = profile(model, {"pixel_values": images})
    model.layernorm = nn.Identity()
    with torch.no_grad():
        hidden = model(images, output_hidden_states=True).hidden_states
    assert_measured(table, table["stack"][0], hidden)
    assert table.tokens.unique().tolist() == [17]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224"])
def test_timm_vits_have_the_measures_of_timms_intermediates(name):
    model, images = tiny_timm(name), torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        patches = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        hidden = [model.blocks[0].register_forward_pre_hook(lambda m, args: tokens.extend(args))]
        tokens = []
        for block in model.blocks:
            hidden.append(block.register_forward_hook(lambda m, args, out: tokens.append(out)))
        model(images)
        for hook in hidden:
            hook.remove()
    for x, of_timm in zip(tokens[1:], patches, strict=True):
        assert torch.equal(x[:, 1:], of_timm)  # timm leaves the class token out
    assert_measured(profile(model, images), "blocks", tokens)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_base_patch16_gap_224"])
def test_other_vits_of_timm_are_found(name):
    kwargs = {"img_size": 56, "embed_dim": 32} if "14" in name else {}
    table = profile(tiny_timm(name, **kwargs), torch.randn(2, 3, *[kwargs.get("img_size", 64)] * 2), ["cosine"])
    assert table.layer.tolist() == [0, 1, 2, 3] and table.tokens.unique().tolist() == [17 - ("gap" in name)]


def test_every_stage_of_swin_is_a_stack_of_the_positions_of_its_maps():
    model, images = swin(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_intermediates(images, intermediates_only=True)
    table = profile(model, images, ["cosine"])
    stacks = [f"layers.{stage}.blocks" for stage in range(4)]
    assert table["stack"].unique().tolist() == stacks
    for stack, x in zip(stacks, maps, strict=True):
        last = table[table["stack"] == stack].iloc[-1]
        assert last["mean"] == pytest.approx(mean_cosine_similarity(x.flatten(2).mT).mean().item(), abs=1e-6)
        assert (last.tokens, last.dim) == (x.shape[2] * x.shape[3], x.shape[1])


@pytest.mark.parametrize("name, side", [("maxvit_rmlp_pico_rw_256", 256), ("mobilevit_xxs", 256)])
def test_maps_with_channels_first_are_read_position_by_position(name, side):
    model = timm.create_model(name).eval()
    shapes = {}
    for layer in find_layers(model):
        layer.module.register_forward_hook(lambda m, args, out, name=layer.name: shapes.update({name: out.shape}))
    table = profile(model, torch.randn(1, 3, side, side), ["cosine"])
    for row in table[table.layer > 0].itertuples():
        shape = shapes[row.name]
        assert (row.tokens, row.dim) == ((shape[2] * shape[3], shape[1]) if len(shape) == 4 else tuple(shape[1:]))


def test_layers_that_see_a_single_token_are_left_out_with_a_warning():
    model = timm.create_model("cait_xxs24_224", img_size=32, depth=2).eval()
    with pytest.warns(UserWarning, match=r"blocks_token_only\.0 has a single token; left out"):
        table = profile(model, torch.randn(2, 3, 32, 32), ["cosine"])
    assert set(table["stack"]) == {"blocks"}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_torchs_encoder_is_read_with_its_own_order_of_axes_and_padding(batch_first, padded):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=batch_first).eval()
    x = torch.randn(4, 7, 16)
    padding = torch.zeros(4, 7, dtype=torch.bool)
    padding[1, 4:] = padding[3, 2:] = padded
    given = x if batch_first else x.transpose(0, 1)
    table = profile(model, {"src": given, "src_key_padding_mask": padding} if padded else [given])
    hidden, mask = [x], torch.zeros(4, 7).masked_fill(padding, -math.inf)
    with torch.no_grad():
        for block in model.layers:
            block.self_attn.batch_first = True
            hidden.append(block(hidden[-1], src_key_padding_mask=mask))
    assert_measured(table, "layers", hidden, ~padding)


def test_torchs_transformer_has_two_stacks():
    model = nn.Transformer(16, 4, 2, 3, 32, batch_first=True).eval()
    src, tgt = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    table = profile(model, {"src": src, "tgt": tgt}, ["cosine"])
    ends = table.groupby("stack")[["layer", "tokens"]].max()
    assert ends.loc["encoder.layers"].tolist() == [2, 6] and ends.loc["decoder.layers"].tolist() == [3, 4]


def test_our_own_models_have_the_metrics_of_their_tokens_and_of_patches_alone():
    model = VisionTransformer("mini", img_size=16, patch_size=4, depth=3, attention=NeutrenoAttention).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        hidden = model.hidden_states(images)
    assert_measured(profile(model, images), "blocks", hidden)
    model = Segmenter("mini", img_size=16, patch_size=4, num_classes=3).eval()
    decoded = []
    for block in model.decoder.blocks:
        block.register_forward_hook(
            lambda module, args, out: decoded.extend([args[0], out[0]] if args[1] is None else [out[0]])
        )
    with torch.no_grad():
        hidden = model.encoder.hidden_states(images)
        model(images)
    for block in model.decoder.blocks:
        block._forward_hooks.clear()
        block._forward_pre_hooks.clear()
    table = profile(model, images)
    for subset, encoder, decoder in (("all", slice(None), slice(None)), ("patch", slice(1, None), slice(0, -3))):
        assert_measured(table, "encoder.blocks", [x[:, encoder] for x in hidden], subset=subset)
        assert_measured(table, "decoder.blocks", [x[:, decoder] for x in decoded], subset=subset)


def test_the_model_is_left_as_it_was_even_by_an_error():
    model = tiny_timm("vit_tiny_patch16_224").train()
    model.blocks[1].eval()  # frozen by its user
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    for images, fails in ((torch.randn(2, 3, 64, 64), False), (torch.full((2, 3, 64, 64), math.nan), True)):
        if fails:
            with pytest.raises(InputError, match=r"blocks\.0: cosine similarity: the tokens contain NaN or Inf"):
                profile(model, images)
        else:
            profile(model, images)
        assert [module.training for module in model.modules()] == modes
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled() == fast


def test_a_half_precision_model_is_measured_in_float32_and_stays_half():
    model = tiny_timm("vit_tiny_patch16_224").bfloat16()
    expected = profile(tiny_timm("vit_tiny_patch16_224").bfloat16().float(), images := torch.randn(2, 3, 64, 64))
    found = profile(model, images)
    assert found.equals(expected) and model.patch_embed.proj.weight.dtype == torch.bfloat16


def test_batches_of_every_kind_give_the_same_table():
    model, images = tiny_timm("vit_tiny_patch16_224"), torch.randn(6, 3, 64, 64)
    whole, labels = profile(model, images), torch.zeros(2)
    kinds = [images.split(2), ((part, labels) for part in images.split(2)), [{"x": part} for part in images.split(2)]]
    for batches in kinds:
        found = profile(model, batches)
        assert found.samples.unique().tolist() == [6]
        torch.testing.assert_close(
            torch.tensor(found[["mean", "sd"]].values), torch.tensor(whole[["mean", "sd"]].values)
        )
    assert profile(model, images, batch_size=2).equals(profile(model, images.split(2)))


def test_layers_can_be_named():
    model, images = timm.create_model("mixer_s32_224", img_size=64).eval(), torch.randn(2, 3, 64, 64)
    table = profile(model, images, ["cosine"], layers="blocks.*")
    assert table.name.unique().tolist() == [f"blocks.{i}" for i in range(8)] and table.layer.max() == 8
    table = profile(model, images, ["cosine"], layers=["blocks.1", "blocks.3"])
    assert table.name.tolist() == ["blocks.1", "blocks.1", "blocks.3"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"metrics": ["attention_entropy"]}, "attention_entropy needs attention weights, which are not there"),
        ({"metrics": ["cosin"]}, "no layer-wise metric cosin; available: cosine"),
        ({"metrics": []}, "names no layer-wise metric"),
        (
            {"layers": "encoder.layer.*"},
            r"no module named 'encoder\.layer\.\*'; its containers are: blocks \(3 × Block\)",
        ),
        ({"layers": "blocks.0.norm1.nothing"}, "no module named"),
        ({"layers": "head_drop", "batches": torch.randn(2, 3, 64, 64)}, "head_drop gives no tokens"),
        ({"batches": []}, "nothing was measured in VisionTransformer"),
        ({"batches": 3}, "batches is a int"),
        ({"batches": "images"}, "batches is a str"),
        ({"batches": [None]}, "a batch is a NoneType"),
        ({"batch_size": 0}, "batch_size=0 is not a whole number"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(value),
)
def test_what_cannot_be_profiled_is_said_in_a_line(arguments, words):
    arguments = {"batches": torch.randn(2, 3, 64, 64), **arguments}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((InputError, UserWarning), match=words) as caught:
            profile(tiny_timm("vit_tiny_patch16_224"), **arguments)
    assert "\n" not in str(caught.value)


def test_a_model_without_transformer_layers_is_told_what_was_looked_for():
    with pytest.raises(InputError) as caught:
        profile(timm.create_model("resnet18"), torch.randn(1, 3, 64, 64))
    for words in (
        "ResNet",
        "nn.ModuleList or nn.Sequential",
        "Attention",
        "layers='blocks.*'",
        "layer1 (2 × BasicBlock)",
    ):
        assert words in str(caught.value)
