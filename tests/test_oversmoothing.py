import math
import warnings

import pytest
import torch

from neutreno.callbacks.probe import measure_tokens
from neutreno.errors import InputError
from neutreno.models.timm import timm_model
from neutreno.models.vit import vit
from neutreno.oversmoothing import (
    MEASURES,
    attention_entropy,
    check_measures,
    dirichlet_energy,
    effective_rank,
    high_frequency_share,
    mean_cosine_similarity,
    rank_collapse_residual,
)


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
    "dirichlet": plain_dirichlet,
    "residual": plain_residual,
    "high_frequency": plain_high_frequency,
    "effective_rank": plain_effective_rank,
}


def test_every_measure_has_its_plain_definition():
    assert PLAIN.keys() == MEASURES.keys()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("tokens, dim", [(2, 3), (17, 64), (50, 5)])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_equals_the_plain_n_by_n_definition(name, tokens, dim, shift):
    torch.manual_seed(0)
    x = torch.randn(3, tokens, dim, dtype=torch.float64) + shift
    x[0, 1] = 0  # a zero token: orthogonal to all others
    x[1, 1] = x[1, 0]
    expected = torch.tensor([PLAIN[name](sample) for sample in x], dtype=torch.float64)
    torch.testing.assert_close(MEASURES[name](x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_identical_tokens(name, scale):
    x = (scale * torch.randn(2, 1, 8)).expand(2, 9, 8)
    expected = {"cosine": 1.0, "effective_rank": 1.0}.get(name, 0.0)
    torch.testing.assert_close(
        MEASURES[name](x) / (scale**2 if name == "dirichlet" else 1),
        torch.full((2,), expected).double(),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", MEASURES)
def test_zero_tokens_give_zero_not_nan(name):
    assert MEASURES[name](torch.zeros(2, 4, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("name", MEASURES)
def test_a_single_token_gives_zero_with_a_warning(name):
    with pytest.warns(UserWarning, match="at least two tokens"):
        assert MEASURES[name](torch.randn(5, 1, 3)).tolist() == [0] * 5


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_any_precision_are_measured_in_float64(name, dtype):
    x = (100 * torch.randn(2, 3, 9, 6)).to(dtype)
    assert MEASURES[name](x).shape == (2, 3) and MEASURES[name](x).dtype == torch.float64
    assert torch.equal(MEASURES[name](x), MEASURES[name](x.double()))


@pytest.mark.parametrize("name", MEASURES)
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
    assert not MEASURES[name](x).isnan()


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


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("x", [torch.ones(5), torch.randn(0, 3), torch.randn(3, 0), [[1.0, 2.0]]], ids=str)
def test_the_wrong_rank_of_tensor_is_refused(name, x):
    with pytest.raises(InputError, match=r"is measured on tokens of shape \(…, N, d\)"):
        MEASURES[name](x)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tokens_that_are_not_finite_are_refused(name, value):
    x = torch.randn(3, 4)
    x[1, 2] = value
    with pytest.raises(InputError, match="not finite"):
        MEASURES[name](x)


@pytest.mark.parametrize(
    "a, said", [(torch.rand(3, 3), "not \\(3, 3\\)"), (torch.rand(1, 3, 4), "weights"), (-torch.ones(1, 2, 2), "≥ 0")]
)
def test_weights_that_are_no_attention_are_refused(a, said):
    with pytest.raises(InputError, match=said):
        attention_entropy(a)


@pytest.mark.parametrize("measures", ["cosine", ["cosin"], [], None, 3])
def test_measures_are_named_in_a_list(measures):
    with pytest.raises(InputError, match=r"probe\.measures=.*there are: cosine, .*attention_entropy"):
        check_measures("probe.measures", measures)


def test_the_probe_measures_what_it_is_asked_for():
    torch.manual_seed(0)
    model = vit("mini", img_size=8, patch_size=2, in_chans=1, depth=3, num_classes=5)
    images = torch.randn(5, 1, 8, 8)
    rows = measure_tokens(model, images, ["effective_rank", "attention_entropy"], batch_size=2)
    hidden = model.eval().token_features(images)
    for tokens in ("all", "patch"):
        found = [row for row in rows if (row["measure"], row["tokens"]) == ("effective_rank", tokens)]
        assert [row["layer"] for row in found] == [0, 1, 2, 3]
        for row, x in zip(found, hidden[tokens], strict=True):
            assert row["mean"] == pytest.approx(effective_rank(x).mean().item())
            assert row["sd"] == pytest.approx(effective_rank(x).std().item()) and row["samples"] == 5
    entropies = [row["mean"] for row in rows if row["measure"] == "attention_entropy"]
    assert len(entropies) == 3
    q, k, _ = model.blocks[1].attn.project(model.blocks[1].norm1(hidden["all"][1]))
    expected = attention_entropy(torch.softmax(q @ k.mT / 4, dim=-1)).mean().item()
    assert entropies[1] == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_tokens(model, images)[0]["measure"] == "cosine"  # the hooks are gone
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)


def test_the_entropy_of_another_projects_attention_is_refused():
    model = timm_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    with pytest.raises(InputError, match="attention_entropy needs this project's attention"):
        measure_tokens(model, torch.randn(2, 3, 32, 32), ["cosine", "attention_entropy"])
