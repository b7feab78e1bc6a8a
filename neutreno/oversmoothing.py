"""Measures of over-smoothing: pure functions of token features.

Every measure takes features X (…, N, d), of N tokens in d dimensions, and returns one number per leading index, in
float64, without building an N × N matrix.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def mean_cosine_similarity(x: Tensor) -> Tensor:
    """Mean pairwise cosine similarity of tokens, the paper's measure of over-smoothing: 1 when all point the same way.

    Signed, over all pairs i ≠ j, from ``(‖Σᵢ x̂ᵢ‖² − Σᵢ ‖x̂ᵢ‖²) / (N (N − 1))`` with x̂ = x / ‖x‖, in O(N d). A zero token
    has x̂ = 0 and so counts as orthogonal to all others. A single token has no pair: 0, with a warning.

    Args:
        x: (…, N, d).

    Returns:
        (…), between −1 / (N − 1) and 1.
    """
    tokens = x.shape[-2]
    if tokens < 2:
        warnings.warn("cosine similarity between tokens needs at least two tokens; reporting 0", stacklevel=2)
        return torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)
    x = x.double()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    unit = torch.where(norm > 0, x / norm, 0.0)
    return (unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))) / (tokens * (tokens - 1))
