import copy
import math
import warnings
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from neutreno.attention import NeutrenoAttention, anchored
from neutreno.errors import InputError
from neutreno.models.timm import timm_model
from neutreno.models.vit import VisionTransformer
from neutreno.oversmoothing.convert import convert
from neutreno.oversmoothing.energies import measure_energies
from neutreno.oversmoothing.measure import measure
from neutreno.oversmoothing.metrics import (
    LayerTokens,
    attention_entropy,
    dirichlet_energy,
    effective_rank,
    high_frequency_share,
    known_metrics,
    layerwise_metric,
    mean_cosine_similarity,
    metric_named,
    named_metrics,
    probed,
    rank_collapse_residual,
)
from neutreno.oversmoothing.probe import OversmoothingProbe
from neutreno.oversmoothing.profile import profile
from neutreno.oversmoothing.recorder import tokens_of
from neutreno.reports.layers import curve, logged_name


def plain_cosine(x):
    """N × N, pair by pair."""
    n = x.shape[-2]
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j and x[i].norm() > 0 and x[j].norm() > 0:
                total += (x[i] @ x[j] / (x[i].norm() * x[j].norm())).item()
    return total / (n * (n - 1))


def plain_dirichlet(x, kernel=None):
    n = x.shape[-2]
    kernel = torch.full((n, n), 1 / n, dtype=torch.float64) if kernel is None else kernel
    return sum(kernel[i, j] * (x[i] - x[j]).square().sum() / 2 for i in range(n) for j in range(n)).item()


def averaging(n):
    """D = 11ᵀ / N as a matrix: D X is 1 x̄ᵀ."""
    return torch.full((n, n), 1 / n, dtype=torch.float64)


def plain_cosine_layernorm(x):
    return plain_cosine(torch.stack([token - token.sum() / len(token) for token in x]))


def plain_residual(x):
    rest, whole = x - averaging(len(x)) @ x, x.square().sum().sqrt()
    return (rest.square().sum().sqrt() / whole).item() if whole > 0 else 0.0


def plain_high_frequency(x):
    mean = averaging(len(x)) @ x
    rest = (x - mean).square().sum().sqrt()
    return (rest / mean.square().sum().sqrt()).item() if rest > 0 else 0.0


def plain_effective_rank(x):
    """From the eigenvalues of the N × N Gram matrix."""
    values = torch.linalg.eigvalsh(x @ x.mT).clamp(min=0).sqrt()
    values[values < 1e-6 * values.max()] = 0  # the square root of rounding
    p = [(value / values.sum()).item() for value in values if value > 0]
    return math.exp(-sum(q * math.log(q) for q in p)) if p else 0.0


PLAIN = {
    "cosine": plain_cosine,
    "cosine_layernorm": plain_cosine_layernorm,
    "dirichlet": plain_dirichlet,
    "residual": plain_residual,
    "high_frequency": plain_high_frequency,
    "effective_rank": plain_effective_rank,
}


def measured(name, x):
    return metric_named(name).function(LayerTokens(x))


