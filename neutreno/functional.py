"""The paper's functionals J, G and E of discrete tokens, their gradients, and the descent step that is attention.

Tokens u (…, N, d), a kernel K (…, N, N) ≥ 0. Leading dimensions (batch, heads) broadcast.
"""

from __future__ import annotations

from torch import Tensor


def J(u: Tensor, k: Tensor) -> Tensor:
    """The smoothing functional ``J(u) = ½ Σᵢⱼ Kᵢⱼ ‖uᵢ − uⱼ‖²``: (…, N, d), (…, N, N) → (…)."""
    u = u - u.mean(-2, keepdim=True)  # J does not feel a shift, rounding does
    s = (k + k.mT) / 2
    return ((s.sum(-1, keepdim=True) * u - s @ u) * u).sum((-2, -1))
