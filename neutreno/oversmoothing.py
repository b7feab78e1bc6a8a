"""Measures of over-smoothing: pure functions of the tokens of one layer.

Every measure takes features X (…, N, d), of N tokens in d dimensions, and returns one number per leading index, in
float64. None builds an N × N matrix, apart from :func:`attention_entropy`, which is given one, and a Dirichlet energy
with a kernel. A single token has nothing to resemble: every measure is 0 there, with a warning. Nothing gives NaN.

Raises (all of them):
    InputError: X has fewer than two dimensions, no token, or values that are not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from neutreno.errors import InputError
from neutreno.functional import J


def _tokens(x: Tensor, measure: str) -> Tensor | None:
    """X in float64; None, after a warning, if it is a single token."""
    if not isinstance(x, Tensor) or x.ndim < 2 or 0 in x.shape[-2:]:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{measure} is measured on tokens of shape (…, N, d) with N, d ≥ 1, not {shape}")
    if not torch.isfinite(x).all():
        raise InputError(f"{measure}: the tokens hold values that are not finite; did the training diverge?")
    if x.shape[-2] < 2:
        warnings.warn(f"{measure} needs at least two tokens; reporting 0", stacklevel=3)
        return None
    return x.double()


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """``‖1 x̄ᵀ‖_F`` and ``‖X − 1 x̄ᵀ‖_F``: what all tokens share (the direct current) and what sets them apart.

    Scaled by the largest entry, which both ratios below do not feel, so that no square overflows or vanishes.
    """
    largest = x.abs().amax((-2, -1), keepdim=True)
    x = torch.where(largest > 0, x / largest, 0.0)
    mean = x.mean(-2, keepdim=True)
    return x.shape[-2] ** 0.5 * torch.linalg.vector_norm(mean, dim=(-2, -1)), torch.linalg.matrix_norm(x - mean)


def mean_cosine_similarity(x: Tensor) -> Tensor:
    """Mean pairwise cosine similarity of tokens, the paper's measure of over-smoothing: 1 when all point the same way.

    Signed, over all pairs i ≠ j, from ``(‖Σᵢ x̂ᵢ‖² − Σᵢ ‖x̂ᵢ‖²) / (N (N − 1))`` with x̂ = x / ‖x‖, in O(N d). A zero token
    has x̂ = 0 and so counts as orthogonal to all others.

    Args:
        x: (…, N, d).

    Returns:
        (…), between −1 / (N − 1) and 1.
    """
    given, x = x, _tokens(x, "cosine similarity")
    if x is None:
        return _zeros(given)
    tokens = x.shape[-2]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = torch.where(norm > 0, x / norm, 0.0)
    return (unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))) / (tokens * (tokens - 1))


def rank_collapse_residual(x: Tensor) -> Tensor:
    """``‖X − 1 x̄ᵀ‖_F / ‖X‖_F``, x̄ the mean token: how far X is from all tokens being one; 0 when they are.

    (Dong, Cordonnier, Loukas, "Attention is not all you need", ICML 2021, with the Frobenius norm and the mean as the
    nearest such matrix.) (…, N, d) → (…), between 0 and 1, in O(N d); 0 for tokens that are all zero.
    """
    given, x = x, _tokens(x, "the rank-collapse residual")
    if x is None:
        return _zeros(given)
    mean, rest = _parts(x)
    whole = torch.hypot(mean, rest)
    return torch.where(whole > 0, rest / whole, 0.0)


def high_frequency_share(x: Tensor) -> Tensor:
    """``‖X − 1 x̄ᵀ‖_F / ‖1 x̄ᵀ‖_F``: what sets tokens apart, against what they share; 0 when they are one.

    (Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022: the
    high-frequency part over the direct current.) (…, N, d) → (…), in O(N d); 0 for tokens that are all zero, ∞ for
    others whose mean is zero.
    """
    given, x = x, _tokens(x, "the high-frequency share")
    if x is None:
        return _zeros(given)
    mean, rest = _parts(x)
    return torch.where(rest > 0, rest / mean, 0.0)


def effective_rank(x: Tensor) -> Tensor:
    """``exp(−Σ p log p)`` of the normalised singular values ``p = σ / Σ σ``: how many directions the tokens span.

    (Roy & Vetterli, "The effective rank", EUSIPCO 2007.) (…, N, d) → (…), from 1 (tokens in one direction) to
    min(N, d); 0 for tokens that are all zero. O(N d min(N, d)).
    """
    given, x = x, _tokens(x, "the effective rank")
    if x is None:
        return _zeros(given)
    values = torch.linalg.svdvals(x.cpu()).to(x.device)  # a GPU takes many small matrices one by one
    total = values.sum(-1)
    p = torch.where(total[..., None] > 0, values / total[..., None], 0.0)
    return torch.where(total > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


def dirichlet_energy(x: Tensor, kernel: Tensor | None = None) -> Tensor:
    """``½ Σᵢⱼ Kᵢⱼ ‖xᵢ − xⱼ‖²``, the functional that attention descends (:func:`neutreno.functional.J`).

    Args:
        x: (…, N, d).
        kernel: K (…, N, N); None: the uniform one, ``Kᵢⱼ = 1 / N``, for which it is ``‖X − 1 x̄ᵀ‖_F²``, in O(N d).

    Returns:
        (…), ≥ 0 for a kernel ≥ 0. It grows with the square of the features.
    """
    given, x = x, _tokens(x, "the Dirichlet energy")
    if x is None:
        return _zeros(given)
    if kernel is not None:
        return J(x, kernel.double())
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


# By the names that `probe.measures`, result files and tables use.
MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": mean_cosine_similarity,
    "residual": rank_collapse_residual,
    "effective_rank": effective_rank,
    "dirichlet": dirichlet_energy,
    "high_frequency": high_frequency_share,
}
ATTENTION_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"attention_entropy": attention_entropy}


def check_measures(name: str, measures: object) -> list[str]:
    """The names in a setting, without repetition.

    Raises:
        InputError: it is no list of known names.
    """
    known = [*MEASURES, *ATTENTION_MEASURES]
    given = list(measures) if isinstance(measures, list | tuple) or hasattr(measures, "_iter_ex_keys") else None
    if not given or [m for m in given if m not in known]:
        raise InputError(f"{name}={measures} is not a list of measures; there are: {', '.join(known)}")
    return list(dict.fromkeys(given))
