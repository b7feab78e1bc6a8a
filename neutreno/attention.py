"""The equations: how one layer of attention mixes its values.

Every variant is called as ``out, v = attention(x, v0)``. ``x`` and ``out`` are (B, N, C); ``v`` is this layer's values
and ``v0`` those of the first layer, both (B, H, N, D) with C = H·D. ``v0 is None`` says "this is the first layer"; the
trunk hands the first layer's ``v``, or what :func:`anchored` makes of it, to all later ones. There is no layer index
and no cached state, so compilation, activation checkpointing and data-parallel training need no special care.

A new variant is a subclass of :class:`Variant` that overrides ``attend``, the rule in softmax attention's place. Below,
A is the row-softmax of Q Kᵀ / √D and D = 11ᵀ / N the uniform average; in causal models both run over j ≤ i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from neutreno.config.options import SUPPLIED, DropRate, NonNegative, Share, Size, checked
from neutreno.errors import InputError

Anchor = Literal["v0", "none", "detached", "shuffled"]  # what stands for V_0 in the fidelity term
_OF_OTHERS = "anchor=shuffled takes the values of another sequence of the batch"


def fidelity(out: Tensor, v: Tensor, v0: Tensor, lam: float, anchor: Anchor = "v0", pull: bool = True) -> Tensor:
    """NeuTRENO's fidelity term, ``out + λ̃ (V_0 − V_l)``, or one half of it; all tensors of one shape and type.

    The halves tell what the term does by holding tokens near V_0 from what it does by weakening the average, since
    ``A V − λ̃ V = (A − λ̃ I) V``.

    Args:
        anchor: "none" leaves λ̃ V_0 out; for all others ``v0`` is what :func:`anchored` made of the first layer's.
        pull: False leaves −λ̃ V_l out. One of the halves must be there.
    """
    if not pull:
        return torch.add(out, v0, alpha=lam)
    held = torch.add(out, v, alpha=-lam)  # the gradient of sub would be negated and then scaled
    return held if anchor == "none" else held.add_(v0, alpha=lam)  # in its own place: ``out`` is kept for the gradient


def anchored(v: Tensor, anchor: Anchor, training: bool, causal: bool = False) -> Tensor:
    """What the first layer hands on as V_0 to all others, so that one permutation holds for a whole pass.

    Controls of the fidelity term: "detached" is V_0 without a way for gradients to the first layer, "shuffled" V_0 of
    other tokens. One permutation serves all samples and heads, so that no sample's output depends on which others are
    evaluated with it. In training it comes from torch's global generator, in evaluation it is always the same. No token
    of a causal model may see a later one's value: there it is that of the same position in another sequence of the
    micro-batch, so how a batch is split across ranks and micro-batches decides which.

    Args:
        v: the first layer's values, (B, …, N, D).

    Raises:
        InputError: shuffled values of a causal model, and a batch of one sequence.
    """
    if anchor == "detached":
        return v.detach()
    if anchor != "shuffled":
        return v
    if causal:
        if len(v) < 2:
            raise InputError(f"{_OF_OTHERS}, and this is a batch of one")
        return v.roll(1, 0)
    return v[..., _permutation(v.shape[-2], training, v.device), :]


def _permutation(n: int, training: bool, device: torch.device) -> Tensor:
    generator = None if training else torch.Generator().manual_seed(0)  # on the CPU: the same on every device
    return torch.randperm(n, generator=generator).to(device)


def needs_others(model: nn.Module) -> str:
    """What a part of the model takes from other samples of a batch, in words; empty where it takes nothing."""
    return next(filter(None, (getattr(module, "needs_others", "") for module in model.modules())), "")


class SoftmaxAttention(nn.Module):
    """Multi-head softmax self-attention, ``U = softmax(Q Kᵀ / √D) V``: the baseline of every comparison.

    Parameter names and shapes are timm's (``qkv``, ``proj``), so released ViT and DeiT weights fit. Runs on PyTorch's
    fused attention; no N × N matrix is held in memory (on the CPU PyTorch builds one when ``attn_drop`` > 0).

    Args:
        dim: C, width of the tokens.
        num_heads: H; must divide ``dim``.
        qkv_bias: learn a bias for queries, keys and values.
        attn_drop, proj_drop: dropout on the attention weights and on the output.
        proj_bias: learn a bias for the output.
        causal: no token sees a later one (language models).

    Raises:
        InputError: the heads do not divide the width, or the model is causal and the rule is one that ``sees_all``
            tokens.
    """

    sees_all = ""  # how a rule looks at all tokens, which no causal model may
    needs_others = ""  # what a rule takes from other samples of a batch, which then is never of one

    @checked
    def __init__(
        self,
        dim: Annotated[Size, SUPPLIED],
        num_heads: Annotated[Size, SUPPLIED],
        qkv_bias: Annotated[bool, SUPPLIED] = True,
        attn_drop: Annotated[DropRate, SUPPLIED] = 0.0,
        proj_drop: Annotated[DropRate, SUPPLIED] = 0.0,
        proj_bias: Annotated[bool, SUPPLIED] = True,
        causal: Annotated[bool, SUPPLIED] = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide embed_dim={dim}; choose a divisor of {dim}")
        if causal and self.sees_all:
            raise InputError(f"{self.sees_all}, so a language model would see the future")
        self.num_heads, self.attn_drop, self.causal = num_heads, attn_drop, causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def average(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A V, fused."""
        dropout = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """A (B, H, N, N), which fused attention never holds: for layer-wise metrics, and for rules that need it."""
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if self.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        return scores.softmax(-1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        """The rule itself: q, k, v, v0 (B, H, N, D) → U (B, H, N, D). If ``causal``, no token of U knows later ones."""
        return self.average(q, k, v)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, C): three of (B, H, N, D)."""
        batch, tokens, _ = x.shape
        return self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def averaged(self, x: Tensor, v0: Tensor | None = None) -> dict[str, Callable]:
        """What makes ``weights``, ``kernel`` and ``values`` of :class:`neutreno.oversmoothing.tokens.LayerTokens`."""
        q, k, v = self.project(x)
        weights = partial(self.weights, q, k)
        return {"weights": weights, "kernel": weights, "values": lambda: (v, v if v0 is None else v0)}

    def forward(self, x: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(x)
        out = self.mix(q, k, v, v0).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out)), v


class NeutrenoAttention(SoftmaxAttention):
    """Softmax attention plus NeuTRENO's fidelity term: ``U_l = softmax(Q Kᵀ / √D) V_l + λ̃ (V_0 − V_l)`` for l ≥ 1.

    The term is the descent direction of ``G(u) = ½ ∫ λ(x) ‖u(x) − f(x)‖² dx`` with f the first layer's values; it pulls
    tokens back to what they were and so resists over-smoothing. Per head, before the output projection, on all tokens.
    It adds no parameter; λ̃ = 0 is exactly softmax attention. (Nguyen, Nguyen, Baraniuk, NeurIPS 2023.)

    Args:
        lam: λ̃ ≥ 0. The paper uses 0.6 for images and 0.4 for text.
        anchor: what stands for V_0: "none", "detached" and "shuffled" are controls; see :func:`anchored`.
        pull: False leaves −λ̃ V_l out.

    Raises:
        InputError: λ̃ is not a finite number ≥ 0, or nothing is left of the term.
    """

    @checked
    def __init__(self, *args, lam: NonNegative = 0.6, anchor: Anchor = "v0", pull: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if anchor == "none" and not pull:
            raise InputError("anchor=none with pull=false is softmax attention by another name; take attention=softmax")
        self.lam, self.anchor, self.pull = float(lam), anchor, pull
        if self.lam and self.causal and anchor == "shuffled":
            self.needs_others = _OF_OTHERS

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        """U without the fidelity term."""
        return self.average(q, k, v)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        out = self.attend(q, k, v, v0)
        if v0 is None or self.lam == 0:
            return out
        return fidelity(out, v, v0, self.lam, self.anchor, self.pull)

    def forward(self, x: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, v = super().forward(x, v0)
        if v0 is None and self.lam:
            v = anchored(v, self.anchor, self.training, self.causal)
        return out, v

    def extra_repr(self) -> str:
        controls = "" if self.anchor == "v0" and self.pull else f", anchor={self.anchor}, pull={self.pull}"
        return f"lam={self.lam}{controls}"


class Variant(NeutrenoAttention):
    """Another rule in softmax attention's place; ``lam`` adds NeuTRENO's fidelity term to it as well.

    Args:
        lam: λ̃ ≥ 0; None: no fidelity term.
    """

    @checked
    def __init__(self, *args, lam: NonNegative | None = None, **kwargs) -> None:
        super().__init__(*args, lam=0.0 if lam is None else lam, **kwargs)

    def token_mean(self, v: Tensor) -> Tensor:
        """D V: the mean token, (B, H, 1, D); of the tokens up to each, (B, H, N, D), if causal."""
        if not self.causal:
            return v.mean(-2, keepdim=True)
        kind = torch.promote_types(v.dtype, torch.float32)
        count = torch.arange(1, v.shape[-2] + 1, device=v.device, dtype=kind)
        return (v.to(kind).cumsum(-2) / count[:, None]).to(v.dtype)


class AttnScale(Variant):
    """AttnScale: ``U = (D + (1 + ω)(A − D)) V = (1 + ω) A V − ω D V``, with a learned ω per head that starts at 0.

    Raises the weight of what sets tokens apart (A − D removes no more than the average). Stays on fused attention.
    (Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022.)
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.omega = nn.Parameter(torch.zeros(self.num_heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        omega = self.omega[:, None, None]
        return (1 + omega) * self.average(q, k, v) - omega * self.token_mean(v)


class CenteredAttention(Variant):
    """Centered attention: ``U = (A − D) V = A V − D V``; no parameter, fused. (Ali, Galanti, Wolf, "Centered
    Self-Attention Layers", 2023.)"""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        return self.average(q, k, v) - self.token_mean(v)


class LaplacianHeads(Variant):
    """Laplacian heads: the first heads use ``U = (I − A) V``, the graph Laplacian of A, the others ``A V``. Fused.

    No mitigation: it is made to smooth. The output projection chooses the sign of I − A, and its authors find that
    trained networks use it to collapse the tokens of a sequence, and gain by that. (Zhang and Papyan, "Laplacian Heads
    Improve Transformers by Smoothing Token Representations", 2026, arXiv 2602.09297. Their code takes the last heads.)

    Args:
        fraction: of the heads that use I − A, rounded; from 0 to 1.
    """

    @checked
    def __init__(self, *args, fraction: Share = 0.5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.laplacian = round(fraction * self.num_heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        out = self.average(q, k, v)
        return torch.cat([v[:, : self.laplacian] - out[:, : self.laplacian], out[:, self.laplacian :]], dim=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, laplacian={self.laplacian} of {self.num_heads} heads"


class GFSA(Variant):
    """Graph-filter self-attention: ``U = A' V, A' = A + λ_h (A + (K − 1)(A² − A))``, a learned λ per head from 0.

    The bracket approximates A^K to first order. ``A² V = A (A V)`` is a second fused call. The paper's filter is
    ``w_0 I + w_1 A + w_K A^K`` with weights per head. Of its code, that for images is this rule: w_0 = 0, w_1 = 1 and
    w_K = λ learned from 0, K = 4 (Swin: 3). That for BERT has a fixed w_0 I besides. Attention dropout falls there once
    on A' (images) or on A before it is squared (BERT), here on each of the two calls by a mask of its own. (Choi et
    al., "Graph Convolutions Enrich the Self-Attention in Transformers!", NeurIPS 2024.)

    Args:
        power: K ≥ 2.
    """

    @checked
    def __init__(self, *args, power: Annotated[int, Ge(2), Le(64)] = 4, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.power = power
        self.filter = nn.Parameter(torch.zeros(self.num_heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        once = self.average(q, k, v)
        twice = self.average(q, k, once)
        return once + self.filter[:, None, None] * (once + (self.power - 1) * (twice - once))


class ExclusiveAttention(Variant):
    """XSA: ``zᵢ = yᵢ − (yᵢᵀ vᵢ) vᵢ / ‖vᵢ‖², y = A V``: a token takes from the others only what its own value lacks.

    No parameter, fused; where vᵢ = 0, zᵢ = yᵢ. (Exclusive self-attention, arXiv 2603.09078.)
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        own = F.normalize(v, dim=-1)
        y = self.average(q, k, v)
        return y - (y * own).sum(-1, keepdim=True) * own


class ValueResidual(Variant):
    """Value residual (ResFormer): ``U = A (½ V_0 + ½ V_l)`` in every layer but the first. Fused.

    A fidelity term, if asked for, is λ̃ (V_0 − V_l) with V_l as projected. (Zhou et al., "Value Residual Learning For
    Alleviating Attention Concentration In Transformers", 2024.)

    Args:
        learned: each layer learns the two weights, from ½ and ½.
    """

    @checked
    def __init__(self, *args, learned: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.shares = nn.Parameter(torch.full((2,), 0.5)) if learned else (0.5, 0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        return self.average(q, k, v if v0 is None else self.shares[0] * v0 + self.shares[1] * v)


class ReAttention(Variant):
    """Re-attention: ``U = Norm_h(Θ A) V``; Θ (H, H) mixes the heads' maps, and batch normalisation follows per head.

    Needs A itself, so it holds an N × N matrix. Normalisation takes the mean over all tokens and samples of a batch, so
    it is not an attention for causal models, and ranks that split a batch differ by their parts' statistics. Before
    training, evaluation mode is softmax attention, up to the norm's ε: Θ starts at the identity and the running
    statistics at mean 0 and variance 1. Training mode is far from it, since the batch's own statistics take the mean
    map 1/N away. (Zhou et al., "DeepViT: Towards Deeper Vision Transformer", 2021. In their code Θ is a 1 × 1
    convolution with PyTorch's random start and a bias, of which the norm leaves nothing.)
    """

    sees_all = "attention=reattention normalises over all tokens"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.theta = nn.Parameter(torch.eye(self.num_heads))
        self.norm = nn.BatchNorm2d(self.num_heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        a = F.dropout(self.weights(q, k), self.attn_drop, self.training)
        return self.norm(torch.einsum("gh,bhij->bgij", self.theta, a)) @ v


class LinearAttention(Variant):
    """Linear attention: A is ``φ(Q) φ(K)ᵀ`` with rows normalised to sum 1, φ = elu + 1, in O(N D²) time.

    Causal models sum in chunks of tokens, so that no N × N matrix is held either. Sums are taken in float32 and without
    autocast. There are no weights to drop: ``attn_drop`` has no effect. (Katharopoulos et al., "Transformers are RNNs",
    ICML 2020.)

    Args:
        scale_output: U = A V / √D instead of A V; the fidelity term is added after it, unscaled. With ``lam=0.2`` that
            is NeuTRENO's code for WikiText-103, apart from the 1e-5 that it adds to the rows' sums.
    """

    chunk = 64

    @checked
    def __init__(self, *args, scale_output: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale_output = scale_output

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        products = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
        if self.causal:
            products = products.tril()
        return products / products.sum(-1, keepdim=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        kind = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast(v.device.type, enabled=False):
            q, k = F.elu(q.to(kind)) + 1, F.elu(k.to(kind)) + 1
            values = F.pad(v.to(kind), (0, 1), value=1.0)  # the last column sums up the weights
            summed = self._sum_before(q, k, values) if self.causal else q @ (k.mT @ values)
            out = summed[..., :-1] / summed[..., -1:]
            return (out / math.sqrt(v.shape[-1]) if self.scale_output else out).to(v.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale_output={self.scale_output}"

    def _sum_before(self, q: Tensor, k: Tensor, values: Tensor) -> Tensor:
        """``Σ_{j ≤ i} (qᵢ·kⱼ) valuesⱼ``: by a masked product within a chunk, by a running sum of k ⊗ values before."""
        tokens = q.shape[-2]
        padded = (F.pad(x, (0, 0, 0, -tokens % self.chunk)) for x in (q, k, values))
        q, k, values = (x.unflatten(-2, (-1, self.chunk)) for x in padded)
        states = k.mT @ values
        earlier = states.cumsum(-3) - states
        return ((q @ k.mT).tril() @ values + q @ earlier).flatten(-3, -2)[..., :tokens, :]
