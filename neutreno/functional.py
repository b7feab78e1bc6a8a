"""The paper's functionals J, G and E of discrete tokens, their gradients, and the descent step that is attention.

Tokens u and f are (…, N, d), a kernel K ≥ 0 is (…, N, N); leading dimensions (batch, heads) broadcast. λ̃ is a number.
Any float type; what is computed is at least float32. With ``S = K + Kᵀ`` and ``P = diag(Δt) S``, whose rows sum to 1:

* One explicit Euler step on J of size ``Δt_i = 1 / Σⱼ Sᵢⱼ`` is ``u ← P u``. For ``S ∝ exp(Q Kᵀ / √D)``, so
  wherever the scores Q Kᵀ are symmetric (Q = K is one case), that is softmax attention.
* The same step on ``E = J + G``, with ``λ(x) = λ̃ / Δt(x)``, is ``u ← P u + λ̃ (f − u)``: NeuTRENO's rule. With one λ for
  all tokens it is not.
* P is similar to the symmetric ``diag(Δt)^½ S diag(Δt)^½``, so its eigenvalues λ_k are real: 1, whose eigenvector is
  "all tokens alike", and others in [−1, 1]; in [0, 1] if S is positive semidefinite, as it is for Q = K.
* Under a kernel **held fixed**, the tokens' distance to their mean, weighted by 1 / Δt, shrinks as |λ₂|^t or faster in
  the norm ``Σᵢ ‖uᵢ‖² / Δt_i``, and J_t ≤ |λ₂|^2t J₀: over-smoothing.
* E decreases if ``|λ_k − λ̃| ≤ 1`` for all k, so for a positive semidefinite S and 0 ≤ λ̃ ≤ 1. The tokens end, at the
  rate ``max |λ_k − λ̃|``, at :func:`fixed_point`, which is not one value. With an indefinite kernel, a larger λ̃, or a
  kernel made anew from the tokens at each step, as in a network, E can grow.

(Nguyen, Nguyen, Baraniuk, "Mitigating Over-smoothing in Transformers via Regularized Nonlocal Functionals", NeurIPS
2023, sections 2 and 3.)

Raises (all of them):
    InputError: tensors of a wrong rank, of shapes that do not fit together, or with values that are not finite; a λ or
        λ̃ that is not finite and ≥ 0; where Δt enters, a token whose row of K + Kᵀ does not sum to more than 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neutreno.errors import InputError, check_number


def J(u: Tensor, k: Tensor) -> Tensor:
    """The smoothing functional ``J(u) = ½ Σᵢⱼ Kᵢⱼ ‖uᵢ − uⱼ‖²``: (…, N, d), (…, N, N) → (…)."""
    u, k = _fitting(k, u=u)
    u = u - u.mean(-2, keepdim=True)  # J does not feel a shift, rounding does
    return (grad_J(u, k) * u).sum((-2, -1)) / 2


def G(u: Tensor, f: Tensor, lam: Tensor | float) -> Tensor:
    """The fidelity term ``G(u) = ½ Σᵢ λᵢ ‖uᵢ − fᵢ‖²``; ``lam`` is λ(x), (…, N), or a number: (…, N, d) → (…)."""
    u, f = _fitting(u=u, f=f)
    return (_per_token(lam, u) * (u - f).square()).sum((-2, -1)) / 2


def E(u: Tensor, k: Tensor, f: Tensor, lam_tilde: float) -> Tensor:
    """The regularized functional ``E = J + G`` with ``λ(x) = λ̃ / Δt(x)``, which NeuTRENO descends: → (…)."""
    return J(u, k) + G(u, f, fidelity_weights(k, lam_tilde))


def grad_J(u: Tensor, k: Tensor) -> Tensor:
    """``∂J/∂uᵢ = Σⱼ (Kᵢⱼ + Kⱼᵢ) (uᵢ − uⱼ)``: (…, N, d)."""
    u, k = _fitting(k, u=u)
    s = k + k.mT
    with torch.autocast(u.device.type, enabled=False):
        return s.sum(-1, keepdim=True) * u - s @ u


def grad_G(u: Tensor, f: Tensor, lam: Tensor | float) -> Tensor:
    """``∂G/∂uᵢ = λᵢ (uᵢ − fᵢ)``: (…, N, d)."""
    u, f = _fitting(u=u, f=f)
    return _per_token(lam, u) * (u - f)


def grad_E(u: Tensor, k: Tensor, f: Tensor, lam_tilde: float) -> Tensor:
    """The sum of both, with ``λ(x) = λ̃ / Δt(x)``: (…, N, d)."""
    return grad_J(u, k) + grad_G(u, f, fidelity_weights(k, lam_tilde))


def step_size(k: Tensor) -> Tensor:
    """The paper's step size ``Δt_i = 1 / Σⱼ (Kᵢⱼ + Kⱼᵢ)``, of each token its own: (…, N, N) → (…, N)."""
    (k,) = _fitting(k)
    return 1 / _degrees(k)


