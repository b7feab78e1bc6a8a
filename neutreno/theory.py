"""The paper's theory in numbers: the descent on J and E of random tokens, and both energies of a trained model's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from neutreno.callbacks.probe import measure_tokens
from neutreno.errors import InputError
from neutreno.functional import E, G, J, attention_kernel, descend, fidelity, fixed_point, rate, step_size
from neutreno.models.transformer import attention_layers
from neutreno.oversmoothing import mean_cosine_similarity


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
        ends.append(
            {
                "rate": rate(kernel, lam, from_f=True).item(),
                "measured": left[late + 1] / left[late],
                **rows[-1],
                "E_limit": (E(end, kernel, f, lam) / start).item(),
                "cosine_limit": mean_cosine_similarity(end).item(),
            }
        )
    return pd.DataFrame(rows), pd.DataFrame(ends)


def _distance(u: Tensor, end: Tensor, kernel: Tensor) -> Tensor:
    return ((u - end).square().sum(-1) / step_size(kernel)).sum(-1).sqrt()


@torch.no_grad()
def measure_energies(model: nn.Module, inputs: Tensor, batch_size: int = 8, **fixed: Any) -> list[dict[str, Any]]:
    """J and G of a model's own values by layer, and the cosine similarity of its tokens; mean and sd over samples.

    In block l, head h: u is the head's values V_l, f its values V_0 in the first block (of the same trunk: encoder and
    decoder each have their own), K its attention A_l, whose rows sum to 1, and λ(x) = 1 / Δt(x), so that G is that of
    λ̃ = 1 and is told of softmax models too; E is J + λ̃ G. Both energies are summed over heads and divided by ‖V_l‖²,
    summed likewise, so that layers compare: J is 0 if all tokens have one value, G if all have those of V_0. Tokens are
    those that enter the block. In evaluation mode and float32, energies in float64.

    Returns:
        Rows as of :func:`neutreno.callbacks.probe.measure_tokens`; ``measure`` is ``J``, ``G`` or ``cosine``. Layer k
        of J and G is the attention of block k, from 1; of ``cosine`` what leaves block k, layer 0 being the embedding.

    Raises:
        InputError: the model does not use the project's attention.
    """
    layers = attention_layers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} does not use this project's attention, whose values are measured")
    found: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)

    def hook(tokens: str, layer: int):
        def measure(attention: nn.Module, arguments: tuple) -> None:
            x, v0, *_ = *arguments, None
            q, k, v = attention.project(x)
            kernel, v, v0 = (y.double() for y in (attention.weights(q, k), v, v if v0 is None else v0))
            size = v.square().sum((-3, -2, -1))
            for name, energy in (("J", J(v, kernel)), ("G", G(v, v0, fidelity(kernel, 1.0)))):
                found[name, tokens, layer].append(torch.where(size > 0, energy.sum(-1) / size, 0.0).cpu())

        return measure

    hooks = [attention.register_forward_pre_hook(hook(tokens, layer)) for tokens, layer, attention in layers]
    try:
        rows = measure_tokens(model, inputs, ["cosine"], batch_size)
    finally:
        for handle in hooks:
            handle.remove()
    kinds = {tokens for tokens, _, _ in layers}
    for (name, tokens, layer), parts in found.items():
        samples = torch.cat(parts)
        values = {"mean": samples.mean().item(), "sd": samples.std(correction=min(1, len(samples) - 1)).item()}
        rows.append({"measure": name, "tokens": tokens, "layer": layer, **values, "samples": len(samples)})
    return [{**fixed, **row} for row in rows if row["tokens"] in kinds]
