"""The paper's theory in numbers: the descent on J and E of random tokens, and both energies of a trained model's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from neutreno.errors import InputError
from neutreno.functional import E, J, attention_kernel, descend, fixed_point, rate, step_size
from neutreno.oversmoothing.measure import measure
from neutreno.oversmoothing.metrics import mean_cosine_similarity
from neutreno.reports.layers import ALL


def descent(
    lams: Sequence[float], steps: int = 32, tokens: int = 64, dim: int = 16, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The descent from u = f for each λ̃, under one kernel held fixed: one head of attention with Q = K, layer by layer.

    f is (tokens, dim) from a normal distribution, Q = K = f W with W normal / √dim, all in float64.

    Returns:
        A row per λ̃ and step: ``E`` and ``J`` relative to the energy of the start (J and E are the same there),
        ``cosine``, and ``distance`` to where the descent ends, relative to the start's, in the norm ``Σ ‖uᵢ‖² / Δt_i``.
        A row per λ̃: ``rate``, the theory's, and ``measured``, that of the last step which rounding does not hide; all
        of the above after the last step; and ``E_limit`` and ``cosine_limit`` where the descent ends.

    Raises:
        InputError: a descent diverges so far that its energy is no number any more.
    """
    draw = torch.Generator().manual_seed(seed)
    f = torch.randn(tokens, dim, generator=draw, dtype=torch.float64)
    q = f @ torch.randn(dim, dim, generator=draw, dtype=torch.float64) / dim**0.5
    kernel = attention_kernel(q, q)
    start = J(f, kernel)
    rows, ends = [], []
    for lam in lams:
        u, end = f, fixed_point(kernel, f, lam)
        for step in range(steps + 1):
            if not u.isfinite().all() or not E(u, kernel, f, lam).isfinite():
                raise InputError(f"the descent at λ̃ = {lam:g} overflows at step {step}; take fewer steps, or λ̃ ≤ 1")
            found = {"E": E(u, kernel, f, lam) / start, "J": J(u, kernel) / start, "cosine": mean_cosine_similarity(u)}
            found["distance"] = _distance(u, end, kernel) / _distance(f, end, kernel)
            rows.append({"lam": lam, "step": step, **{name: value.item() for name, value in found.items()}})
            u = descend(u, kernel, f, lam)
        left = [row["distance"] for row in rows[-steps - 1 :]]
        late = max(t for t in range(steps) if left[t] > 1e-8 or t == 0)  # further steps are rounding
        speed = {"rate": rate(kernel, lam, from_f=True).item(), "measured": left[late + 1] / left[late]}
        limits = {"E_limit": E(end, kernel, f, lam) / start, "cosine_limit": mean_cosine_similarity(end)}
        ends.append({**speed, **rows[-1], **{name: value.item() for name, value in limits.items()}})
    return pd.DataFrame(rows), pd.DataFrame(ends)


def _distance(u: Tensor, end: Tensor, kernel: Tensor) -> Tensor:
    return ((u - end).square().sum(-1) / step_size(kernel)).sum(-1).sqrt()


def measure_energies(model: nn.Module, samples: Any, batch_size: int = 8, **fixed: Any) -> list[dict[str, Any]]:
    """The layer-wise metrics J and G of a model's native values, and the cosine similarity, of all tokens per stack.

    Layer k of J and G is the attention of block k, from 1, on the tokens that enter it, or the propagation of layer k
    of a graph network; of ``cosine`` what leaves block k, layer 0 being the embedding. ``samples`` as for
    :func:`neutreno.oversmoothing.measure.measure`.

    Raises:
        InputError: the model has neither the project's attention nor its propagation, whose values are measured.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the layer-wise metric [JG] needs")  # said below
        rows = measure(model, samples, ["J", "G", "cosine"], batch_size=batch_size, **fixed)
    if not any(row["metric"] == "J" for row in rows):
        own = "attention or propagation, whose values are measured"
        raise InputError(f"{type(model).__name__} does not use this project's {own}")
    return [row for row in rows if row["subset"] == ALL]
