"""Segmenter on the project's trunk: a ViT encoder and a mask transformer (Strudel et al., ICCV 2021).

Parameter names are the released Segmenter's, which are timm's under ``encoder.`` and ``decoder.``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from timm.layers import trunc_normal_
from torch import Tensor, nn

from neutreno.attention import SoftmaxAttention
from neutreno.checkpoints import load_strictly, load_weights, read_weights, resampled
from neutreno.config.options import Depth, DropRate, NonNegative, Positive, Ratio, Size, Weights, checked
from neutreno.errors import InputError, check_number
from neutreno.models.transformer import Block, Trunk, init_linears
from neutreno.models.vit import VisionTransformer


class MaskTransformer(nn.Module):
    """Segmenter's decoder: patches and one embedding per class pass through blocks together; a mask is their product.

    It has a trunk, and so separate first-layer values V_0. Patch tokens (B, N, C) → masks (B, num_classes, N).

    Args:
        encoder: what the patches come from; the decoder is as wide, has as many heads and as wide an MLP.
        drop_rate: dropout on attention weights and on the outputs of attention and MLP.
        variant: attention, block and norm_eps of the blocks; norm_eps of all norms.
    """

    def __init__(
        self, encoder: VisionTransformer, num_classes: int, depth: int, drop_rate: float, **variant: Any
    ) -> None:
        super().__init__()
        dim, first, norm = encoder.embed_dim, encoder.blocks[0], partial(nn.LayerNorm, eps=variant["norm_eps"])
        self.num_classes, self.grad_checkpointing = num_classes, False
        self.proj_dec = nn.Linear(dim, dim)
        self.cls_emb = nn.Parameter(trunc_normal_(torch.empty(1, num_classes, dim), std=encoder.init_std))
        alike = {"dim": dim, "num_heads": first.attn.num_heads, "mlp_ratio": first.mlp.fc1.out_features / dim}
        self.blocks = Trunk.of(depth, proj_drop=drop_rate, attn_drop=drop_rate, **alike, **variant)
        self.decoder_norm = norm(dim)
        self.proj_patch = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.proj_classes = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.mask_norm = norm(num_classes)
        init_linears(self, encoder.init_std)

    def forward(self, patches: Tensor) -> Tensor:
        x = torch.cat([self.proj_dec(patches), self.cls_emb.expand(len(patches), -1, -1)], dim=1)
        x = self.decoder_norm(self.blocks(x, checkpointing=self.grad_checkpointing))
        patches, classes = x[:, : -self.num_classes], x[:, -self.num_classes :]
        patches = F.normalize(patches @ self.proj_patch, dim=-1)
        classes = F.normalize(classes @ self.proj_classes, dim=-1)
        return self.mask_norm(patches @ classes.mT).mT


_OF_ENCODER = ("embed_dim", "depth", "num_heads", "mlp_ratio", "init_std", "pos_std", "drop_path_rate", "distilled")


class Segmenter(nn.Module):
    """Images (B, in_chans, H, W) of any size → logits per pixel (B, num_classes, H, W).

    The image is padded to whole patches, the masks are resized bilinearly to pixels and cropped back.

    Args:
        size, embed_dim, depth, num_heads, mlp_ratio, init_std, pos_std, drop_path_rate, distilled: of the encoder, see
            :class:`neutreno.models.vit.VisionTransformer`.
        img_size: side of the square training crop; the position embedding is of its patches.
        num_classes: None where the data set tells it.
        norm_eps: of all norms; the released Segmenter's is PyTorch's default, not timm's 1e-6.
        encoder_weights: start the encoder from a run folder (a classifier's or a Segmenter's), a checkpoint file, or a
            pretrained timm model by name; its head is left out and its position embedding resized.
        weights: start the whole network from a run folder or checkpoint file, the released Segmenter's included.
        new_head: leave out what depends on the number of classes in ``weights``.

    Raises:
        InputError: no such size; the weights cannot be read or do not fit.
    """

    output = "masks"
    dynamic_img_size = True  # timm's name: it takes images of any size

    @checked
    def __init__(
        self,
        size: str = "tiny",
        img_size: Size = 512,
        in_chans: Size = 3,
        num_classes: Annotated[int, Ge(2), Le(10**6)] | None = 150,
        patch_size: Size = 16,
        embed_dim: Size | None = None,
        depth: Depth | None = None,
        num_heads: Size | None = None,
        mlp_ratio: Ratio | None = None,
        init_std: NonNegative | None = None,
        pos_std: NonNegative | None = None,
        drop_path_rate: DropRate = 0.0,
        distilled: bool = False,
        decoder_depth: Depth = 2,
        decoder_drop_rate: DropRate = 0.1,
        norm_eps: Positive = 1e-5,
        encoder_weights: Weights = None,
        weights: Weights = None,
        new_head: bool = False,
        attention: Callable[..., nn.Module] = SoftmaxAttention,
        block: Callable[..., nn.Module] = Block,
    ) -> None:
        super().__init__()
        check_number("num_classes", num_classes, 2, integer=True)
        own = {name: value for name, value in locals().items() if name in _OF_ENCODER}
        variant = {"attention": attention, "block": block, "norm_eps": norm_eps}
        any_size = {"dynamic_img_size": True, "dynamic_img_pad": True, "bilinear_positions": True}
        self.encoder = VisionTransformer(size, img_size, patch_size, in_chans, 0, **own, **any_size, **variant)
        self.decoder = MaskTransformer(self.encoder, num_classes, decoder_depth, decoder_drop_rate, **variant)
        self.num_classes = num_classes
        self.smallest_side = max(self.encoder.patch_embed.patch_size)  # of a window, in pixels
        if encoder_weights is not None:
            load_encoder(self.encoder, encoder_weights)
        if weights is not None:
            of_classes = ("decoder.cls_emb", "decoder.mask_norm.")
            load_weights(self, weights, new_head, of_classes, unused=("encoder.head.", "encoder.head_dist."))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizer factory must not decay, besides norms and biases."""
        return {"decoder.cls_emb", *(f"encoder.{name}" for name in self.encoder.no_weight_decay())}

    def forward(self, images: Tensor) -> Tensor:
        patches = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]
        height, width = images.shape[-2:]
        embed = self.encoder.patch_embed
        masks = self.decoder(patches).unflatten(2, embed.dynamic_feat_size((height, width)))
        padded = [patch * side for patch, side in zip(embed.patch_size, masks.shape[-2:], strict=True)]
        return F.interpolate(masks, size=padded, mode="bilinear")[..., :height, :width]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, in encoder and decoder."""
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def token_subsets(self, stack: str, tokens: int) -> dict[str, Tensor]:
        """Which of a layer's tokens (N,) are patches, for layer-wise metrics: not the class token (encoder), not the
        class embeddings, which stand last (decoder)."""
        if stack == "encoder.blocks":
            return self.encoder.token_subsets(stack, tokens)
        return {"patch": torch.arange(tokens) < tokens - self.num_classes}


def load_encoder(encoder: VisionTransformer, source: str | Path) -> None:
    """Load a ViT's weights, or those of a Segmenter's encoder, without a head; positions are resized to ``encoder``'s.

    Raises:
        InputError: they are of another width or do not fit otherwise.
    """
    try:
        weights = read_weights(source)
    except InputError as error:
        remedy = "train that run first, or name other weights (null: from scratch)"
        raise InputError(f"model.encoder_weights: {error}; {remedy}") from error
    if any(name.startswith("encoder.") for name in weights):
        weights = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    weights = {k: v for k, v in weights.items() if not k.startswith(("head.", "head_dist."))}
    positions = weights.get("pos_embed")
    if positions is not None and positions.ndim == 3 and positions.shape[-1] != encoder.embed_dim:
        raise InputError(
            f"model.encoder_weights={source} has a width of {positions.shape[-1]}, the model of "
            f"{encoder.embed_dim}; choose model.size or model.embed_dim to match"
        )
    load_strictly(encoder, resampled(encoder, weights), source)
