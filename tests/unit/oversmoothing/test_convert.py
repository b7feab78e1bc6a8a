import copy
import math
from functools import partial

import pytest
import timm
import torch
from support.networks import IDS, SMALL, SPECIAL, TEXT, hugging_face, swin, t5, tiny_timm
from torch import nn
from torch.utils.checkpoint import checkpoint

from neutreno.attention import NeutrenoAttention
from neutreno.errors import InputError
from neutreno.models.language_model import LanguageModel
from neutreno.models.vit import VisionTransformer
from neutreno.oversmoothing.convert import convert

IMAGES = torch.sin(torch.arange(2 * 3 * 32 * 32.0)).view(2, 3, 32, 32)
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 50, "n_positions": 32}
bert = partial(hugging_face, "BertModel", "BertConfig", **TEXT)
gpt2 = partial(hugging_face, "GPT2LMHeadModel", "GPT2Config", **GPT2, **SPECIAL)
llama = partial(hugging_face, "LlamaModel", "LlamaConfig", **TEXT, num_key_value_heads=2)
hf_vit = partial(hugging_face, "ViTModel", "ViTConfig", **SMALL, image_size=32, patch_size=8)
albert = partial(hugging_face, "AlbertModel", "AlbertConfig", **TEXT, embedding_size=8)


def heads(x, number):
    return x.unflatten(-1, (number, -1)).transpose(1, 2)


