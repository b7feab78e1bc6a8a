"""Networks that classify the nodes of one graph: features (1, N, F) → logits (1, N, classes).

GCN, GAT and SGC are those of DGN's released code, made to study over-smoothing: no biases in convolutions, a norm after
every one of them, in GCN and GAT followed by a ReLU, after the last layer too; dropout before the first and the last
layer only. (Zhou et al., "Towards Deeper Graph Neural Networks with Differentiable Group Normalization", NeurIPS 2020.)
GCNII and APPNP are deep by design.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neutreno.config.options import SUPPLIED, Count, Depth, DropRate, NonNegative, Share, Size, checked
from neutreno.errors import InputError
from neutreno.models.graph_norms import NoNorm
from neutreno.models.propagation import Graph, InitialResidual, Propagation
from neutreno.models.sparse import FeatureLinear

Part = Callable[..., nn.Module]


class GraphNetwork(nn.Module):
    """What all networks of this module share: the graph, and which tokens they take.

    Args:
        num_features: F.
        num_classes: of nodes.
        edges: of the graph, (2, E); see :class:`neutreno.models.propagation.Graph`.
        num_nodes: N; None: as the edges say.
        drop_rate: dropout.

    Raises (``model(x)``):
        InputError: x is not the features of this graph's nodes.
    """

    output = "nodes"

    @checked
    def __init__(
        self,
        num_features: Annotated[Size, SUPPLIED],
        num_classes: Annotated[Size, SUPPLIED],
        edges: Annotated[Tensor, SUPPLIED],
        num_nodes: Annotated[Count | None, SUPPLIED] = None,
        drop_rate: DropRate = 0.6,
    ) -> None:
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes
        self.graph = Graph(edges, num_nodes)
        self.drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()

    def of_features(self, dim: int, bias: bool = True) -> FeatureLinear:
        """Dropout of the nodes' features, and a linear layer."""
        return FeatureLinear(self.num_features, dim, self.drop.p, bias)

    def token_layers(self) -> dict[str, list[str]]:
        return {"graph": [f"layers.{i}" for i in range(len(self.layers))]}

    def logits(self, x: Tensor) -> Tensor:
        """The network itself."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        expected = (1, self.graph.num_nodes, self.num_features)
        if tuple(x.shape) != expected:
            raise InputError(f"the network takes the nodes of its one graph, {expected}, not {tuple(x.shape)}")
        return self.logits(x)


class Step(nn.Module):
    """``norm(U)``, U being the values propagated along the edges: (1, N, d) → (1, N, d).

    ``step(v, graph, v0)`` also returns the layer's values; without ``v0`` the propagation is plain. See
    :class:`neutreno.models.propagation.Propagation`.
    """

    def __init__(self, dim: int, propagation: Part, norm: Part) -> None:
        super().__init__()
        self.propagation, self.norm = propagation(), norm(dim)

    def average(self, v: Tensor, graph: Graph) -> Tensor:
        return graph(v)

    def averaged(self, v: Tensor, graph: Graph, v0: Tensor | None = None) -> dict[str, Callable]:
        """What makes ``kernel``, ``values`` and ``roots`` of :class:`neutreno.oversmoothing.tokens.LayerTokens`.

        Â V is a step on J of V / √deg under the kernel A + I, and with λ̃ (V_0 − V) it is one on E.
        """
        return {
            "kernel": lambda: graph.dense(torch.ones_like(graph.weights))[None, None],
            "values": lambda: _heads(v, v0),
            "roots": lambda: graph.degrees.double().sqrt(),
        }

    def forward(self, v: Tensor, graph: Graph, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out = self.average(v, graph)
        return self.norm(out if v0 is None else self.propagation(out, v, v0)), v


def _heads(v: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
    """V_l and V_0, (1, 1, N, d): those of one head; without V_0, V_l."""
    return v[None], (v if v0 is None else v0)[None]


class Convolution(Step):
    """Graph convolution with its norm and activation, ``ReLU(norm(U))``, of values V = X W: (1, N, d) → (1, N, d').

    ``lin`` is W; ``residual`` adds X. (Kipf & Welling, "Semi-Supervised Classification with Graph Convolutional
    Networks", ICLR 2017.)
    """

    def __init__(self, lin: nn.Linear, propagation: Part, norm: Part, residual: bool = False) -> None:
        super().__init__(lin.out_features, propagation, norm)
        self.lin, self.residual = lin, residual
        nn.init.xavier_uniform_(self.lin.weight)

    def averaged(self, x: Tensor, graph: Graph, v0: Tensor | None = None) -> dict[str, Callable]:
        return super().averaged(self.lin(x), graph, v0)

    def forward(self, x: Tensor, graph: Graph, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, v = super().forward(self.lin(x), graph, v0)
        out = F.relu(out)
        return (x + out if self.residual else out), v


class AttentionConvolution(Convolution):
    """A convolution with attention in Â's place: ``A = softmax(LeakyReLU(a_src·v_j + a_dst·v_i))`` over the edges that
    enter node i, one head. (Veličković et al., "Graph Attention Networks", ICLR 2018.)"""

    attn_drop = 0.0

    def __init__(self, lin: nn.Linear, *args, **kwargs) -> None:
        super().__init__(lin, *args, **kwargs)
        self.att_src, self.att_dst = (nn.Parameter(torch.empty(lin.out_features)) for _ in range(2))
        for weight in (self.att_src, self.att_dst):
            nn.init.xavier_uniform_(weight[None])

    def weights(self, v: Tensor, graph: Graph) -> Tensor:
        """A's entries, (E + N,)."""
        src, dst = ((v @ weight)[0] for weight in (self.att_src, self.att_dst))
        scores = src.index_select(0, graph.source) + dst.index_select(0, graph.target)
        return graph.softmax(F.leaky_relu(scores, 0.2))

    def average(self, v: Tensor, graph: Graph) -> Tensor:
        return graph.weighted(F.dropout(self.weights(v, graph), self.attn_drop, self.training), v)

    def averaged(self, x: Tensor, graph: Graph, v0: Tensor | None = None) -> dict[str, Callable]:
        v = self.lin(x)

        def weights() -> Tensor:
            return graph.dense(self.weights(v, graph))[None, None]

        return {"weights": weights, "kernel": weights, "values": lambda: _heads(v, v0)}


class InitialResidualConvolution(Step):
    """GCNII's layer: ``ReLU(norm(((1 − β) I + β W) ((1 − α) Â H + α H_0)))``."""

    def __init__(self, dim: int, alpha: float, beta: float, norm: Part) -> None:
        super().__init__(dim, partial(InitialResidual, alpha), norm)
        self.beta = beta
        self.lin = nn.Linear(dim, dim, bias=False)

    def forward(self, h: Tensor, graph: Graph, h0: Tensor) -> tuple[Tensor, Tensor]:
        u = self.propagation(self.average(h, graph), h, h0)
        return F.relu(self.norm(torch.lerp(u, self.lin(u).to(u.dtype), self.beta))), h


class GCN(GraphNetwork):
    """A graph convolutional network of ``depth`` layers.

    The values of the first layer are V_0 of the layers 1 … depth − 2; the first and the last have other widths.

    Args:
        hidden: width of the layers between the first and the last.
        residual: add its input to the output of the layers 1 … depth − 2.
        propagation, norm: constructors, called as ``propagation()`` and ``norm(dim)`` for every layer.

    Raises:
        InputError: the propagation is not plain, and the network has no layer in which it would act.
    """

    convolution = Convolution

    @checked
    def __init__(
        self,
        *args,
        hidden: Size = 16,
        depth: Depth = 2,
        residual: bool = False,
        propagation: Part = Propagation,
        norm: Part = NoNorm,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        for i in range(depth):
            dim, inner = hidden if i < depth - 1 else self.num_classes, 0 < i < depth - 1
            lin = nn.Linear(hidden, dim, bias=False) if i else self.of_features(dim, bias=False)
            self.layers.append(self.convolution(lin, propagation, norm, residual=residual and inner))
        check_acts(self.layers, 3, "layers 1 … L − 2")
        if residual and depth < 3:
            raise InputError(f"model.residual acts in layers 1 … L − 2 only; take model.depth ≥ 3, not {depth}")

    def logits(self, x: Tensor) -> Tensor:
        v0, last = None, len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, v = layer(self.drop(x) if 0 < i == last else x, self.graph, v0 if i < last else None)
            v0 = layer.propagation.hand_on(v) if i == 0 else v0
        return x


class GAT(GCN):
    """A graph attention network: a GCN with attention, one head, in Â's place.

    Args:
        attn_drop_rate: dropout of the attention weights, in all layers.
    """

    convolution = AttentionConvolution

    @checked
    def __init__(self, *args, attn_drop_rate: DropRate = 0.6, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.layers:
            layer.attn_drop = attn_drop_rate


class SGC(GraphNetwork):
    """Simplified graph convolution: dropout, X W, then ``depth`` propagation steps, each with its norm; no ReLU.

    V_0 is X W; step 0, whose values are V_0, is plain. (Wu et al., "Simplifying Graph Convolutional Networks", ICML
    2019.)
    """

    @checked
    def __init__(self, *args, depth: Depth = 5, propagation: Part = Propagation, norm: Part = NoNorm, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.lin = self.of_features(self.num_classes, bias=False)
        nn.init.xavier_uniform_(self.lin.weight)
        self.layers.extend(Step(self.num_classes, propagation, norm) for _ in range(depth))
        check_acts(self.layers, 2, "steps 1 … L − 1")

    def logits(self, x: Tensor) -> Tensor:
        x, v0 = self.lin(x), None
        for i, layer in enumerate(self.layers):
            x, v = layer(x, self.graph, v0)
            v0 = layer.propagation.hand_on(v) if i == 0 else v0
        return x


class GCNII(GraphNetwork):
    """GCNII: ``depth`` layers with initial residual and identity mapping between two linear ones. (Chen et al., "Simple
    and Deep Graph Convolutional Networks", ICML 2020.)

    Dropout precedes every layer. A norm stands before the ReLU of every layer.

    Args:
        hidden: width of the layers.
        alpha: α, the share of the initial values. theta: θ; layer l has ``β = log(θ / l + 1)``.
    """

    @checked
    def __init__(
        self,
        *args,
        hidden: Size = 64,
        depth: Depth = 64,
        alpha: Share = 0.1,
        theta: NonNegative = 0.5,
        norm: Part = NoNorm,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lin_in, self.lin_out = self.of_features(hidden), nn.Linear(hidden, self.num_classes)
        betas = (math.log(theta / (i + 1) + 1) for i in range(depth))
        self.layers.extend(InitialResidualConvolution(hidden, alpha, beta, norm) for beta in betas)

    def token_layers(self) -> dict[str, list[str]]:
        return {"graph": [*super().token_layers()["graph"], "lin_out"]}  # the last are logits, as in the others

    def logits(self, x: Tensor) -> Tensor:
        h = h0 = F.relu(self.lin_in(x))
        for layer in self.layers:
            h, _ = layer(self.drop(h), self.graph, h0)
        return self.lin_out(self.drop(h))


class APPNP(GraphNetwork):
    """APPNP: an MLP of two layers, whose logits H are then propagated by ``depth`` steps ``Z ← (1 − α) Â Z + α H``.
    (Gasteiger et al., "Predict then Propagate: Graph Neural Networks meet Personalized PageRank", ICLR 2019.)

    Args:
        hidden: width of the MLP.
        alpha: α, the probability of teleporting. norm: after every step.
    """

    @checked
    def __init__(
        self, *args, hidden: Size = 64, depth: Depth = 10, alpha: Share = 0.1, norm: Part = NoNorm, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lin_in, self.lin_out = self.of_features(hidden), nn.Linear(hidden, self.num_classes)
        self.layers.extend(Step(self.num_classes, partial(InitialResidual, alpha), norm) for _ in range(depth))

    def logits(self, x: Tensor) -> Tensor:
        z = h = self.lin_out(self.drop(F.relu(self.lin_in(x))))
        for step in self.layers:
            z, _ = step(z, self.graph, h)
        return z


def check_acts(layers: nn.ModuleList, least: int, where: str) -> None:
    """Refuse a propagation that would be plain in every layer.

    Raises:
        InputError: it would.
    """
    if (acts := layers[0].propagation.acts) and len(layers) < least:
        raise InputError(f"{acts} acts in {where} only; take model.depth ≥ {least}, not {len(layers)}")
