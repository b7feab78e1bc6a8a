"""ViT and DeiT on the project's trunk, with timm's parameter names, registered with timm.

``timm.create_model("deit_tiny_neutreno_patch16_224")`` works wherever ``neutreno.models`` is imported.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import timm
import torch
from annotated_types import Ge, Le
from timm.layers import resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, deit, register_model, vision_transformer
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.checkpoints import load_weights
from neutreno.config.options import Depth, DropRate, NonNegative, Positive, Ratio, Size, Weights, checked
from neutreno.errors import InputError, check_number
from neutreno.models.transformer import Block, Trunk, init_linears

SIZES = {
    # For small images, as deep as tiny. timm's 0.02 is made for base's width: 0.02 √(768 / 64) gives activations as
    # large here; and positions of 0.02 drown beside the embedding of a patch of few pixels.
    "mini": {"embed_dim": 64, "depth": 12, "num_heads": 4, "init_std": 0.07, "pos_std": 0.5},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}


_TIMMS = {  # options of ours of these names are timm's
    name: option.default for name, option in inspect.signature(timm.models.VisionTransformer).parameters.items()
}


class VisionTransformer(timm.models.VisionTransformer):
    """timm's ViT whose attention and block are exchangeable: its blocks are a trunk that carries V_0.

    With softmax attention it equals timm's ``VisionTransformer`` and takes its weights; with ``distilled`` it equals
    timm's ``VisionTransformerDistilled``. What timm's does with ``blocks``, this does with V_0: activation
    checkpointing (``set_grad_checkpointing``), ``forward_intermediates``, ``features_only``, pruning.
    Images (B, in_chans, img_size, img_size) → logits (B, num_classes).

    Args:
        size: one of :data:`SIZES`, which says what is None of ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio``,
            ``init_std`` and ``pos_std``.
        num_classes: None where the data set tells it.
        global_pool, class_token, reg_tokens, no_embed_class, pool_include_prefix, dynamic_img_size, dynamic_img_pad,
            the rates of dropout: timm's. What of timm's is not named here is refused, for no block would heed it.
        attention: constructor of the attention, e.g. ``functools.partial(NeutrenoAttention, lam=0.6)``.
        block: constructor of the blocks; :class:`neutreno.models.transformer.FeatScaleBlock` is one.
        distilled: add DeiT's distillation token and head. At evaluation the two heads are averaged; in training the
            pair of logits is returned once ``distilled_training`` is set, as in timm.
        bilinear_positions: resize positions bilinearly without antialiasing, as Segmenter does; timm's way is bicubic.
        norm_eps: of all LayerNorms.
        init_std, pos_std: of the linear layers' weights and of the position embedding at the start (truncated
            normal; 0.02 in timm).
        weights: loaded strictly: a checkpoint file, a run folder, or the name of a pretrained timm model. Of another
            resolution or patch size they are resampled as timm does.
        new_head: load them without their classifier.

    Raises:
        InputError: no such size, the patch does not divide the image, the heads do not divide the width, two options
            exclude each other, or the weights cannot be read or do not fit.
    """

    output = "classes"

    @checked
    def __init__(
        self,
        size: str = "tiny",
        img_size: Size | tuple[Size, Size] = 224,
        patch_size: Size | tuple[Size, Size] = 16,
        in_chans: Size = 3,
        num_classes: Annotated[int, Ge(0), Le(10**7)] | None = 1000,
        global_pool: Literal["", "avg", "avgmax", "max", "token", "map"] = "token",
        embed_dim: Size | None = None,
        depth: Depth | None = None,
        num_heads: Size | None = None,
        mlp_ratio: Ratio | None = None,
        qkv_bias: bool = True,
        class_token: bool = True,
        reg_tokens: Annotated[int, Ge(0), Le(65_536)] = 0,
        no_embed_class: bool = False,
        pool_include_prefix: bool = False,
        drop_rate: DropRate = 0.0,
        pos_drop_rate: DropRate = 0.0,
        patch_drop_rate: DropRate = 0.0,
        proj_drop_rate: DropRate = 0.0,
        attn_drop_rate: DropRate = 0.0,
        drop_path_rate: DropRate = 0.0,
        attention: Callable[..., nn.Module] = SoftmaxAttention,
        block: Callable[..., nn.Module] = Block,
        distilled: bool = False,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
        bilinear_positions: bool = False,
        norm_eps: Positive = 1e-6,
        init_std: NonNegative | None = None,
        pos_std: NonNegative | None = None,
        weights: Weights = None,
        new_head: bool = False,
    ) -> None:
        own = of_size(size, SIZES, locals())
        check_number("num_classes", num_classes, integer=True)
        timms = {name: value for name, value in own.items() if name in _TIMMS}
        self._check_options(timms, distilled)

        def our_block(**given: Any) -> nn.Module:  # the rest of what timm says to a block is at its default
            shared = ("dim", "num_heads", "mlp_ratio", "qkv_bias", "proj_drop", "attn_drop", "drop_path")
            return block(**{name: given[name] for name in shared}, attention=attention, norm_eps=norm_eps)

        norm = partial(nn.LayerNorm, eps=norm_eps)
        timms["reg_tokens"] += distilled  # timm makes a register token where the distillation token stands
        super().__init__(**timms, norm_layer=norm, block_fn=our_block, weight_init="skip")
        self.blocks = Trunk(self.blocks)
        exact = norm_eps == 1e-6 and not (dynamic_img_size and bilinear_positions)  # else timm's is another
        self.as_timm = named_by_timm(size, {name: own[name] for name in timms}, distilled) if exact else None
        self.distilled_training = False
        self.resizing = {"interpolation": "bilinear", "antialias": False} if bilinear_positions else {}  # of positions
        self.init_std, self.pos_std = own.get("init_std", 0.02), own.get("pos_std", 0.02)
        self.dist_token = self.head_dist = None
        if distilled:
            self.dist_token, self.reg_token, self.num_reg_tokens = self.reg_token, None, 0
            self.head_dist = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()
        if weights is not None:
            load_weights(self, weights, new_head)

    @staticmethod
    def _check_options(given: dict[str, Any], distilled: bool) -> None:
        for side, patch in zip(to_2tuple(given["img_size"]), to_2tuple(given["patch_size"]), strict=True):
            if side % patch and not given["dynamic_img_pad"]:
                whole = max(1, round(side / patch)) * patch
                said = f"patch_size={patch} does not divide img_size={side}"
                raise InputError(f"{said}; change one of them, e.g. to img_size={whole}")
        if given["global_pool"] == "token" and not given["class_token"]:
            raise InputError("class_token=false leaves no token for global_pool=token; set global_pool=avg")
        if distilled and (given["global_pool"] != "token" or given["reg_tokens"] or not given["class_token"]):
            raise InputError("distilled=true reads class and distillation token; leave the other options of tokens out")
        if given["dynamic_img_pad"] and not given["dynamic_img_size"]:
            raise InputError("dynamic_img_pad=true is for images of any size: it needs dynamic_img_size=true")

    def init_weights(self) -> None:
        """Weights as they are before training, as DeiT's release has them: class token truncated N(0, 0.02), where timm
        starts it near 0. It has none of timm's modes."""
        trunc_normal_(self.pos_embed, std=self.pos_std)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                trunc_normal_(token, std=0.02)
        init_linears(self, self.init_std)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's, which knows no distillation token."""
        matcher = super().group_matcher(coarse)
        return matcher | {"stem": f"{matcher['stem']}|dist_token"}

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return the pair of logits in training, as timm's distilled models do."""
        self.distilled_training = enable

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if self.head_dist is None:
            return super().reset_classifier(num_classes, global_pool)
        if global_pool not in (None, "", "token"):
            raise InputError(f"global_pool={global_pool}: a distilled model reads class and distillation token")
        return deit.VisionTransformerDistilled.reset_classifier(self, num_classes, global_pool)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, N, C), or (B, H, W, C) of an image of any size → tokens with their positions."""
        positions = self.pos_embed
        if self.dynamic_img_size:
            left = 0 if self.no_embed_class else self.num_prefix_tokens
            grids = list(x.shape[1:3]), list(self.patch_embed.grid_size)
            positions, x = resample_abs_pos_embed(positions, *grids, left, **self.resizing), x.flatten(1, 2)
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        x = torch.cat([*prefix, x + positions], 1) if self.no_embed_class else torch.cat([*prefix, x], 1) + positions
        return self.pos_drop(x)

    def _embed(self, images: Tensor) -> Tensor:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(images))))

    def hidden_states(self, images: Tensor) -> list[Tensor]:
        """Tokens (B, N, C) after the embedding (entry 0) and after every block k (entry k), before the final norm."""
        hidden: list[Tensor] = []
        self.blocks(self._embed(images), hidden)
        return hidden

    def token_subsets(self, stack: str, tokens: int) -> dict[str, Tensor]:
        """Which of a layer's tokens (N,) are patches, for layer-wise metrics."""
        return {"patch": torch.arange(tokens) >= self.num_prefix_tokens} if self.num_prefix_tokens else {}

    def forward_features(self, images: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        _refuse(attn_mask, is_causal)
        return self.norm(self.blocks(self._embed(images), checkpointing=self.grad_checkpointing))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        **mask: Any,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """What leaves the blocks at ``indices`` (the last n if a number, all if None), as timm's method gives it."""
        _refuse(**mask)
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt={output_fmt} is neither NCHW nor NLC")
        taken, last = feature_take_indices(len(self.blocks), indices)
        blocks, hidden = (self.blocks[: last + 1] if stop_early else self.blocks), []
        final = blocks(self._embed(x), hidden, self.grad_checkpointing)
        found = [self.norm(hidden[i + 1]) if norm else hidden[i + 1] for i in sorted(set(taken))]  # timm's order
        at = self.num_prefix_tokens
        prefix, found = [tokens[:, :at] for tokens in found], [tokens[:, at:] for tokens in found]
        if output_fmt == "NCHW":
            grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])
            found = [tokens.mT.unflatten(2, grid).contiguous() for tokens in found]
        named = {"image_intermediates": found}
        if return_prefix_tokens and at:
            named["image_intermediates_prefix"] = prefix
            found = list(zip(found, prefix, strict=True))
        if output_dict:
            return named if intermediates_only else named | {"image_features": self.norm(final)}
        return found if intermediates_only else (self.norm(final), found)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if self.head_dist is None:
            return super().forward_head(x, pre_logits)
        return deit.VisionTransformerDistilled.forward_head(self, x, pre_logits)