def mixed(q, k, v, v0, lam, causal=False):
    """The paper's rule with the N × N matrix written out; v0 is None in the first layer."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    u = scores.softmax(-1) @ v
    return (u if v0 is None else u + lam * (v0 - v)).transpose(1, 2).flatten(2)


def plain_bert(model, ids, lam):
    x, v0 = model.embeddings(ids), None
    for layer in model.encoder.layer:
        own = layer.attention.self
        q, k, v = (heads(project(x), 4) for project in (own.query, own.key, own.value))
        x = layer.attention.output(mixed(q, k, v, v0, lam), x)
        v0 = v if v0 is None else v0
        x = layer.output(layer.intermediate(x), x)
    return x


def plain_gpt2(model, ids, lam):
    net, v0 = model.transformer, None
    x = net.wte(ids) + net.wpe(torch.arange(ids.shape[1]))
    for layer in net.h:
        q, k, v = (heads(part, 4) for part in layer.attn.c_attn(layer.ln_1(x)).chunk(3, -1))
        x = x + layer.attn.c_proj(mixed(q, k, v, v0, lam, causal=True))
        v0 = v if v0 is None else v0
        x = x + layer.mlp(layer.ln_2(x))
    return model.lm_head(net.ln_f(x))


def plain_llama(model, ids, lam):
    x, v0 = model.embed_tokens(ids), None
    cos, sin = (part[:, None] for part in model.rotary_emb(x, torch.arange(ids.shape[1])[None]))

    def turned(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    for layer in model.layers:
        own, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = turned(heads(own.q_proj(y), 4)), turned(heads(own.k_proj(y), 2)), heads(own.v_proj(y), 2)
        k, v = (torch.stack([x[:, head // 2] for head in range(4)], 1) for x in (k, v))  # two heads share each
        x = x + own.o_proj(mixed(q, k, v, v0, lam, causal=True))
        v0 = v if v0 is None else v0
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.norm(x)


def plain_vit(model, images, lam):
    x, v0 = model.embeddings(images), None
    for layer in model.layers:
        own, y = layer.attention, layer.layernorm_before(x)
        q, k, v = (heads(project(y), 4) for project in (own.q_proj, own.k_proj, own.v_proj))
        x = x + own.o_proj(mixed(q, k, v, v0, lam))
        v0 = v if v0 is None else v0
        x = x + layer.mlp(layer.layernorm_after(x))
    return model.layernorm(x)


HUGGING_FACE = {
    "bert": (bert, plain_bert, IDS),
    "gpt2": (gpt2, plain_gpt2, IDS),
    "llama": (llama, plain_llama, IDS),
    "vit": (hf_vit, plain_vit, IMAGES),
}


@pytest.mark.parametrize("lam", [0.6, 1.3])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_models_follow_the_plain_formula(name, lam):
    build, plain, inputs = HUGGING_FACE[name]
    model = build()
    with torch.no_grad():
        original, expected = model(inputs)[0], plain(build(), inputs, lam)
        torch.testing.assert_close(
            plain(build(), inputs, 0.0), original, rtol=0, atol=2e-5
        )  # the transcription is right
        convert(model, lam)
        torch.testing.assert_close(model(inputs)[0], expected, rtol=0, atol=2e-5)
    assert (expected - original).abs().max() > 1e-2


@pytest.mark.parametrize("kwargs", [{}, {"qkv_bias": False}], ids=["bias", "no bias"])
def test_a_converted_timm_vit_is_our_neutreno_vit(kwargs):
    theirs = tiny_timm("vit_tiny_patch16_224", img_size=32, num_classes=5, **kwargs)
    ours = VisionTransformer("tiny", img_size=32, embed_dim=24, depth=3, num_heads=4, num_classes=5,
               attention=partial(NeutrenoAttention, lam=0.6), **kwargs).eval()  # fmt: skip
    ours.load_state_dict(convert(theirs).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(theirs(IMAGES), ours(IMAGES), rtol=0, atol=1e-6)
        torch.testing.assert_close(theirs.forward_features(IMAGES), ours.forward_features(IMAGES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"qk_norm": True, "scale_attn_norm": True}], ids=["q", "scale"])
def test_norms_within_timms_attention_stay_where_they_are(options):
    model = tiny_timm("vit_tiny_patch16_224", img_size=32, **options)
    x, v0 = torch.randn(2, 5, 24), None
    expected = x
    with torch.no_grad():
        for block in model.blocks:
            own = block.attn
            q, k, v = own.qkv(block.norm1(expected)).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 1, 4)
            u = mixed(own.q_norm(q), own.k_norm(k), v, v0, 0.6)
            v0 = v if v0 is None else v0
            expected = expected + own.proj(own.norm(u))
            expected = expected + block.mlp(block.norm2(expected))
        convert(model)
        torch.testing.assert_close(model.blocks(x), expected, rtol=0, atol=1e-5)


TEXT_CLASSES = [
    (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 32, "vocab_size": 50},
    ),
    ("GPTNeoXModel", "GPTNeoXConfig", TEXT),  # q, k and v of a head side by side
    ("BloomModel", "BloomConfig", {"hidden_size": 16, "n_layer": 3, "n_head": 4, "vocab_size": 50}),
    ("FalconModel", "FalconConfig", {**TEXT, "multi_query": True}),
    ("FalconModel", "FalconConfig", {**TEXT, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("Phi3Model", "Phi3Config", {**TEXT, "num_key_value_heads": 2, "pad_token_id": 0}),
    (
        "OPTModel",
        "OPTConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 32,
            "vocab_size": 50,
            "word_embed_proj_dim": 16,
        },
    ),
]


@pytest.mark.parametrize(
    "kind, config, kwargs", TEXT_CLASSES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_values_are_found_in_every_layout(kind, config, kwargs):
    """A single token sees itself alone, U = V; so at λ̃ = 1 every layer's output projection is given V_0, repeated."""
    model, seen = convert(hugging_face(kind, config, **kwargs), 1.0), []
    for module in model.modules():
        if hasattr(module, "_fidelity"):
            module._fidelity.output.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        model(torch.full((1, 1), 7))
    first, *others = seen
    assert len(others) == 2
    for u in others:
        torch.testing.assert_close(u, first, rtol=0, atol=1e-5)


MODELS = {
    "timm": (partial(tiny_timm, "vit_tiny_patch16_224", img_size=32), IMAGES),
    "albert": (albert, IDS),
    "own": (lambda: VisionTransformer("mini", img_size=32, patch_size=8, depth=3).eval(), IMAGES),
    "language model": (lambda: LanguageModel(50, 16, 3, 4, 2, init_std=0.3).eval(), IDS),
    **{name: (build, inputs) for name, (build, _, inputs) in HUGGING_FACE.items()},
}


def output(model, inputs):
    found = model(inputs)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize("name", MODELS)
