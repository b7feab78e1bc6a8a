"""Normalization between the layers of a graph network, (1, N, d) → (1, N, d): called as ``norm(dim)``."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from neutreno.config.options import SUPPLIED, NonNegative, Positive, Share, Size, checked

Width = Annotated[Size, SUPPLIED]


class NoNorm(nn.Identity):
    """No normalization."""

    @checked
    def __init__(self, dim: Width) -> None:
        super().__init__()


class BatchNorm(nn.Module):
    """Batch normalization over the nodes; DGN's code has a momentum of 0.3."""

    @checked
    def __init__(self, dim: Width, momentum: Share = 0.3) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, 1)).view_as(x)


class PairNorm(nn.Module):
    """PairNorm: nodes are centered, then scaled to a mean squared length of ``scale``², so that the total pairwise
    squared distance is constant. (Zhao & Akoglu, "PairNorm: Tackling Oversmoothing in GNNs", ICLR 2020.)

    Args:
        individually: PairNorm-SI, which scales every node to the length ``scale``.
        scale: s > 0.
    """

    @checked
    def __init__(self, dim: Width, individually: bool = False, scale: Positive = 1.0) -> None:
        super().__init__()
        self.individually, self.scale = individually, scale

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-2, keepdim=True)
        squares = x.square().sum(-1, keepdim=True)
        if not self.individually:
            squares = squares.mean(-2, keepdim=True)
        return self.scale * x * (1e-6 + squares).rsqrt()

    def extra_repr(self) -> str:
        return f"individually={self.individually}, scale={self.scale}"


class NodeNorm(nn.Module):
    """NodeNorm: every node over its own standard deviation to the power 1/p, without centering. (Zhou et al.,
    "Understanding and Resolving Performance Degradation in Deep Graph Convolutional Networks", CIKM 2021.)

    Args:
        power: p > 0.
    """

    @checked
    def __init__(self, dim: Width, power: Positive = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.var(-1, correction=0, keepdim=True) + 1e-5) ** (-0.5 / self.power)

    def extra_repr(self) -> str:
        return f"power={self.power}"


class GroupNorm(nn.Module):
    """Differentiable group normalization, DGN: ``H + λ Σ_g BatchNorm_g(S_g ⊙ H)``, S = softmax(H U + b) (N, G).

    Nodes of one (soft) group are normalized together, so that groups stay apart. (Zhou et al., "Towards Deeper Graph
    Neural Networks with Differentiable Group Normalization", NeurIPS 2020.)

    In closed form: with ``a = γ / √(variance + ε)`` (G, d) the sum is ``H ⊙ (S a) − Σ_g (mean_g a_g − β_g)``, and mean
    and variance are products of S and S² with H and H²; so no N × G × d tensor is built, forward or backward. All of
    it is centered first, H = h̄ + δ and S = s̄ + σ, since E[x²] − E[x]² loses every digit where nodes collapse. S is laid
    out as (G, N), because softmax over short rows is slow. As in batch normalization, autocast changes the type of the
    result alone: sums over all nodes take float32.

    Parameters and running statistics have the released code's names and shapes (``bn`` over G·d channels).

    Args:
        groups: G; 1 is batch normalization with a skip connection.
        skip_weight: λ ≥ 0.
        momentum: of the running statistics.
    """

    @checked
    def __init__(self, dim: Width, groups: Size = 10, skip_weight: NonNegative = 0.005, momentum: Share = 0.3) -> None:
        super().__init__()
        self.groups, self.skip_weight = groups, skip_weight
        self.group_func = nn.Linear(dim, groups) if groups > 1 else None
        self.bn = nn.BatchNorm1d(groups * dim, momentum=momentum)

    def assignment(self, h: Tensor) -> Tensor:
        """S, (G, N), of nodes (N, d)."""
        if self.group_func is None:
            return h.new_ones(1, len(h))
        return torch.addmm(self.group_func.bias[:, None], self.group_func.weight, h.T).softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._added(x.to(torch.promote_types(x.dtype, self.bn.weight.dtype))).to(x.dtype)

    def _added(self, x: Tensor) -> Tensor:
        h, per_group = x.flatten(0, 1), (self.groups, x.shape[-1])
        s = self.assignment(h)
        s_mean, h_mean = s.mean(1, keepdim=True), h.mean(0)
        s, delta = s - s_mean, h - h_mean
        if self.training:
            shift, variance = self._moments(s, s_mean, delta, h_mean)
        else:
            shift = self.bn.running_mean.view(per_group) - s_mean * h_mean
            variance = self.bn.running_var.view(per_group)
        a = self.bn.weight.view(per_group) * (variance + self.bn.eps).rsqrt()
        constant = self.bn.bias.view(per_group).sum(0) - (shift * a).sum(0)
        normalized = delta * (s_mean * a).sum(0) + h * (s.T @ a) + constant
        return torch.add(x, normalized.view_as(x), alpha=self.skip_weight)

    def _moments(self, s: Tensor, s_mean: Tensor, delta: Tensor, h_mean: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, less s̄ h̄, and variance of S_g ⊙ H, (G, d) both; counted in the running statistics.

        S_g ⊙ H = s̄ h̄ + s̄ δ + h̄ σ + σ δ, the middle terms with a mean of zero.
        """
        nodes = len(delta)
        ss, dd = s.square(), delta.square()
        shift = s @ delta / nodes
        squares = s_mean.square() * dd.mean(0) + h_mean.square() * ss.mean(1, keepdim=True) + ss @ dd / nodes
        products = s_mean * h_mean * shift + (s_mean * (s @ dd) + h_mean * (ss @ delta)) / nodes
        variance = (squares + 2 * products - shift.square()).clamp_min(0)
        with torch.no_grad():
            seen = ((s_mean * h_mean + shift).flatten(), variance.flatten() * (nodes / max(nodes - 1, 1)))
            for running, now in zip((self.bn.running_mean, self.bn.running_var), seen, strict=True):
                running.lerp_(now.to(running.dtype), self.bn.momentum)
            self.bn.num_batches_tracked += 1
        return shift, variance

    def extra_repr(self) -> str:
        return f"groups={self.groups}, skip_weight={self.skip_weight}"
