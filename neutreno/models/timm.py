"""Any model of timm beside ours: its logits, and its tokens after every layer for layer-wise metrics."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

import timm
import torch
from annotated_types import Ge, Le
from timm.data import resolve_data_config
from torch import Tensor, nn

from neutreno.checkpoints import load_weights, pretrained_timm_model
from neutreno.config.options import START, Depth, DropRate, Size, Weights, builds, checked
from neutreno.errors import InputError, check_number


class TimmModel(nn.Module):
    """A timm model whose tokens can be measured: images (B, in_chans, H, W) → logits (B, num_classes).

    The model itself stays as timm made it. Where all blocks give tokens of one shape (ViT, DeiT, BEiT, EVA, Mixer, …),
    the layers are its blocks, class and register tokens included. Elsewhere (Swin, ConvNeXt, ResNet, …) they are the
    stages of timm's ``feature_info``, whose spatial positions are the tokens.

    Args:
        net: the model.
        input_shape: (in_chans, H, W); one image of it is run here to see what the model gives.

    Raises:
        InputError: the model cannot take such images.
    """

    output = "classes"
    as_timm: tuple[str, dict[str, Any]] | None = None  # name and arguments by which timm made it

    def __init__(self, net: nn.Module, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.net, self.num_classes = net, net.num_classes
        self.channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"  # of its maps
        was_training = net.training
        net.eval()
        try:
            with torch.no_grad():
                net(torch.zeros(1, *input_shape))
        except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
            what = f"{type(net).__name__} of timm takes no images of shape {tuple(input_shape)}"
            raise InputError(f"{what}: {' '.join(str(error).split())}") from error
        net.train(was_training)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """timm's own choice of parameters that its optimizer factory must not decay, besides norms and biases."""
        return {f"net.{name}" for name in getattr(self.net, "no_weight_decay", set)()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, in timm's way."""
        try:
            self.net.set_grad_checkpointing(enable)
        except AssertionError as error:
            what = f"{type(self.net).__name__} of timm has no activation checkpointing"
            raise InputError(f"{what}; leave grad_checkpointing out") from error

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.net.forward_features(images)

    def token_layers(self) -> dict[str, list[str | tuple[str, int]]]:
        """The modules that are layers, by stack, for layer-wise metrics; stages with their channels.

        The blocks, where ``feature_info`` has them all of one width and resolution; else the stages; none where it
        tells of neither, so that they are searched for.
        """
        info, named = list(getattr(self.net, "feature_info", [])), dict(self.net.named_modules())
        alike = len({(stage["num_chs"], stage["reduction"]) for stage in info}) <= 1
        if isinstance(blocks := getattr(self.net, "blocks", None), nn.Sequential | nn.ModuleList) and alike:
            return {"net.blocks": [f"net.blocks.{name}" for name, _ in blocks.named_children()]}
        if not info or any(isinstance(named.get(stage["module"]), nn.ModuleList | None) for stage in info):
            return {}  # a list is never called
        return {"stages": [(f"net.{stage['module']}", stage["num_chs"]) for stage in info]}

    def token_subsets(self, stack: str, tokens: int) -> dict[str, Tensor]:
        """Which of a layer's tokens (N,) are patches; nothing where all are."""
        # Not always timm's num_prefix_tokens: CaiT's and XCiT's class token joins after the blocks.
        prefix = getattr(self.net, "num_prefix_tokens", 0) if stack == "net.blocks" else 0
        patches = getattr(getattr(self.net, "patch_embed", None), "num_patches", None)
        prefix = 0 if tokens == patches else prefix
        return {"patch": torch.arange(tokens) >= prefix} if prefix else {}


@builds(TimmModel)
@checked
def timm_model(
    name: str,
    num_classes: Annotated[int, Ge(0), Le(10**7)] | None = 1000,
    in_chans: Size = 3,
    img_size: Size | None = None,
    drop_rate: DropRate | None = None,
    drop_path_rate: DropRate | None = None,
    attn_drop_rate: DropRate | None = None,
    proj_drop_rate: DropRate | None = None,
    global_pool: str | None = None,
    patch_size: Size | None = None,
    embed_dim: Size | Sequence[Size] | None = None,
    depth: Depth | None = None,
    depths: Sequence[Depth] | None = None,
    num_heads: Size | Sequence[Size] | None = None,
    window_size: Size | None = None,
    pretrained: Annotated[bool, START] = False,
    weights: Weights = None,
    new_head: bool = False,
) -> TimmModel:
    """The timm model ``name``, a tag such as ``.augreg_in21k`` included; its attention is timm's native one.

    Args:
        num_classes: None where the data set tells it.
        img_size: side of its images in pixels; None: what it was made for.
        pretrained: take timm's weights from its cache, or download them.
        weights: or load these, strictly: a checkpoint file, a run folder, or another timm name.
        new_head: leave out their classifier, for data of other classes.
        drop_rate, drop_path_rate, attn_drop_rate, proj_drop_rate, global_pool, patch_size, embed_dim, depth, depths,
            num_heads, window_size: timm's, where the model knows them; None leaves its default.

    Raises:
        InputError: no such model, it cannot be built so, or its weights do not fit or are not available.
    """
    check_number("num_classes", num_classes, integer=True)
    ours = ("name", "img_size", "pretrained", "weights", "new_head")
    kwargs: dict[str, Any] = {k: v for k, v in locals().items() if k not in (*ours, "ours") and v is not None}
    made_for, pretrained = _pretrained_cfg(name), pretrained and weights is None
    if pretrained and made_for.num_classes != num_classes and not new_head:
        raise InputError(
            f"model.name={name} was trained for {made_for.num_classes} classes, not for {num_classes}; "
            "model.new_head=true keeps the rest and starts a fresh head"
        )
    side = img_size or made_for.input_size[-1]
    if made_for.fixed_input_size:
        kwargs["img_size"] = side
    try:
        net = (pretrained_timm_model if pretrained else timm.create_model)(name, **kwargs)
    except InputError:
        raise
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"timm cannot build model.name={name} so: {' '.join(str(error).split())}") from error
    if weights is not None:
        heads = made_for.classifier if isinstance(made_for.classifier, tuple | list) else [made_for.classifier]
        load_weights(net, weights, new_head, tuple(f"{head}." for head in heads))
    model = TimmModel(net, (in_chans, side, side))
    model.as_timm = name, {key: value for key, value in kwargs.items() if "drop" not in key}
    return model


def data_settings(name: str) -> dict[str, Any]:
    """How the images of a timm model's evaluation are made: ``img_size, mean, std, interpolation, crop_pct``.

    Raises:
        InputError: no such model.
    """
    config = resolve_data_config(pretrained_cfg=_pretrained_cfg(name).to_dict())
    settings = {key: config[key] for key in ("interpolation", "crop_pct")}
    return {**settings, "img_size": config["input_size"][-1], "mean": list(config["mean"]), "std": list(config["std"])}


def _pretrained_cfg(name: str) -> Any:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"model.name={name} is not a timm model" + (f"; near: {', '.join(near)}" if near else ""))
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that the model does not have
        raise InputError(f"model.name={name}: {error}") from error
