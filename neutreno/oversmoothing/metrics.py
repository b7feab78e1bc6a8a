"""Layer-wise metrics of over-smoothing, and the formulas behind them.

The formulas are pure functions of features X (…, N, d), of N tokens in d dimensions; each returns one number per
leading index, in float64. None builds an N × N matrix, apart from those that are given one. A single token has nothing
to resemble: every formula is 0 there, with a warning. Nothing gives NaN.

A layer-wise metric is a function of the :class:`LayerTokens` of one layer, registered by :func:`layerwise_metric`.
Those at the end of this module are known by their names; one of another package by its path,
``mine.metrics.alignment``.

Raises (all formulas):
    InputError: X has fewer than two dimensions, no token, or values that are not finite.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from neutreno.config.building import locate
from neutreno.data.graph_files import UNLABELLED
from neutreno.errors import InputError
from neutreno.functional import G as fidelity_term
from neutreno.functional import J as smoothing_functional
from neutreno.functional import fidelity_weights
from neutreno.oversmoothing import groups

OF_LAYER = ("weights", "kernel", "values")  # made by the layer itself, a batch at a time
NEEDS = ("labels", "inputs", *OF_LAYER)  # what a metric may ask for beside the features


@dataclass(frozen=True)
class LayerTokens:
    """The tokens of one layer, and what else a layer-wise metric may ask for.

    Attributes:
        features: what leaves the layer (enters the first, for layer 0), (B, N, d). A graph is one sample of N nodes.
        mask: which tokens count, (B, N); None: all. Padding and token subsets are masks.
        labels: of the samples, (B, …), as the data gives them; None: there are none.
        inputs: what the network was given, (B, …).
        weights: makes A (B, H, N, N) of the layer's attention, rows that sum to 1; None where the layer has none that
            can be rebuilt.
        kernel: makes K (B, H, N, N) of J and G: A of attention, A + I of a graph's Â.
        values: makes V_l and V_0 (B, H, N, D), the layer's values and those of the first layer of its stack.
        roots: makes the roots of a graph's degrees (N,), over which J and G take the values; None: the values alone.
    """

    features: Tensor
    mask: Tensor | None = None
    labels: Tensor | None = None
    inputs: Tensor | None = None
    weights: Callable[[], Tensor] | None = None
    kernel: Callable[[], Tensor] | None = None
    values: Callable[[], tuple[Tensor, Tensor]] | None = None
    roots: Callable[[], Tensor] | None = None

    def counting(self) -> Tensor:
        """The mask, (B, N), also where all tokens count."""
        return self.features.new_ones(self.features.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def per_sample(self, formula: Callable[[Tensor], Tensor]) -> Tensor:
        """``formula`` of the tokens that count, (n, d) of each sample: (B,)."""
        if self.mask is None or self.mask.all():
            return formula(self.features)
        if (self.mask == self.mask[0]).all():
            return formula(self.features[:, self.mask[0]])
        return torch.cat([formula(x[None, mask]) for x, mask in zip(self.features, self.mask, strict=True)])

    def of(self, samples: Tensor) -> LayerTokens:
        """The same of some samples alone, (B,) of booleans."""
        chosen = {name: value[samples] for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name in ("weights", "kernel"):
            if (make := getattr(self, name)) is not None:
                chosen[name] = lambda make=make: make()[samples]
        if self.values is not None:
            chosen["values"] = lambda: tuple(v[samples] for v in self.values())
        return replace(self, **chosen)


@dataclass(frozen=True)
class Metric:
    """A layer-wise metric: its name in records, its function, what it needs of :data:`NEEDS`, and whether it takes the
    whole probe set at once, then giving one number, (), instead of one per sample, (B,)."""

    name: str
    function: Callable[[LayerTokens], Tensor]
    needs: tuple[str, ...] = ()
    whole_set: bool = False


def layerwise_metric(
    name: str | None = None, needs: Sequence[str] = (), whole_set: bool = False
) -> Callable[[Callable], Callable]:
    """Registers a function of :class:`LayerTokens` as a layer-wise metric.

    Where something that it needs is missing, it is left out, and that is said.

    Args:
        name: in records and figures; None: the function's own.
        needs: of :data:`NEEDS`.
        whole_set: it is given all samples of the probe set at once and returns a single number, ().

    Raises:
        ValueError: the name is no word, there is nothing of that kind to need, or attention is asked for over the
            whole set.
    """
    if name is not None and not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a layer-wise metric; write letters, digits and _")
    if unknown := set(needs) - {*NEEDS}:
        raise ValueError(f"a layer-wise metric may need {', '.join(NEEDS)}, not {', '.join(sorted(unknown))}")
    if whole_set and {*OF_LAYER} & {*needs}:
        raise ValueError("attention is made a batch at a time: a metric over the whole set cannot have it")

    def register(function: Callable) -> Callable:
        function.__layerwise__ = Metric(name or function.__name__, function, tuple(needs), whole_set)
        return function

    return register


def _check_finite(x: Tensor, title: str) -> None:
    if not torch.isfinite(x).all():
        raise InputError(f"{title}: the tokens contain NaN or Inf; did the training diverge?")


def _formula(name: str, title: str) -> Callable[[Callable], Callable]:
    """Makes a formula a layer-wise metric, given tokens in float64; of a single token it is 0, with a warning."""

    def decorate(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(formula)
        def checked(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not isinstance(x, Tensor) or x.ndim < 2 or 0 in x.shape[-2:]:
                shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise InputError(f"{title} is measured on tokens of shape (…, N, d) with N, d ≥ 1, not {shape}")
            _check_finite(x, title)
            if x.shape[-2] < 2:
                warnings.warn(f"{title} needs at least two tokens; reporting 0", stacklevel=2)
                return torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)
            return formula(x.double(), *args, **kwargs)

        checked.__layerwise__ = Metric(name, lambda tokens: tokens.per_sample(checked))
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


@_formula("cosine", "cosine similarity")
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


# The layer-wise metrics


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


@layerwise_metric(needs=["labels"])
def group_distance_ratio(tokens: LayerTokens) -> Tensor:
    """:func:`neutreno.oversmoothing.groups.squared_distance_ratio` of the tokens' own labels; −100 is none."""
    return _by_class(tokens, groups.squared_distance_ratio)