def test_lam_zero_is_the_model_bit_for_bit_and_none_takes_the_term_out(name):
    build, inputs = MODELS[name]
    model = build()
    with torch.no_grad():
        before = output(model, inputs)
        names = list(model.state_dict())
        assert convert(model, 0.6) is model and list(model.state_dict()) == names
        converted = output(model, inputs)
        assert not torch.allclose(converted, before, atol=1e-3)
        assert torch.equal(output(convert(model, 0), inputs), before)
        assert torch.equal(output(convert(model, 0.6), inputs), converted)  # replaced, not added once more
        assert torch.equal(output(convert(model, None), inputs), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any(hasattr(m, "_fidelity") for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_is_converted_on_its_own(name):
    build, inputs = MODELS[name]
    model = convert(build())
    converted = output(model, inputs)  # with a graph, which no copy can hold
    copied = copy.deepcopy(model)
    assert torch.equal(output(copied, inputs), converted)
    convert(copied, None)
    assert torch.equal(output(model, inputs), converted)
    assert not torch.equal(output(copied, inputs), converted)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert torch.equal(output(convert(copied), inputs), converted)


def test_weights_save_and_load_under_the_same_names(tmp_path):
    build, inputs = MODELS["gpt2"]
    model = convert(build())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    model.save_pretrained(tmp_path / "saved")
    for source in ("state_dict", "save_pretrained"):
        if source == "state_dict":
            again = type(model)(model.config).eval()
            again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        else:
            again = type(model).from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(again(inputs)[0], build()(inputs)[0])  # weights alone are saved, not the term
        assert torch.equal(convert(again)(inputs)[0], model(inputs)[0])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_gradient_checkpointing_gives_the_same_gradients_in_hugging_face_models(name):
    build, inputs = MODELS[name]
    plain, recomputing = convert(build()), convert(build().train())
    for module in recomputing.modules():  # all of these without dropout
        module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
        module.attention_dropout = 0.0
    recomputing.gradient_checkpointing_enable({"use_reentrant": False})
    assert recomputing.is_gradient_checkpointing
    other = inputs.flip(0)

    def loss(model):  # two graphs at once: each must find its own V_0
        return output(model, inputs).square().mean() + output(model, other).sin().mean()

    expected, found = gradients(plain, loss(plain)), gradients(recomputing, loss(recomputing))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_gradient_checkpointing_gives_the_same_gradients_in_timm_models():
    build, inputs = MODELS["timm"]
    plain, recomputing = convert(build()), convert(build())
    recomputing.set_grad_checkpointing()
    expected = gradients(plain, plain(inputs).square().mean() + plain(inputs.flip(0)).sin().mean())
    found = gradients(recomputing, recomputing(inputs).square().mean() + recomputing(inputs.flip(0)).sin().mean())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_reentrant_checkpointing_is_refused_rather_than_wrong():
    build, inputs = MODELS["timm"]
    model = convert(build())
    x = model.patch_embed(inputs).requires_grad_()
    for block in model.blocks:
        x = checkpoint(block, x, use_reentrant=True)
    with pytest.raises(InputError, match="use_reentrant=False"):
        x.sum().backward()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_a_cache_gives_the_logits_without(name):
    build, inputs = MODELS[name]
    model = convert(build())
    with torch.no_grad():
        expected, cache, found = output(model, inputs), None, []
        for part in (inputs[:, :3], inputs[:, 3:4], inputs[:, 4:6], inputs[:, 6:]):
            step = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            found.append(step[0])
        torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-5)
        if name == "gpt2":
            cached, uncached = (
                model.generate(IDS, max_new_tokens=5, do_sample=False, use_cache=c) for c in (True, False)
            )
            assert torch.equal(cached, uncached)


@pytest.mark.parametrize("name", ["gpt2", "llama", "language model"])
def test_no_token_sees_a_later_one(name):
    build, inputs = MODELS[name]
    model = convert(build())
    changed = inputs.clone()
    changed[:, 4] = 49
    with torch.no_grad():
        before, after = output(model, inputs), output(model, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-3)


def test_the_gradient_of_a_later_layer_reaches_the_first_layers_values():
    model = convert(bert(), 0.6)
    first, last = model.encoder.layer[0].attention.self.value, model.encoder.layer[-1].attention
    seen = {}
    last.output.dense.register_forward_pre_hook(lambda m, args: seen.update(u=args[0]))
    first.register_forward_hook(lambda m, args, out: seen.update(v0=out))
    model(IDS)
    (by_v0,) = torch.autograd.grad(seen["u"].sum(), seen["v0"], retain_graph=True)
    model(IDS)
    convert(model, None)
    model(IDS)
    (without,) = torch.autograd.grad(seen["u"].sum(), seen["v0"])
    assert (by_v0 - without).abs().max() > 0.1


def test_training_a_converted_model_lowers_its_loss():
    torch.manual_seed(0)
    model = convert(hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2, **SPECIAL)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_cross_attention_is_left_alone_and_both_stacks_have_their_own_v0():
    model = t5()
    convert(model)
    names = [name for name, module in model.named_modules() if hasattr(module, "_fidelity")]
    assert len(names) == 4 and all(name.endswith("SelfAttention") for name in names)
    with torch.no_grad():
        encoded = model.encoder(IDS)[0]
        decoded = model(encoder_outputs=(encoded,), decoder_input_ids=IDS)[0]
        torch.testing.assert_close(model(input_ids=IDS, decoder_input_ids=IDS)[0], decoded)
        convert(model.encoder, None)
        others = model(encoder_outputs=(encoded,), decoder_input_ids=IDS)[0]
        convert(model, None)
        assert torch.equal(others, decoded)
        assert not torch.allclose(model(encoder_outputs=(encoded,), decoder_input_ids=IDS)[0], decoded, atol=1e-3)


class Own(nn.Module):
    """A user's own transformer of a kind that convert() must see through."""

    class Attention(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how, self.num_heads = how, 2
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            linear, parameters = nn.functional.linear, (self.qkv.weight, self.qkv.bias)
            qkv = linear(x, *parameters) if self.how == "functional" else self.qkv(x)
            q, k, v = (heads(part, 2) for part in qkv.chunk(3, -1))
            if self.how == "values first":
                q, v = v, q
            u = mixed(q, k, v, None, 0.0)
            return self.proj(u * x.sigmoid() if self.how == "gated" else u)

    class Layer(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how, self.attention, self.mlp = how, Own.Attention(how), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.mlp(x) + (0 if self.how == "skipped" else self.attention(x))

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.layers = nn.ModuleList(Own.Layer(how) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = 2 * layer(x) if self.how == "between" else layer(x)
        return x


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: tiny_timm("beit_base_patch16_224", img_size=32), r"Attention \(blocks\.0\.attn\) adds a bias"),
        (swin, r"WindowAttention \(layers\.0\.blocks\.0\.attn\) attends within windows"),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2), "MultiheadAttention in layers.0"),
        (
            lambda: VisionTransformer("mini", depth=2, attention=NeutrenoAttention),
            "NeutrenoAttention .* choose its λ̃ where the model",
        ),
        (lambda: timm.create_model("cait_xxs24_224", img_size=32, depth=2), "TalkingHeadAttn .* weighted means"),
        (lambda: timm.create_model("resnet18"), "no layers found in ResNet"),
        (lambda: Own("functional"), "does not call Linear for its values"),
        (lambda: Own("values first"), "does not hand weighted means of its values"),
        (lambda: Own("gated"), "does not hand weighted means of its values"),
        (
            lambda: hugging_face(
                "CodeGenModel", "CodeGenConfig", n_embd=32, n_layer=2, n_head=8, rotary_dim=2, vocab_size=50
            ),
            "CodeGenAttention",
        ),
    ],
    ids=["beit", "swin", "torch", "own", "cait", "resnet", "functional", "order", "gated", "codegen"],
)
def test_what_cannot_be_converted_is_refused_and_left_as_it_was(build, words):
    model = build()
    modes = [module.training for module in model.modules()]
    with pytest.raises(InputError, match=words) as caught:
        convert(model)
    assert "\n" not in str(caught.value)
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_fidelity") for m in model.modules())


