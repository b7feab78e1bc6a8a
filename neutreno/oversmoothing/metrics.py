"""Layer-wise metrics of over-smoothing, and the formulas behind them.

The formulas are pure functions of features X (…, N, d), of N tokens in d dimensions; each returns one number per
leading index, in float64. None builds an N × N matrix, apart from those that are given one. A single token has nothing
to resemble: every formula is 0 there, with a warning. Nothing gives NaN.

A layer-wise metric is a function of a layer's :class:`~neutreno.oversmoothing.tokens.LayerTokens`, registered by
:func:`~neutreno.oversmoothing.tokens.layerwise_metric`.
Those of this module and of :mod:`neutreno.oversmoothing.groups` are known by their names; one of another package by its
path, ``mine.metrics.alignment``.

Raises (all formulas):
    InputError: X has fewer than two dimensions, no token, or values that are not finite.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neutreno.config.building import locate
from neutreno.errors import InputError
from neutreno.functional import G as fidelity_term
from neutreno.functional import J as smoothing_functional
from neutreno.functional import fidelity_weights
from neutreno.oversmoothing import groups
from neutreno.oversmoothing.tokens import LayerTokens, Metric, check_finite, layerwise_metric


def _formula(name: str, title: str, collapsed_at: float | None = None) -> Callable[[Callable], Callable]:
    """Makes a formula a layer-wise metric, given tokens in float64; of a single token it is 0, with a warning."""

    def decorate(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(formula)
        def checked(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not isinstance(x, Tensor) or x.ndim < 2 or 0 in x.shape[-2:]:
                shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"{title} is measured on tokens of shape (…, N, d) with N, d ≥ 1, not {shape}")
            check_finite(x, title)
            if x.shape[-2] < 2:
                warnings.warn(f"{title} needs at least two tokens; reporting 0", stacklevel=2)
                return torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)
            return formula(x.double(), *args, **kwargs)

        checked.__layerwise__ = Metric(name, lambda tokens: tokens.per_sample(checked), collapsed_at=collapsed_at)
        return checked

    return decorate


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """``‖1 x̄ᵀ‖_F`` and ``‖X − 1 x̄ᵀ‖_F``: what all tokens share (the DC component) and what sets them apart.

    Scaled by the largest entry, which both ratios below do not feel, so that no square overflows or vanishes.
    """
    largest = x.abs().amax((-2, -1), keepdim=True)
    x = torch.where(largest > 0, x / largest, 0.0)
    mean = x.mean(-2, keepdim=True)
    return x.shape[-2] ** 0.5 * torch.linalg.vector_norm(mean, dim=(-2, -1)), torch.linalg.matrix_norm(x - mean)


@_formula("cosine", "cosine similarity", collapsed_at=0.9)
def mean_cosine_similarity(x: Tensor) -> Tensor:
    """Mean pairwise cosine similarity of tokens, the paper's metric of over-smoothing: 1 when all point the same way.

    Signed, over all pairs i ≠ j, from ``(‖Σᵢ x̂ᵢ‖² − Σᵢ ‖x̂ᵢ‖²) / (N (N − 1))`` with x̂ = x / ‖x‖, in O(N d). A zero token
    has x̂ = 0 and so counts as orthogonal to all others.

    Args:
        x: (…, N, d).

    Returns:
        (…), between −1 / (N − 1) and 1.
    """
    tokens, unit = x.shape[-2], groups.unit_rows(x)
    return (unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))) / (tokens * (tokens - 1))


@_formula("cosine_layernorm", "cosine similarity after LayerNorm", collapsed_at=0.9)
def layernorm_cosine_similarity(x: Tensor) -> Tensor:
    """:func:`mean_cosine_similarity` after a LayerNorm without weights: of tokens less the mean of their channels.

    A pre-norm network hands on tokens that no norm has touched, and reads them through one; a post-norm network's have
    passed it. After it the two compare. (…, N, d) → (…). A token of equal channels is 0, and counts as orthogonal.
    """
    centred = x - x.mean(-1, keepdim=True)
    rounding = 1e-12 * x.abs().amax(-1, keepdim=True)  # of a mean of equal channels
    return mean_cosine_similarity(torch.where(centred.abs().amax(-1, keepdim=True) > rounding, centred, 0.0))


@_formula("residual", "the rank-collapse residual")
def rank_collapse_residual(x: Tensor) -> Tensor:
    """``‖X − 1 x̄ᵀ‖_F / ‖X‖_F``, x̄ the mean token: how far X is from all tokens being one; 0 when they are.

    (Dong, Cordonnier, Loukas, "Attention is not all you need", ICML 2021, with the Frobenius norm and the mean as the
    nearest such matrix.) (…, N, d) → (…), between 0 and 1, in O(N d); 0 for tokens that are all zero.
    """
    mean, rest = _parts(x)
    whole = torch.hypot(mean, rest)
    return torch.where(whole > 0, rest / whole, 0.0)


@_formula("high_frequency", "the high-frequency share")
def high_frequency_share(x: Tensor) -> Tensor:
    """``‖X − 1 x̄ᵀ‖_F / ‖1 x̄ᵀ‖_F``: what sets tokens apart, against what they share; 0 when they are one.

    (Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022: the
    high-frequency part over the DC component.) (…, N, d) → (…), in O(N d); 0 for tokens that are all zero, ∞ for
    others whose mean is zero.
    """
    mean, rest = _parts(x)
    return torch.where(rest > 0, rest / mean, 0.0)


@_formula("effective_rank", "the effective rank")
def effective_rank(x: Tensor) -> Tensor:
    """``exp(−Σ p log p)`` of the normalised singular values ``p = σ / Σ σ``: how many directions the tokens span.

    (Roy & Vetterli, "The effective rank", EUSIPCO 2007.) (…, N, d) → (…), from 1 (tokens in one direction) to
    min(N, d); 0 for tokens that are all zero. O(N d min(N, d)).
    """
    values = torch.linalg.svdvals(x.cpu()).to(x.device)  # a GPU takes many small matrices one by one
    total = values.sum(-1)
    p = torch.where(total[..., None] > 0, values / total[..., None], 0.0)
    return torch.where(total > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


@_formula("dirichlet", "the Dirichlet energy")
def dirichlet_energy(x: Tensor, kernel: Tensor | None = None) -> Tensor:
    """``½ Σᵢⱼ Kᵢⱼ ‖xᵢ − xⱼ‖²``, the functional that attention descends (:func:`neutreno.functional.J`).

    Args:
        x: (…, N, d).
        kernel: K (…, N, N); None: the uniform one, ``Kᵢⱼ = 1 / N``, for which it is ``‖X − 1 x̄ᵀ‖_F²``, in O(N d).

    Returns:
        (…), ≥ 0 for a kernel ≥ 0. It grows with the square of the features.
    """
    if kernel is not None:
        return smoothing_functional(x, kernel.double())
    return (x - x.mean(-2, keepdim=True)).square().sum((-2, -1))


def attention_entropy(attention: Tensor) -> Tensor:
    """``−Σⱼ Aᵢⱼ log Aᵢⱼ``, mean over rows and heads: 0 when a token sees one other, log N when it sees all alike.

    Args:
        attention: A (…, H, N, N), rows that sum to 1, as they do after a softmax.

    Returns:
        (…), in nats.

    Raises:
        InputError: A is not square, not finite or negative somewhere.
    """
    if attention.ndim < 3 or attention.shape[-1] != attention.shape[-2]:
        raise InputError(f"attention entropy is measured on weights (…, H, N, N), not {tuple(attention.shape)}")
    a = attention.double()
    if not (torch.isfinite(a).all() and (a >= 0).all()):
        raise InputError("attention entropy: the weights are not finite numbers ≥ 0")
    if a.shape[-1] < 2:
        warnings.warn("attention entropy needs at least two tokens; reporting 0", stacklevel=2)
    return torch.special.entr(a).sum(-1).mean((-2, -1))


# Of a layer's attention or propagation


@layerwise_metric(name="attention_entropy", needs=["weights"])
def of_attention(tokens: LayerTokens) -> Tensor:
    """:func:`attention_entropy`"""
    return attention_entropy(tokens.weights())


@layerwise_metric(needs=["kernel", "values"])
def J(tokens: LayerTokens) -> Tensor:
    """The smoothing functional J of the layer's values under its native attention, summed over heads, over ‖V_l‖².

    u = V_l, K = A_l, whose rows sum to 1: 0 if all tokens have one value. Divided, so that layers compare. In a graph
    network without attention u = V_l / √deg and K = A + I, under which Â V_l is a step on J: it is the Dirichlet energy
    of the normalised graph, tr V_lᵀ (I − Â) V_l.
    """
    u, _ = _energy_values(tokens)
    return _relative(smoothing_functional(u, tokens.kernel().double()), tokens)


@layerwise_metric(needs=["kernel", "values"])
def G(tokens: LayerTokens) -> Tensor:
    """The fidelity term G of the layer's values, f = V_0, summed over heads, over ‖V_l‖²; 0 if V_l = V_0.

    λ(x) = 1 / Δt(x), so it is that of λ̃ = 1 and is told of softmax attention too; E is J + λ̃ G.
    """
    u, f = _energy_values(tokens)
    return _relative(fidelity_term(u, f, fidelity_weights(tokens.kernel().double(), 1.0)), tokens)


def _energy_values(tokens: LayerTokens) -> tuple[Tensor, Tensor]:
    """u and f."""
    roots = 1.0 if tokens.roots is None else tokens.roots().double()[:, None]
    return tuple(v.double() / roots for v in tokens.values())


def _relative(energy: Tensor, tokens: LayerTokens) -> Tensor:
    """(B, H) of heads, over ‖V_l‖²: (B,)."""
    size = tokens.values()[0].double().square().sum((-3, -2, -1))
    return torch.where(size > 0, energy.sum(-1) / size, 0.0)


def known_metrics() -> dict[str, Metric]:
    """The layer-wise metrics of this module, and then those of groups, by name."""
    modules = (sys.modules[__name__], groups)
    functions = [f for module in modules for f in vars(module).values() if hasattr(f, "__layerwise__")]
    return {function.__layerwise__.name: function.__layerwise__ for function in functions}


def metric_named(name: str, key: str = "probe.metrics") -> Metric:
    """The layer-wise metric of a name, or of the dotted path of a function; ``key`` is where it stands.

    Raises:
        InputError: there is none.
    """
    if "." in name:
        found = locate(name, key)
        if not hasattr(found, "__layerwise__"):
            raise InputError(f"{key}: {name} is not a layer-wise metric; is it decorated with layerwise_metric()?")
        return found.__layerwise__
    if name not in known_metrics():
        others = "and those of another package by their path (mine.metrics.alignment)"
        raise InputError(f"{key}: no layer-wise metric {name}; available: {', '.join(known_metrics())}, {others}")
    return known_metrics()[name]


def named_metrics(metrics: Any, key: str = "probe.metrics") -> list[Metric]:
    """The layer-wise metrics that a setting names, each once.

    Raises:
        InputError: it is not a list of names, one is not known, or two have one name.
    """
    listed = isinstance(metrics, Sequence) and not isinstance(metrics, str) and all(isinstance(m, str) for m in metrics)
    if not listed or not metrics:
        what = "names no layer-wise metric" if listed else "is not a list of layer-wise metrics"
        raise InputError(f"{key}={metrics} {what}; available: {', '.join(known_metrics())}")
    found: dict[str, Metric] = {}
    for metric in (metric_named(name, key) for name in metrics):
        if found.setdefault(metric.name, metric) != metric:
            raise InputError(f"{key}: two layer-wise metrics are named {metric.name}; rename one")
    return list(found.values())


def probed(metrics: Any, key: str = "probe.metrics") -> list[str]:
    """``probe.metrics``, and the cosine similarity before them, which tables and figures always show.

    Raises:
        InputError: they are no list of known names.
    """
    named_metrics(metrics, key)
    found = list(dict.fromkeys(["cosine", *metrics]))
    named_metrics(found, key)
    return found