def named_by_timm(size: str, options: dict[str, Any], distilled: bool) -> tuple[str, dict[str, Any]]:
    """Name and arguments by which ``timm.create_model`` makes a network of these ``options`` with softmax attention; of
    DeiT's, which are ViT's but for the distilled form. Rates of dropout, of training alone, are left out."""
    of_name = "tiny" if size == "mini" else size
    timms = _TIMMS | SIZES[of_name]
    arguments = {k: v for k, v in options.items() if "drop" not in k and (v != timms[k] or k == "num_classes")}
    return f"deit_{of_name}_{'distilled_' if distilled else ''}patch16_224", arguments


def _refuse(attn_mask: Tensor | None = None, is_causal: bool = False) -> None:
    if attn_mask is not None or is_causal:
        raise InputError("attn_mask and is_causal: the project's attention takes no mask; leave them out")


def of_size(size: str, sizes: dict[str, dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    """The options that a size stands for, and before them those ``given`` that are not None.

    Raises:
        InputError: no such size.
    """
    if size not in sizes:
        raise InputError(f"model.size={size} is not known; available: {', '.join(sizes)}")
    return sizes[size] | {name: value for name, value in given.items() if value is not None}


default_cfgs: dict[str, dict[str, Any]] = {}  # where timm looks for them as a model is registered


def _register(family: str, distilled: bool, size: str, attention: str) -> None:
    name = f"{family}_{size}_{'distilled_' if distilled else ''}{attention}_patch16_224"

    def entrypoint(pretrained: bool = False, lam: float | None = None, **kwargs) -> VisionTransformer:
        kwargs = {"size": size, "distilled": distilled, "attention": _ATTENTIONS[attention], **kwargs}
        if lam is not None:
            kwargs["attention"] = partial(kwargs["attention"], lam=lam)
        return build_model_with_cfg(
            VisionTransformer,
            name,
            pretrained,
            pretrained_filter_fn=vision_transformer.checkpoint_filter_fn,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},  # of features_only=True
            **kwargs,
        )

    entrypoint.__name__ = entrypoint.__qualname__ = name
    globals()[name] = entrypoint
    released = deit if family == "deit" else vision_transformer  # whose images are normalised in ways of their own
    default_cfgs[name] = released._cfg(classifier=("head", "head_dist") if distilled else "head")
    register_model(entrypoint)


_ATTENTIONS = {"softmax": SoftmaxAttention, "neutreno": NeutrenoAttention}
for _form in itertools.product((("vit", False), ("deit", False), ("deit", True)), SIZES, _ATTENTIONS):
    _register(*_form[0], *_form[1:])