def test_a_converted_layer_whose_values_are_not_seen_says_so_at_the_first_forward():
    model = convert(Own("skipped"))
    with pytest.raises(InputError, match=r"were not seen in layers\.0\.attention \(Attention\)"):
        model(torch.randn(2, 3, 8))


def test_a_layer_that_runs_without_the_first_one_says_so():
    model = convert(Own("plain"))
    for x in (torch.randn(2, 3, 8), model(torch.randn(2, 3, 8)) + 1):
        with pytest.raises(InputError, match="the first layer has not run before in layers"):
            model.layers[1](x)


@pytest.mark.parametrize("how", ["plain", "between"])
def test_a_model_of_ones_own_is_converted(how):
    model, x = Own(how), torch.randn(2, 5, 8)
    expected, v0 = x, None
    for layer in model.layers:
        q, k, v = (heads(part, 2) for part in layer.attention.qkv(expected).chunk(3, -1))
        u = mixed(q, k, v, v0, 0.4)
        v0 = v if v0 is None else v0
        expected = (expected + layer.mlp(expected) + layer.attention.proj(u)) * (2 if how == "between" else 1)
    torch.testing.assert_close(convert(model, 0.4)(x), expected)


@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf, "abc", True])
def test_lam_must_be_a_finite_number_not_below_zero(lam):
    with pytest.raises(InputError, match=f"lam={lam!r} is not a finite number"):
        convert(bert(), lam)
