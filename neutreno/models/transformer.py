"""The project's one transformer block, and the trunk that carries the first layer's values through a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neutreno.config.options import SUPPLIED, DropRate, Positive, Ratio, Size, checked
from neutreno.errors import InputError


class Block(nn.Module):
    """Transformer block with timm's parameter names: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    ``block(x, v0)`` takes tokens (B, N, C) and the first layer's values (or None in the first layer) and returns the
    new tokens and this layer's values; see :mod:`neutreno.attention`.

    Args:
        attention: constructor called as ``attention(dim, num_heads=…, qkv_bias=…, …)``, with the arguments of
            :class:`neutreno.attention.SoftmaxAttention`.
        mixing: further arguments of the attention: qkv_bias, attn_drop, proj_bias, causal.
        norm_first: False: post-norm, ``norm1(α x + attn(x))``, then ``norm2(α x + mlp(x))``, as in the language model.
        residual_scale: α of post-norm; 1 but for DeepNorm.

    Raises:
        InputError: the model is causal, and the block is one that ``sees_all`` tokens.
    """

    sees_all = ""  # how a variant of the block looks at all tokens, which no causal model may

    @checked
    def __init__(
        self,
        dim: Annotated[Size, SUPPLIED],
        num_heads: Annotated[Size, SUPPLIED],
        attention: Annotated[Callable[..., nn.Module], SUPPLIED],
        mlp_ratio: Annotated[Ratio, SUPPLIED] = 4.0,
        proj_drop: Annotated[DropRate, SUPPLIED] = 0.0,
        drop_path: Annotated[DropRate, SUPPLIED] = 0.0,
        norm_eps: Annotated[Positive, SUPPLIED] = 1e-6,
        norm_first: Annotated[bool, SUPPLIED] = True,
        residual_scale: Annotated[Positive, SUPPLIED] = 1.0,
        act_layer: Annotated[Callable[..., nn.Module], SUPPLIED] = nn.GELU,
        **mixing: Any,
    ) -> None:
        if mixing.get("causal") and self.sees_all:
            raise InputError(f"{self.sees_all}, so a language model would see the future")
        super().__init__()
        self.dim, self.norm_first, self.residual_scale = dim, norm_first, residual_scale
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention(dim, num_heads=num_heads, proj_drop=proj_drop, **mixing)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_features=round(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def attention_sublayer(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is added to x first, and this layer's values; a variant of the block overrides it."""
        return self.attn(self.norm1(x) if self.norm_first else x, v0)

    def mlp_sublayer(self, x: Tensor) -> Tensor:
        """What is added to x second."""
        return self.mlp(self.norm2(x) if self.norm_first else x)

    def forward(self, x: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, v = self.attention_sublayer(x, v0)
        if self.norm_first:
            x = x + self.drop_path(out)
            return x + self.drop_path(self.mlp_sublayer(x)), v
        x = self.norm1(torch.add(self.drop_path(out), x, alpha=self.residual_scale))
        return self.norm2(torch.add(self.drop_path(self.mlp_sublayer(x)), x, alpha=self.residual_scale)), v


class FeatScaleBlock(Block):
    """FeatScale: reweight the DC and high-frequency components of the attention sublayer's output x.

    ``DC = mean of x over tokens, HC = x − DC, out = x + λ₁ ⊙ DC + λ₂ ⊙ HC`` with learned λ₁, λ₂ (C,) that start at 0,
    so the block starts as the plain one. The mean runs over all tokens, so it is not for causal models. (Wang et
    al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis", ICLR 2022. Of two versions of
    their DeiT code one adds the scaled parts twice, the other once, as the paper's formula and this do.)
    """

    sees_all = "block=featscale takes the mean of all tokens"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.featscale_dc = nn.Parameter(torch.zeros(self.dim))
        self.featscale_hc = nn.Parameter(torch.zeros(self.dim))

    def attention_sublayer(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
        out, v = super().attention_sublayer(x, v0)
        dc = out.mean(dim=1, keepdim=True)
        return out + self.featscale_dc * dc + self.featscale_hc * (out - dc), v


class LayerScaleBlock(Block):
    """LayerScale: ``x + diag(γ) f(x)`` in both sublayers, with a learned γ (C,) by timm's names (``ls1.gamma``).

    (Touvron et al., "Going deeper with Image Transformers" (CaiT), ICCV 2021, whose γ starts at 0.1 up to 18 layers, at
    1e-5 up to 24, at 1e-6 beyond.)

    Args:
        init_values: γ at the start, > 0.
    """

    @checked
    def __init__(self, *args, init_values: Positive = 0.1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ls1, self.ls2 = LayerScale(self.dim, init_values), LayerScale(self.dim, init_values)

    def attention_sublayer(self, x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
        out, v = super().attention_sublayer(x, v0)
        return self.ls1(out), v

    def mlp_sublayer(self, x: Tensor) -> Tensor:
        return self.ls2(super().mlp_sublayer(x))


class ContraNorm(nn.LayerNorm):
    """ContraNorm: ``LN(x − s softmax(x̂ x̂ᵀ / τ) x)``, which pushes like tokens apart before they are normalised.

    The softmax runs over all tokens of (…, N, C); x̂ are the tokens at length 1. A LayerNorm in all else: names of
    parameters, initial weights. Gradients pass through the similarities, as in the released code.

    Args:
        dim: C.
        scale: s > 0.
        temperature: τ > 0.
        normalize: False: similarities are x xᵀ, as in the paper's formula.
        eps: of the LayerNorm.
    """

    def __init__(self, dim: int, scale: float, temperature: float, normalize: bool, eps: float) -> None:
        super().__init__(dim, eps=eps)
        self.scale, self.temperature, self.normalize = scale, temperature, normalize

    def forward(self, x: Tensor) -> Tensor:
        by = F.normalize(x, dim=-1) if self.normalize else x
        # Σⱼ softmax(x̂ x̂ᵀ / τ)ᵢⱼ xⱼ is attention with the tokens as queries, keys and values
        shared = F.scaled_dot_product_attention(by, by, x, scale=1 / self.temperature)
        return super().forward(x - self.scale * shared)

    def extra_repr(self) -> str:
        contrast = f"scale={self.scale}, temperature={self.temperature}, normalize={self.normalize}"
        return f"{super().extra_repr()}, {contrast}"


class ContraNormBlock(Block):
    """A block with :class:`ContraNorm` in the place of its LayerNorms, as in the released code for images.

    There it is the ``norm_layer`` of timm's ViT, so it also takes the place of the last norm, after all blocks, which
    stays a LayerNorm here. The paper's rule takes the similarities x xᵀ as they are; its code takes those of normalised
    tokens, as does this unless ``normalize`` is off: for tokens of width C that left a norm ‖x‖² ≈ C, so that the
    softmax of plain products is the identity and nothing but LN is left. (Guo et al., "ContraNorm: A Contrastive
    Learning Perspective on Oversmoothing and Beyond", ICLR 2023.) The softmax runs over all tokens, so it is not a
    block for causal models.

    Args:
        placement: "branch": within the residual branches, in the place of ``norm1`` and ``norm2``; "stream": after a
            plain block, on the tokens that leave it, which then are normalised between blocks.
        scale: s > 0; 0.01 in the released script (there the option's default is 0, plain LayerNorm).
        temperature: τ > 0.
        normalize: similarities are cosines.

    Raises:
        InputError: s or τ is not a number > 0.
    """

    sees_all = "block=contranorm compares all tokens"

    @checked
    def __init__(
        self,
        *args,
        placement: Literal["branch", "stream"] = "branch",
        scale: Positive = 0.01,
        temperature: Positive = 1.0,
        normalize: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        norm = partial(ContraNorm, self.dim, scale, temperature, normalize, self.norm2.eps)
        self.contranorm = norm() if placement == "stream" else nn.Identity()
        if placement == "branch":
            self.norm1, self.norm2 = norm(), norm()

    def forward(self, x: Tensor, v0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, v = super().forward(x, v0)
        return self.contranorm(x), v


def init_linears(network: nn.Module, std: float) -> None:
    """timm's default: truncated normal weights, biases 0; convolutions keep PyTorch's own."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _recomputed(block: nn.Module) -> dict[str, Any]:
    """What checkpointing needs to know of a block whose batch norms must not see a batch a second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    @contextmanager
    def again() -> Iterator[None]:
        before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
        try:
            yield
        finally:
            for buffer, was in before:
                buffer.copy_(was)

    return {"context_fn": lambda: (nullcontext(), again())} if norms else {}


class Trunk(nn.ModuleList):
    """A stack of blocks that hands the first block's values V_0 to all later ones.

    timm passes one tensor through an ``nn.Sequential``, where V_0 cannot travel; that is why the trunk is ours. Being a
    list itself, it adds nothing to timm's names (``blocks.0.attn.qkv.weight``), and a slice of it is a trunk.
    """

    @classmethod
    def of(
        cls, depth: int, drop_path_rate: float = 0.0, block: Callable[..., nn.Module] = Block, **kwargs: Any
    ) -> Trunk:
        """``depth`` blocks, ``block(**kwargs)`` each; stochastic depth grows linearly to ``drop_path_rate`` (DeiT)."""
        return cls(block(**kwargs, drop_path=rate) for rate in calculate_drop_path_rates(drop_path_rate, depth))

    def forward(self, x: Tensor, hidden: list[Tensor] | None = None, checkpointing: bool = False) -> Tensor:
        """Tokens (B, N, C) → tokens after the last block; appends x and every block's output to ``hidden`` if given.

        With ``checkpointing`` a block's activations are computed again in the backward pass instead of kept. A block is
        a function of its tokens and V_0; batch norms, which also count, do not count twice.
        """
        v0 = None
        if hidden is not None:
            hidden.append(x)
        for block in self:
            if checkpointing and torch.is_grad_enabled():
                x, v = checkpoint(block, x, v0, use_reentrant=False, **_recomputed(block))
            else:
                x, v = block(x, v0)
            if v0 is None:
                v0 = v
            if hidden is not None:
                hidden.append(x)
        return x