def fidelity_weights(k: Tensor, lam_tilde: float) -> Tensor:
    """``λ(x) = λ̃ / Δt(x)``, the weights of G for which the step is NeuTRENO's rule: (…, N, N) → (…, N)."""
    check_number("lam_tilde", lam_tilde)
    return lam_tilde / step_size(k)


def descend(u: Tensor, k: Tensor, f: Tensor | None = None, lam_tilde: float = 0.0) -> Tensor:
    """One explicit Euler step of size Δt on J, or with λ̃ > 0 on E: (…, N, d) → (…, N, d), in u's type.

    Raises:
        InputError: λ̃ > 0 without f.
    """
    check_number("lam_tilde", lam_tilde)
    if lam_tilde and f is None:
        raise InputError(f"lam_tilde={lam_tilde} holds the tokens near f: give f, the first layer's values")
    gradient = grad_E(u, k, f, lam_tilde) if lam_tilde else grad_J(u, k)
    return (u - step_size(k).unsqueeze(-1) * gradient).to(u.dtype)


def attention_kernel(q: Tensor, k: Tensor) -> Tensor:
    """``Kᵢⱼ = exp(qᵢ·kⱼ / √D)``, up to one factor per head: (…, N, D) twice → (…, N, N), at least float32.

    The factor keeps the exponential from overflowing. Being the same for all rows, it leaves the ratio of J to G, the
    descent and, for Q = K, symmetry and positive semidefiniteness as they are; softmax's own, one per row, would not.
    A token whose logits are all some 90 (float64: 700) below the head's largest underflows to a row of zeros.
    """
    q, k = _fitting(q=q, k=k)
    with torch.autocast(q.device.type, enabled=False):
        logits = q @ k.mT / q.shape[-1] ** 0.5
    return (logits - logits.detach().amax((-2, -1), keepdim=True)).exp()


def transition(k: Tensor) -> Tensor:
    """``P = diag(Δt) (K + Kᵀ)``, the rows of K + Kᵀ made to sum to 1: what a step on J multiplies the tokens by."""
    (k,) = _fitting(k)
    return (k + k.mT) / _degrees(k).unsqueeze(-1)


def rate(k: Tensor, lam_tilde: float = 0.0, from_f: bool = False) -> Tensor:
    """The factor by which a step under a fixed kernel brings the tokens nearer to where they end: (…, N, N) → (…).

    ``max |λ_k − λ̃|`` over the eigenvalues λ_k of P; above 1 the descent diverges. Of the trivial eigenvalue 1, to which
    the mean token belongs, only if the mean moves. It does not for λ̃ = 0, where the rate is |λ₂|, and not on a descent
    that starts at f (``from_f``), as the paper's does; else it is off f's mean by a factor of 1 − λ̃ at each step.
    """
    check_number("lam_tilde", lam_tilde)
    (k,) = _fitting(k)
    root = _degrees(k).sqrt()
    symmetric = (k + k.mT) / (root.unsqueeze(-1) * root.unsqueeze(-2))
    if from_f or lam_tilde == 0:  # the trivial eigenvalue is moved to λ̃, where it adds nothing
        trivial = root / torch.linalg.vector_norm(root, dim=-1, keepdim=True)
        symmetric = symmetric + (lam_tilde - 1) * trivial.unsqueeze(-1) * trivial.unsqueeze(-2)
    return (torch.linalg.eigvalsh(symmetric) - lam_tilde).abs().amax(-1)


