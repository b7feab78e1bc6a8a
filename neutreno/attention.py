"""The equations: how one layer of attention mixes its values.

Every variant is called as ``out, v = attention(x, v0)``. ``x`` and ``out`` are (B, N, C); ``v`` is this layer's values
and ``v0`` those of the first layer, both (B, H, N, D) with C = H·D. ``v0 is None`` says "this is the first layer"; the
trunk hands the first layer's ``v`` to all later ones. There is no layer index and no cached state, so compilation,
activation checkpointing and data-parallel training need no special care.

A new variant is a subclass that overrides :meth:`SoftmaxAttention.mix`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neutreno.errors import InputError, check_number


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
        InputError: the heads do not divide the width.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        proj_bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide embed_dim={dim}; choose a divisor of {dim}")
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        """The rule itself: q, k, v, v0 (B, H, N, D) → U (B, H, N, D). If ``causal``, no token of U knows later ones."""
        dropout = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, C): three of (B, H, N, D)."""
        batch, tokens, _ = x.shape
        return self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

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

    Raises:
        InputError: λ̃ is not a finite number ≥ 0.
    """

    def __init__(self, *args, lam: float = 0.6, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        check_number("attention.lam", lam)
        self.lam = float(lam)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, v0: Tensor | None) -> Tensor:
        out = super().mix(q, k, v, v0)
        if v0 is None or self.lam == 0:
            return out
        return torch.add(out, v0 - v, alpha=self.lam)

    def extra_repr(self) -> str:
        return f"lam={self.lam}"