def test_every_metric_of_features_alone_has_its_plain_definition():
    assert PLAIN.keys() == {name for name in known_metrics() if not metric_named(name).needs}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("tokens, dim", [(2, 3), (17, 64), (50, 5)])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_equals_the_plain_n_by_n_definition(name, tokens, dim, shift):
    torch.manual_seed(0)
    x = torch.randn(3, tokens, dim, dtype=torch.float64) + shift
    x[0, 1] = 0  # a zero token: orthogonal to all others
    x[1, 1] = x[1, 0]
    expected = torch.tensor([PLAIN[name](sample) for sample in x], dtype=torch.float64)
    torch.testing.assert_close(measured(name, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_identical_tokens(name, scale):
    x = (scale * torch.randn(2, 1, 8)).expand(2, 9, 8)
    expected = 1.0 if name.startswith("cosine") or name == "effective_rank" else 0.0
    torch.testing.assert_close(
        measured(name, x) / (scale**2 if name == "dirichlet" else 1),
        torch.full((2,), expected).double(),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", PLAIN)
def test_zero_tokens_give_zero_not_nan(name):
    assert measured(name, torch.zeros(2, 4, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("name", PLAIN)
def test_a_single_token_gives_zero_with_a_warning(name):
    with pytest.warns(UserWarning, match="at least two tokens"):
        assert measured(name, torch.randn(5, 1, 3)).tolist() == [0] * 5


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_precision_are_measured_in_float64(name, dtype):
    x = (100 * torch.randn(2, 3, 9, 6)).to(dtype)
    assert measured(name, x).shape == (2, 3) and measured(name, x).dtype == torch.float64
    assert torch.equal(measured(name, x), measured(name, x.double()))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", ["1e300", "1e-300", "one huge", "opposite", "one not zero", "integers"])
def test_no_tokens_give_nan(name, kind):
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    if kind.startswith("1e"):
        x = x * float(kind) if name != "dirichlet" else x
    elif kind == "one huge":
        x[2] *= 1e30
    elif kind == "opposite":
        x[3:] = -x[:3]
    elif kind == "one not zero":
        x[1:] = 0
    else:
        x = torch.arange(24).reshape(6, 4)
    assert not measured(name, x).isnan()


def test_opposite_tokens():
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert mean_cosine_similarity(x).item() == pytest.approx(-1)
    assert high_frequency_share(x).item() == math.inf and rank_collapse_residual(x).item() == 1
    assert effective_rank(x).item() == pytest.approx(1)


def test_orthogonal_tokens():
    x = 3 * torch.eye(6)
    torch.testing.assert_close(mean_cosine_similarity(x).item(), 0.0, rtol=0, atol=1e-12)
    assert effective_rank(x).item() == pytest.approx(6)


def test_dirichlet_energy_takes_any_kernel():
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 7, 3, dtype=torch.float64), torch.rand(2, 7, 7, dtype=torch.float64)
    expected = [plain_dirichlet(sample, k) for sample, k in zip(x, kernel, strict=True)]
    torch.testing.assert_close(dirichlet_energy(x, kernel).tolist(), expected)


def test_attention_entropy_equals_the_plain_sum():
    torch.manual_seed(0)
    a = torch.rand(2, 3, 5, 5).tril().add(torch.eye(5) * 1e-3)  # a causal map: zeros, where 0 log 0 is 0
    a = a / a.sum(-1, keepdim=True)
    expected = [sum(-p * math.log(p) for p in sample.flatten().tolist() if p > 0) / (3 * 5) for sample in a]
    torch.testing.assert_close(attention_entropy(a).tolist(), expected, rtol=1e-6, atol=0)
    assert attention_entropy(torch.full((1, 8, 8), 1 / 8)).item() == pytest.approx(math.log(8))
    assert attention_entropy(torch.eye(8)[None]).item() == 0
    with pytest.warns(UserWarning, match="at least two tokens"):
        assert attention_entropy(torch.ones(2, 3, 1, 1)).tolist() == [0, 0]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("x", [torch.ones(5), torch.randn(0, 3), torch.randn(3, 0), [[1.0, 2.0]]], ids=str)
def test_the_wrong_rank_of_tensor_is_refused(name, x):
    with pytest.raises(InputError, match=r"is measured on tokens of shape \(…, N, d\)"):
        measured(name, x)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tokens_that_are_not_finite_are_refused(name, value):
    x = torch.randn(3, 4)
    x[1, 2] = value
    with pytest.raises(InputError, match="NaN or Inf"):
        measured(name, x)


@pytest.mark.parametrize(
    "a, said", [(torch.rand(3, 3), "not \\(3, 3\\)"), (torch.rand(1, 3, 4), "weights"), (-torch.ones(1, 2, 2), "≥ 0")]
)
def test_weights_that_are_no_attention_are_refused(a, said):
    with pytest.raises(InputError, match=said):
        attention_entropy(a)


@pytest.mark.parametrize("metrics", ["cosine", ["cosin"], [], None, 3])
def test_metrics_are_named_in_a_list(metrics):
    with pytest.raises(InputError, match=r"^probe\.metrics.*available: cosine, .*attention_entropy"):
        named_metrics(metrics)


def test_the_metrics_of_a_network_are_those_of_its_tokens_and_weights():
    torch.manual_seed(0)
    model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=3, num_classes=5)
    images = torch.randn(5, 1, 8, 8)
    rows = measure(model, images, ["effective_rank", "attention_entropy"], batch_size=2)
    hidden = model.eval().hidden_states(images)
    for subset, tokens in (("all", slice(None)), ("patch", slice(1, None))):
        found = [row for row in rows if (row["metric"], row["subset"]) == ("effective_rank", subset)]
        assert [row["layer"] for row in found] == [0, 1, 2, 3]
        for row, x in zip(found, hidden, strict=True):
            assert row["mean"] == pytest.approx(effective_rank(x[:, tokens]).mean().item())
            assert row["sd"] == pytest.approx(effective_rank(x[:, tokens]).std().item()) and row["samples"] == 5
    entropies = [row["mean"] for row in rows if row["metric"] == "attention_entropy"]
    assert len(entropies) == 3
    q, k, _ = model.blocks[1].attn.project(model.blocks[1].norm1(hidden[1]))
    expected = attention_entropy(torch.softmax(q @ k.mT / 4, dim=-1)).mean().item()
    assert entropies[1] == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(model, images)[0]["metric"] == "cosine"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_what_a_metric_needs_and_is_not_there_leaves_it_out_and_is_said():
    model = timm_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    with pytest.warns(
        UserWarning,
        match=r"attention_entropy needs attention weights, which are not there \(in net.blocks.0\); left out",
    ):
        rows = measure(model, torch.randn(2, 3, 32, 32), ["cosine", "attention_entropy"])
    assert {row["metric"] for row in rows} == {"cosine"}
    with pytest.warns(UserWarning, match="of_labels needs labels"):
        rows = measure(model, torch.randn(2, 3, 32, 32), ["cosine", f"{__name__}.of_labels"])
    assert {row["metric"] for row in rows} == {"cosine"}


@layerwise_metric(needs=["labels", "inputs"])
def of_labels(tokens):
    """Of each sample: its label, how many of its tokens count, and the mean of its input."""
    count = tokens.per_sample(lambda x: torch.full((len(x),), x.shape[1]))
    return 100 * tokens.labels + count + tokens.inputs.mean((1, 2, 3))


@layerwise_metric(name="spread", needs=["labels"], whole_set=True)
def between_classes(tokens):
    """Distance of the two classes' mean tokens, over all samples of the probe set."""
    means = [tokens.of(tokens.labels == label).features.mean((0, 1)) for label in (0, 1)]
    return (means[0] - means[1]).norm()


def test_a_metric_may_need_labels_and_inputs_or_the_whole_probe_set():
    torch.manual_seed(0)
    model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5)
    images, labels = torch.randn(7, 1, 8, 8), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    paths = [f"{__name__}.{name}" for name in ("of_labels", "between_classes")]
    rows = measure(model, (images, labels), paths, batch_size=3)
    found = {(r["metric"], r["subset"], r["layer"]): r for r in rows}
    assert len(found) == 2 * 2 * 3
    for subset, count in (("all", 17), ("patch", 16)):
        expected = 100 * labels + count + images.mean((1, 2, 3))
        assert found["of_labels", subset, 2]["mean"] == pytest.approx(expected.double().mean().item())
        assert found["of_labels", subset, 2]["sd"] == pytest.approx(expected.double().std().item())
    hidden = model.eval().hidden_states(images)[2]
    expected = (hidden[labels == 0].mean((0, 1)) - hidden[labels == 1].mean((0, 1))).norm().item()
    row = found["spread", "all", 2]
    assert row["mean"] == pytest.approx(expected, rel=1e-5) and row["sd"] is None and row["samples"] == 7


class InPlace(torch.nn.Module):
    """Layers that write over the tokens of the layer before."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    def token_layers(self):
        return {"layers": [f"layers.{i}" for i in range(3)]}

    def forward(self, x):
        x = x.clone()
        for layer in self.layers:
            x += layer(x)
        return x


@layerwise_metric(whole_set=True)
def mean_of_all(tokens):
    return tokens.features.mean()


def test_tokens_of_the_whole_set_are_kept_as_they_were():
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(6, 5, 4)
    rows = measure(model, x, [f"{__name__}.mean_of_all"], batch_size=4)
    assert rows[0]["mean"] == pytest.approx(x.double().mean().item(), abs=1e-6)
    assert len({row["mean"] for row in rows}) == 4


def test_a_metric_that_gives_no_number_leaves_a_gap():
    model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5)
    rows = measure(model, torch.randn(3, 1, 8, 8), [f"{__name__}.nothing"])
    assert {(row["mean"], row["sd"]) for row in rows} == {(None, None)}
    assert all(map(math.isnan, curve(rows, metric="nothing"))) and len(curve(rows, metric="nothing")) == 3


@layerwise_metric()
def nothing(tokens):
    return torch.full((len(tokens.features),), math.nan)


def test_attention_is_measured_where_hooks_watch_its_projections():
    torch.manual_seed(0)
    model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5)
    images, metrics = torch.randn(3, 1, 8, 8), ["attention_entropy", "J", "G"]
    expected = measure(vit_with_term(model, 0.3), images, metrics)
    found = measure(convert(model, 0.3), images, metrics)
    for row, plain in zip(found, expected, strict=True):
        assert row["mean"] == pytest.approx(plain["mean"], rel=1e-5), row


def vit_with_term(model, lam):
    attention = partial(NeutrenoAttention, lam=lam)
    other = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5, attention=attention)
    other.load_state_dict(model.state_dict())
    return other


def test_a_sample_of_padding_alone_counts_nowhere():
    x, mask = torch.randn(3, 4, 6), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    weights = torch.rand(3, 2, 4, 4).softmax(-1)
    tokens = LayerTokens(x, mask, weights=lambda: weights, values=lambda: (x, x)).of(mask.any(1))
    assert torch.equal(tokens.weights(), weights[[0, 2]]) and torch.equal(tokens.values()[0], x[[0, 2]])
    found = metric_named("cosine").function(tokens)
    assert found.tolist() == pytest.approx([plain_cosine(x[0].double()), plain_cosine(x[2, :2].double())])


def test_two_metrics_of_one_name_and_functions_that_are_none_are_refused():
    with pytest.raises(InputError, match="is not a layer-wise metric; is it decorated"):
        named_metrics(["math.sqrt"])
    with pytest.raises(InputError, match="no module nowhere"):
        named_metrics(["nowhere.metric"])
    with pytest.raises(InputError, match="two layer-wise metrics are named cosine"):
        named_metrics(["cosine", f"{__name__}.another"])
    with pytest.raises(InputError, match="two layer-wise metrics are named cosine"):
        probed([f"{__name__}.another"])
    with pytest.raises(ValueError, match="may need labels, inputs, weights, kernel, values, not colour"):
        layerwise_metric(needs=["colour"])
    with pytest.raises(ValueError, match="is no name"):
        layerwise_metric(name="mine.metric")


@layerwise_metric(name="cosine")
def another(tokens):
    return tokens.features.mean((1, 2))


@pytest.mark.parametrize("kind", ["bf16", "autocast", "compiled", "checkpointing"])
def test_how_a_network_is_run_changes_no_metric(kind):
    torch.manual_seed(0)
    model = VisionTransformer(
        "mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5, attention=NeutrenoAttention
    )
    images, metrics = torch.randn(4, 1, 8, 8), ["cosine", "attention_entropy", "J", "G"]
    expected = measure(model, images, metrics)
    if kind == "bf16":
        model = model.bfloat16()
        expected = measure(copy.deepcopy(model).float(), images, metrics)
    elif kind == "compiled":
        model.compile(backend="eager")
        model(images)  # compiled without hooks
    elif kind == "checkpointing":
        model.train().set_grad_checkpointing()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        assert measure(model, images, metrics) == expected


def test_probe_profile_and_energies_give_the_same_numbers_of_the_same_network(tmp_path):
    torch.manual_seed(0)
    model = VisionTransformer(
        "mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5, attention=NeutrenoAttention
    )
    samples = torch.randn(6, 1, 8, 8), torch.arange(6)
    metrics = ["cosine", "effective_rank", "J", "G"]
    probe = OversmoothingProbe(tmp_path, num_samples=6, metrics=metrics)
    trainer = SimpleNamespace(
        is_global_zero=True, global_step=3, datamodule=SimpleNamespace(probe_samples=lambda n: samples)
    )
    handed_on = []
    probe._measure(trainer, SimpleNamespace(measured=model, log_layers=handed_on.extend), "initial", 0)
    logged = {logged_name(row, "blocks"): row["mean"] for row in handed_on}

    def rows(table):
        return {(r["stack"], r["metric"], r["subset"], r["layer"]): (r["mean"], r["sd"], r["samples"]) for r in table}

    probed = rows(probe.rows)
    assert probed == rows(profile(model, samples, metrics, batch_size=2).to_dict("records"))
    energies = rows(measure_energies(model, samples))
    assert energies == {key: probed[key] for key in energies} and len(energies) == 3 + 2 + 2
    written = pd.read_csv(tmp_path / "oversmoothing.csv", float_precision="round_trip")
    assert rows(written.to_dict("records")) == probed
    assert logged["oversmoothing/J/layer_02"] == probed["blocks", "J", "all", 2][0]
    assert logged["oversmoothing/cosine_patch/layer_00"] == probed["blocks", "cosine", "patch", 0][0]


def test_the_recorder_says_which_values_a_layer_was_given_as_v0():
    """Of shuffled values those of the same permutation in every layer."""
    torch.manual_seed(0)
    attention = partial(NeutrenoAttention, anchor="shuffled")
    model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=3, num_classes=5, attention=attention)
    seen = tokens_of(model, torch.randn(2, 1, 8, 8))
    (first, own), *others = [tokens.values() for _, tokens in seen if tokens.values is not None]
    assert torch.equal(first, own)
    for v, v0 in others:
        assert torch.equal(v0, anchored(first, "shuffled", training=False)) and not torch.equal(v0, first)
        assert v.shape == v0.shape


@pytest.mark.parametrize(
    "samples, size, expected", [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_a_single_last_sample_joins_the_batch_before_it(samples, size, expected):
    seen = []
    model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, depth=2, num_classes=5)
    model.forward_features = lambda x: seen.append(len(x)) or VisionTransformer.forward_features(model, x)
    measure(model, torch.randn(samples, 1, 8, 8), ["cosine"], batch_size=size)
    assert seen == expected