@layerwise_metric(needs=["labels"])
def group_distance_ratio_paper(tokens: LayerTokens) -> Tensor:
    """:func:`neutreno.oversmoothing.groups.distance_ratio` of the tokens' own labels; −100 is none."""
    return _by_class(tokens, groups.distance_ratio)


def _by_class(tokens: LayerTokens, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    _check_finite(tokens.features[tokens.counting()], "the group distance ratio")
    shape = tuple(tokens.features.shape[:2])
    if tuple(tokens.labels.shape) != shape:
        labels = tuple(tokens.labels.shape)
        raise InputError(f"the group distance ratio takes a label of every token, {shape}, not labels {labels}")
    chosen = tokens.counting() & (tokens.labels != UNLABELLED)
    samples = zip(tokens.features, tokens.labels, chosen, strict=True)
    return torch.stack([formula(x[mask], labels[mask]) for x, labels, mask in samples])


@layerwise_metric(needs=["inputs"])
def instance_information_gain(tokens: LayerTokens) -> Tensor:
    """What the largest feature of a token tells of its input, in bits: I(input; argmax of the features).

    See :func:`neutreno.oversmoothing.groups.information_gain`; of a network's output, the argmax is the class that it
    predicts.
    """
    _check_finite(tokens.features[tokens.counting()], "instance information gain")
    shape, given = tuple(tokens.features.shape[:2]), tuple(tokens.inputs.shape)
    if len(given) != 3 or given[:2] != shape:
        raise InputError(f"instance information gain takes inputs of every token, {shape} × F, not inputs {given}")
    found = []
    for i, (x, mask) in enumerate(zip(tokens.features, tokens.counting(), strict=True)):
        kernels = _kernel(tokens.inputs, i) if mask.all() else groups.kernel(tokens.inputs[i][mask])
        found.append(groups.information_gain(x[mask].argmax(-1), kernels))
    return torch.stack(found)


_KEPT = WeakTensorKeyDictionary()  # kernels by the inputs that they are of, which all layers of a pass share
_MOST_KEPT = 2**24  # entries of the kernels of all samples: 128 MiB


def _kernel(inputs: Tensor, sample: int) -> Iterable[tuple[slice, Tensor]]:
    if inputs.shape[0] * inputs.shape[1] ** 2 > _MOST_KEPT:
        return groups.kernel(inputs[sample])
    version = None if inputs.is_inference() else inputs._version
    kept = _KEPT.get(inputs)
    if kept is None or version is None or kept[0] != version:
        kept = _KEPT[inputs] = version, {}
    if sample not in kept[1]:
        kept[1][sample] = list(groups.kernel(inputs[sample]))
    return kept[1][sample]


def known_metrics() -> dict[str, Metric]:
    """The layer-wise metrics of this module by name."""
    functions = [f for f in vars(sys.modules[__name__]).values() if hasattr(f, "__layerwise__")]
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
