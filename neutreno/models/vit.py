"""ViT and DeiT on the project's trunk, with timm's parameter names, registered with timm.

``timm.create_model("deit_tiny_neutreno_patch16_224")`` works wherever ``neutreno`` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from timm.layers import PatchEmbed, resample_abs_pos_embed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.checkpoints import load_weights
from neutreno.config.options import Depth, DropRate, NonNegative, Positive, Size, Weights, builds, checked
from neutreno.errors import InputError
from neutreno.models.transformer import Block, Trunk, init_linears, kinds_of_tokens

SIZES = {
    # For small images, as deep as tiny. timm's 0.02 is made for base's width: 0.02 √(768 / 64) gives activations as
    # large here; and positions of 0.02 drown beside the embedding of a patch of few pixels.
    "mini": {"embed_dim": 64, "depth": 12, "num_heads": 4, "init_std": 0.07, "pos_std": 0.5},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}


class VisionTransformer(nn.Module):
    """ViT whose attention is exchangeable and whose token features can be read after every block.

    With softmax attention it equals timm's ``VisionTransformer`` (class token first, learned position embedding,
    pre-norm, GELU) and takes its weights; with ``distilled=True`` it equals timm's ``VisionTransformerDistilled``.
    Images (B, in_chans, img_size, img_size) → logits (B, num_classes).

    Args:
        attention: constructor of the attention, e.g. ``functools.partial(NeutrenoAttention, lam=0.6)``.
        block: constructor of the blocks; :class:`neutreno.models.transformer.FeatScaleBlock` is one.
        dynamic_img_size: take images of any size: they are padded by zeros to whole patches (right and below), and the
            position embedding is resized bilinearly, as in Segmenter.
        distilled: add DeiT's distillation token and head. At evaluation the two heads are averaged; in training the
            pair of logits is returned once ``distilled_training`` is set, as in timm.
        init_std, pos_std: of the linear layers' weights and of the position embedding at the start (truncated
            normal; 0.02 in timm).

    Raises:
        InputError: the patch does not divide the image, or the heads do not divide the width.
    """

    output = "classes"

    @checked
    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: Size = 3,
        num_classes: Annotated[int, Ge(0), Le(10**7)] = 1000,
        embed_dim: Size = 192,
        depth: Depth = 12,
        num_heads: Size = 3,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        drop_rate: DropRate = 0.0,
        pos_drop_rate: DropRate = 0.0,
        proj_drop_rate: DropRate = 0.0,
        attn_drop_rate: DropRate = 0.0,
        drop_path_rate: DropRate = 0.0,
        attention: Callable[..., nn.Module] = SoftmaxAttention,
        block: Callable[..., nn.Module] = Block,
        distilled: bool = False,
        dynamic_img_size: bool = False,
        norm_eps: Positive = 1e-6,
        init_std: NonNegative = 0.02,
        pos_std: NonNegative = 0.02,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise InputError(f"patch_size={patch_size} does not divide img_size={img_size}; change one of them")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 2 if distilled else 1
        self.distilled_training = False
        self.init_std = init_std

        any_size = {"strict_img_size": not dynamic_img_size, "dynamic_img_pad": dynamic_img_size}
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, **any_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + self.num_prefix_tokens, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = Trunk(
            depth,
            drop_path_rate,
            block=block,
            dim=embed_dim,
            num_heads=num_heads,
            attention=attention,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            proj_drop=proj_drop_rate,
            attn_drop=attn_drop_rate,
            norm_eps=norm_eps,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier(num_classes)
        self.head_dist = self._classifier(num_classes) if distilled else None

        trunc_normal_(self.pos_embed, std=pos_std)
        nn.init.normal_(self.cls_token, std=1e-6)
        if distilled:
            trunc_normal_(self.dist_token, std=0.02)
        init_linears(self, init_std)

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimizer factory must not decay, besides norms and biases."""
        return {"pos_embed", "cls_token", "dist_token"}

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.head = self._classifier(num_classes)
        if self.head_dist is not None:
            self.head_dist = self._classifier(num_classes)

    def _embed(self, images: Tensor) -> Tensor:
        prefix = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        x = self.patch_embed(images)
        x = torch.cat([token.expand(len(x), -1, -1) for token in prefix] + [x], dim=1)
        return self.pos_drop(x + self.resized_pos_embed(self.pos_embed, images.shape[-2:]))

    def resized_pos_embed(self, pos_embed: Tensor, img_size: Sequence[int]) -> Tensor:
        """A position embedding of a square grid (or of this model's) for images of another size, bilinearly."""
        grid = self.patch_embed.dynamic_feat_size(img_size)
        own = self.patch_embed.grid_size if pos_embed is self.pos_embed else None
        return resample_abs_pos_embed(pos_embed, grid, own, self.num_prefix_tokens, "bilinear", antialias=False)

    def hidden_states(self, images: Tensor) -> list[Tensor]:
        """Tokens (B, N, C) after the embedding (entry 0) and after every block k (entry k), before the final norm."""
        hidden: list[Tensor] = []
        self.blocks(self._embed(images), hidden)
        return hidden

    def token_features(self, images: Tensor) -> dict[str, list[Tensor]]:
        """The same, by kind of tokens: ``all``, and ``patch`` without class and distillation tokens."""
        return kinds_of_tokens(self.hidden_states(images), self.num_prefix_tokens)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.norm(self.blocks(self._embed(images)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        tokens = [self.head_drop(x[:, i]) for i in range(self.num_prefix_tokens)]
        if not pre_logits:
            tokens = [head(t) for head, t in zip((self.head, self.head_dist), tokens, strict=False)]
        if len(tokens) == 1:
            return tokens[0]
        if self.distilled_training and self.training and not pre_logits:
            return tokens[0], tokens[1]
        return (tokens[0] + tokens[1]) / 2

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(images))


@builds(VisionTransformer)
@checked
def vit(
    size: str = "tiny",
    img_size: Size = 224,
    in_chans: Size = 3,
    num_classes: Annotated[int, Ge(0), Le(10**7)] = 1000,
    patch_size: Size = 16,
    embed_dim: Size | None = None,
    depth: Depth | None = None,
    num_heads: Size | None = None,
    mlp_ratio: Positive | None = None,
    qkv_bias: bool = True,
    init_std: NonNegative | None = None,
    pos_std: NonNegative | None = None,
    drop_path_rate: DropRate | None = None,
    proj_drop_rate: DropRate | None = None,
    attn_drop_rate: DropRate | None = None,
    distilled: bool = False,
    dynamic_img_size: bool = False,
    norm_eps: Positive | None = None,
    weights: Weights = None,
    new_head: bool = False,
    attention: Callable[..., nn.Module] = SoftmaxAttention,
    block: Callable[..., nn.Module] = Block,
) -> VisionTransformer:
    """A ViT/DeiT of one of :data:`SIZES`; what is None is what the size says, or :class:`VisionTransformer`'s default.

    ``weights`` is loaded strictly: a checkpoint file, a run folder, or the name of a pretrained timm model; with
    ``new_head`` all but its classifier.

    Raises:
        InputError: no such size; the weights cannot be read or do not fit.
    """
    own = {k: v for k, v in locals().items() if k not in ("size", "weights", "new_head") and v is not None}
    model = VisionTransformer(**{**of_size(size, SIZES), **own})
    if weights is not None:
        load_weights(model, weights, new_head)
    return model


def of_size(size: str, sizes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options that a size stands for.

    Raises:
        InputError: no such size.
    """
    if size not in sizes:
        raise InputError(f"model.size={size} is not known; there are: {', '.join(sizes)}")
    return sizes[size]


_IMAGENET = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "first_conv": "patch_embed.proj",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_INCEPTION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # what Google's ViT weights expect


def _register(name: str, distilled: bool, size: str, attention: type[SoftmaxAttention]) -> None:
    def entrypoint(pretrained: bool = False, **kwargs) -> VisionTransformer:
        defaults = {**SIZES[size], "patch_size": 16, "distilled": distilled, "attention": attention}
        if "lam" in kwargs:
            defaults["attention"] = partial(attention, lam=kwargs.pop("lam"))
        return build_model_with_cfg(VisionTransformer, name, pretrained, **{**defaults, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__
    globals()[name] = entrypoint
    register_model(entrypoint)


_VARIANTS = {
    f"{family}_{size}_{distilled}{attention}_patch16_224": (family, size, bool(distilled), cls)
    for family, distilled in (("vit", ""), ("deit", ""), ("deit", "distilled_"))
    for size in SIZES
    for attention, cls in {"softmax": SoftmaxAttention, "neutreno": NeutrenoAttention}.items()
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            **_IMAGENET,
            **(_INCEPTION if family == "vit" else {}),
            "classifier": ("head", "head_dist") if distilled else "head",
        }
        for name, (family, _, distilled, _) in _VARIANTS.items()
    }
)
for _name, (_, _size, _distilled, _cls) in _VARIANTS.items():
    _register(_name, _distilled, _size, _cls)
