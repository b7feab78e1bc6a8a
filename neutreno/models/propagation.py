"""How values travel along the edges of a graph, and what is added to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neutreno.attention import Anchor, anchored, fidelity
from neutreno.config.options import Count, NonNegative, Share, checked
from neutreno.errors import InputError
from neutreno.models.sparse import Pattern, product


class Graph(nn.Module):
    """The edges of an undirected graph and a self-loop at every node; ``graph(v)`` is ``Â v, Â = D^-½ (A + I) D^-½``.

    Kept as dense buffers, because a sparse tensor in a module can be neither copied (EMA) nor broadcast (DDP).
    Not part of a checkpoint: the graph is data. The edges, self-loops included, are sorted by target, then source.

    Args:
        edges: (2, E), both directions of every edge, without self-loops and duplicates.
        num_nodes: N; None: one more than the largest index, which leaves out isolated nodes beyond it.

    Raises:
        InputError: the edges are not as described.
    """

    @checked
    def __init__(self, edges: Tensor, num_nodes: Count | None = None) -> None:
        super().__init__()
        if edges.ndim != 2 or len(edges) != 2 or edges.dtype != torch.int64:
            raise InputError(
                f"edges are (2, E) int64, not {tuple(edges.shape)} {str(edges.dtype).removeprefix('torch.')}"
            )
        least, most = (edges.min().item(), edges.max().item()) if edges.numel() else (0, 0)
        self.num_nodes = nodes = most + 1 if num_nodes is None else num_nodes
        if least < 0 or most >= nodes:
            raise InputError(f"edges name the nodes {least} … {most}; there are 0 … {nodes - 1}")
        loops = torch.arange(nodes, device=edges.device).expand(2, -1)
        target, source = torch.cat([edges, loops], 1)
        keys, order = (target * nodes + source).sort()
        target, source = target[order], source[order]
        mirrored = source * nodes + target
        mirror = torch.searchsorted(keys, mirrored).clamp_max(len(keys) - 1)
        if (keys[1:] == keys[:-1]).any() or (keys[mirror] != mirrored).any():
            raise InputError("edges are given once in each direction, without duplicates and self-loops")
        starts = Pattern.of(target, source, (nodes, nodes)).starts
        root = starts.diff().double().rsqrt()
        weights = root[target] * root[source]  # in float64, so that a network in float64 is exact
        parts = {"starts": starts, "target": target, "source": source, "mirror": mirror, "weights": weights}
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        """Â v: (1, N, d) → (1, N, d)."""
        pattern = self.pattern
        return product(self.weights, v[0], pattern, pattern)[None]

    def weighted(self, values: Tensor, v: Tensor) -> Tensor:
        """S v, with a value (E + N,) for every edge and self-loop in place of Â's; differentiable in both."""
        pattern = self.pattern
        return product(values, v[0], pattern, pattern, self.mirror)[None]

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.starts, self.target, self.source, (self.num_nodes, self.num_nodes))

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax of scores (E + N,) over the edges that enter a node."""
        largest = torch.segment_reduce(scores.detach(), "max", offsets=self.starts)
        weights = (scores - largest.index_select(0, self.target)).exp()
        total = weights.new_zeros(self.num_nodes).index_add(0, self.target, weights)
        return weights / total.index_select(0, self.target)

    def extra_repr(self) -> str:
        return f"{self.num_nodes} nodes, {(len(self.source) - self.num_nodes) // 2} edges"


class Propagation(nn.Module):
    """Plain propagation, ``U = Â V``: the baseline of every comparison.

    ``propagation(out, v, v0)`` takes the propagated values Â V (or A V), this layer's values V and those of the first
    layer, all (1, N, d), in the layers where V_0 has the width of V; a variant returns another U.
    """

    acts = ""  # how a variant is named; "" where it leaves U as it is

    def hand_on(self, v: Tensor) -> Tensor:
        """What the first layer, with values ``v``, hands on as V_0."""
        return v

    def forward(self, out: Tensor, v: Tensor, v0: Tensor) -> Tensor:
        return out


class NeutrenoPropagation(Propagation):
    """NeuTRENO's fidelity term in a graph network: ``U_l = Â V_l + λ̃ (V_0 − V_l)``; λ̃ = 0 is plain propagation.

    Args:
        lam: λ̃ ≥ 0.
        anchor, pull: controls of the term; see :func:`neutreno.attention.fidelity`.

    Raises:
        InputError: neither half of the term is left.
    """

    @checked
    def __init__(self, lam: NonNegative = 0.6, anchor: Anchor = "v0", pull: bool = True) -> None:
        super().__init__()
        if anchor == "none" and not pull:
            raise InputError("anchor=none with pull=false is plain propagation by another name; take propagation=plain")
        self.lam, self.anchor, self.pull = float(lam), anchor, pull
        self.acts = "propagation=neutreno" if lam else ""

    def hand_on(self, v: Tensor) -> Tensor:
        return anchored(v, self.anchor, self.training) if self.lam else v

    def forward(self, out: Tensor, v: Tensor, v0: Tensor) -> Tensor:
        return fidelity(out, v, v0, self.lam, self.anchor, self.pull) if self.lam else out

    def extra_repr(self) -> str:
        return f"lam={self.lam}, anchor={self.anchor}, pull={self.pull}"


class InitialResidual(Propagation):
    """GCNII's initial residual: ``U_l = (1 − α) Â V_l + α V_0``. (Chen et al., "Simple and Deep Graph Convolutional
    Networks", ICML 2020.)

    Args:
        alpha: α, from 0 to 1.
    """

    @checked
    def __init__(self, alpha: Share = 0.1) -> None:
        super().__init__()
        self.alpha = alpha
        self.acts = "propagation=initial_residual" if alpha else ""

    def forward(self, out: Tensor, v: Tensor, v0: Tensor) -> Tensor:
        return torch.lerp(out, v0.to(out.dtype), self.alpha)  # which autocast and norms may make differ

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