def fixed_point(k: Tensor, f: Tensor, lam_tilde: float) -> Tensor:
    """Where the descent on E ends, its minimum ``u* = λ̃ ((1 + λ̃) I − P)⁻¹ f``: (…, N, N), (…, N, d) → (…, N, d).

    For λ̃ = 0, where E = J has a minimum for every mean, the one with that of f, weighted by 1 / Δt: one value.
    It is where a descent from f ends under a kernel that connects all tokens.
    """
    check_number("lam_tilde", lam_tilde)
    f, k = _fitting(k, f=f)
    degrees = _degrees(k).unsqueeze(-1)
    f = f.expand(*torch.broadcast_shapes(f.shape[:-2], k.shape[:-2]), *f.shape[-2:])
    if lam_tilde == 0:
        return ((degrees * f).sum(-2, keepdim=True) / degrees.sum(-2, keepdim=True)).expand_as(f)
    system = torch.diag_embed((1 + lam_tilde) * degrees.squeeze(-1)) - k - k.mT
    return torch.linalg.solve(system, lam_tilde * degrees * f)


def _degrees(k: Tensor) -> Tensor:
    degrees = (k + k.mT).sum(-1)
    if not (degrees > 0).all():
        raise InputError("a token has no step size: its row of K + Kᵀ, of the kernel, does not sum to more than 0")
    return degrees


def _per_token(lam: Tensor | float, u: Tensor) -> Tensor | float:
    if not isinstance(lam, Tensor):
        check_number("lam", lam)
        return lam
    if lam.ndim < 1 or lam.shape[-1] != u.shape[-2]:
        raise InputError(f"lam is of shape {tuple(lam.shape)}; give a number, or one per token, (…, {u.shape[-2]})")
    if not (torch.isfinite(lam).all() and (lam >= 0).all()):
        raise InputError("lam holds values that are not finite numbers ≥ 0")
    return lam.to(u.dtype).unsqueeze(-1)


def _fitting(kernel: Tensor | None = None, **tokens: Tensor) -> list[Tensor]:
    """The tokens, then the kernel, in float64 if one of them is, else in float32."""
    given = tokens if kernel is None else {**tokens, "the kernel": kernel}
    for name, x in given.items():
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or 0 in x.shape[-2:]:
            found = f"{tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            shape = "(…, N, N)" if x is kernel else "(…, N, d)"
            raise InputError(f"{name} is {found}, not a floating-point tensor of shape {shape} with N, d ≥ 1")
        if not torch.isfinite(x).all():
            raise InputError(f"{name} contains NaN or Inf")
    shapes = {name: tuple(x.shape) for name, x in given.items()}
    said = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
    sizes = {shape[-2:] for name, shape in shapes.items() if name in tokens}
    if kernel is not None and (kernel.shape[-1] != kernel.shape[-2] or any(n != kernel.shape[-1] for n, _ in sizes)):
        raise InputError(f"a kernel is (…, N, N), N being the number of tokens; these do not fit: {said}")
    if len(sizes) > 1:
        raise InputError(f"these tokens are not equally many or wide: {said}")
    try:
        torch.broadcast_shapes(*(shape[:-2] for shape in shapes.values()))
    except RuntimeError as error:
        raise InputError(f"the leading dimensions do not broadcast: {said}") from error
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in given.values()) else torch.float32
    return [x.to(dtype) for x in given.values()]
