"""Checkpoints: written whole or not at all, read without running anything that lies in them, loaded strictly."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from neutreno.errors import InputError
from neutreno.files import replacing
from neutreno.variants import AT_BASELINE, recorded_axes

_log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames, so that a kill or a full disk never costs the previous checkpoint.

    Lightning's native writer moves the file from ``$TMPDIR``, which is not atomic across file systems.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "wb") as file:
            torch.save(checkpoint, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU. Only tensors and plain containers are accepted; nothing in it is executed.

    Raises:
        InputError: no such file, not a checkpoint, or one that holds other objects than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # DeiT's and timm's scripts store their arguments as a Namespace, which holds no code.
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with warnings.catch_warnings(action="ignore"), allowed:  # on pickle protocols, before the refusal
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a checkpoint of plain weights: reading it could run code, so it was refused"
        ) from error
    except Exception as error:  # a truncated zip, a text file, a broken safetensors header: exceptions differ by cause
        raise InputError(f"{path} is not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def state_dict_of(content: dict[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """The model's weights out of a checkpoint of this project, Lightning, DeiT's scripts or timm's."""
    if isinstance(content.get("state_dict"), dict) and any(name.startswith("model.") for name in content["state_dict"]):
        prefix = "ema.module." if ema else "model."
        own = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
        return {k.removeprefix("net."): v for k, v in own.items()}  # TimmModel's prefix: timm's names are left
    for key in ("state_dict_ema", "model_ema") if ema else ("model", "state_dict"):
        if key in content:
            return content[key]
    return content


def checkpoint_file(source: str | Path) -> Path:
    """The checkpoint that ``source`` means: a file itself, of a run folder the last."""
    path = Path(source)
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def trained_with(source: str | Path, axes: dict[str, Any]) -> dict[str, Any] | None:
    """The variants that the weights of ``source`` (see :func:`read_weights`) were trained with, for
    :func:`neutreno.variants.check_trained`; a timm model's are at the baseline of all ``axes``."""
    if Path(source).exists():
        return recorded_axes(read_checkpoint(checkpoint_file(source)))
    return dict.fromkeys(axes, AT_BASELINE)


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Weights by name from a run folder (its last checkpoint), a checkpoint file (``.ckpt``, ``.pth``,
    ``.safetensors``), or else a timm model of that name whose pretrained weights timm has in its cache or downloads.

    Raises:
        InputError: there are none.
    """
    if Path(source).exists():
        weights = state_dict_of(read_checkpoint(checkpoint_file(source)))
    else:
        weights = _timm_weights(str(source))
    return _by_name(weights, source)


def _by_name(weights: Any, source: str | Path) -> dict[str, Tensor]:
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{source} holds no weights by name")
    return weights


def load_weights(
    model: nn.Module,
    source: str | Path,
    new_head: bool = False,
    heads: tuple[str, ...] = ("head.", "head_dist."),
    unused: tuple[str, ...] = (),
) -> None:
    """Load ``source`` (see :func:`read_weights`) into ``model``, strictly: every parameter must be there, and no other.

    ``new_head`` leaves out its classifier (what begins with one of ``heads``), so that the model keeps a fresh one: for
    data of other classes. What begins with one of ``unused`` is left out where the model has no such thing.

    Raises:
        InputError: names the parameters that are missing, unexpected or of another shape.
    """
    weights = {k: v for k, v in read_weights(source).items() if not (unused and k.startswith(unused))}
    own = {k: v for k, v in model.state_dict().items() if k.startswith(heads)}
    if new_head:
        weights = {k: v for k, v in weights.items() if not k.startswith(heads)} | own
    elif any(k in weights and len(weights[k]) != len(v) for k, v in own.items()):
        name = next(k for k, v in own.items() if len(weights.get(k, v)) != len(v))
        raise InputError(
            f"the weights of {source} are for {len(weights[name])} classes, the model has {len(own[name])}; "
            "model.new_head=true keeps the rest and starts a fresh head"
        )
    load_fitting(model, weights, source)


def load_fitting(model: nn.Module, weights: Any, source: str | Path) -> None:
    """:func:`load_strictly`, after :func:`resampled`.

    Raises:
        InputError: names the parameters that do not fit, and which option chooses the model's.
    """
    weights = resampled(model, weights)
    try:
        load_strictly(model, weights, source)
    except InputError as error:
        own = model.state_dict()
        advice = _advice({k: (weights[k].shape, v.shape) for k, v in own.items() if k in weights}, {*own} ^ {*weights})
        raise InputError(f"{error}{advice}") from error


def resampled(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another resolution or patch size made to fit the ViTs of timm's kind in ``model``, as timm does: the
    patch projection by pseudo-inverse resizing, the grid of positions by interpolation. The others as they are."""
    from timm.layers import resample_abs_pos_embed, resample_patch_embed
    from timm.models import VisionTransformer

    weights = dict(weights)
    for name, vit in model.named_modules():
        start = f"{name}." if name else ""
        patches, positions = (weights.get(f"{start}{k}") for k in ("patch_embed.proj.weight", "pos_embed"))
        if not isinstance(vit, VisionTransformer) or patches is None or positions is None or vit.pos_embed is None:
            continue
        own = vit.patch_embed.proj.weight
        if patches.ndim == 4 and patches.shape[:2] == own.shape[:2] and patches.shape != own.shape:
            weights[f"{start}patch_embed.proj.weight"] = resample_patch_embed(patches, list(own.shape[2:]))
            _log.info("patch projection: %s resampled to %s pixels", tuple(patches.shape[2:]), tuple(own.shape[2:]))
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        side = math.isqrt(max(0, positions.shape[1] - prefix)) if positions.ndim == 3 else 0
        if positions.shape == vit.pos_embed.shape or side == 0 or side * side + prefix != positions.shape[1]:
            continue
        how = {"interpolation": "bilinear", "antialias": False} if getattr(vit, "bilinear_positions", False) else {}
        grid = list(vit.patch_embed.grid_size)
        weights[f"{start}pos_embed"] = resample_abs_pos_embed(positions, grid, [side, side], prefix, **how)
        _log.info("positions: a grid of %s resized to %s", (side, side), tuple(grid))
    return weights


def _advice(shapes: dict[str, tuple[torch.Size, torch.Size]], one_sided: set[str]) -> str:
    """Which option chooses what the weights are not made for."""
    inner = {name.rpartition("blocks.")[2].lstrip("0123456789."): pair for name, pair in shapes.items()}
    differ = {name.rpartition("encoder.")[2]: pair for name, pair in inner.items() if pair[0] != pair[1]}
    ends = {name.rpartition("encoder.")[2].partition(".")[0] for name in one_sided}
    rules = [
        ("norm1.weight" in differ, "model.size (or model.embed_dim) chooses the width"),
        (
            bool(ends & {"cls_token", "dist_token", "reg_token", "head_dist"}),
            "model.distilled, model.reg_tokens and model.class_token choose the tokens beside the patches",
        ),
        (bool(ends & {"fc_norm", "attn_pool"}), "model.global_pool chooses how tokens are pooled"),
        (
            bool(one_sided) and all(name.endswith("qkv.bias") for name in one_sided),
            "model.qkv_bias chooses whether there is a bias",
        ),
        (
            bool(one_sided) and all("decoder.blocks." in name for name in one_sided),
            "model.decoder_depth chooses the decoder's blocks",
        ),
        (
            bool(one_sided) and all(re.search(r"(^|\.)blocks\.\d+\.", name) for name in one_sided),
            "model.size (or model.depth) chooses the number of blocks, block=… what they hold",
        ),
        ("pos_embed" in differ, "recipe.patch_size and data.img_size choose the grid of patches"),
        ("patch_embed.proj.weight" in differ, "data.in_chans chooses the channels"),
        (any(name.startswith("mlp.") for name in differ), "model.mlp_ratio chooses the width of the MLP"),
    ]
    return next((f"; {said}" for holds, said in rules if holds), "")


def load_strictly(module: nn.Module, weights: Any, source: str | Path) -> None:
    """``load_state_dict`` that checks everything first and names what does not fit.

    Raises:
        InputError: parameters are missing, unexpected or of another shape; then nothing was loaded.
    """
    weights = _by_name(weights, source)
    own = module.state_dict()
    shapes = [
        f"{k} {tuple(weights[k].shape)} ≠ {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    problems = {
        "of another shape (file ≠ model)": shapes,
        "missing": [k for k in own if k not in weights],
        "unexpected": [k for k in weights if k not in own],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {_shorten(names)}" for what, names in problems.items() if names)
        raise InputError(f"the weights of {source} do not fit the model: {said}")
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))  # sharded modules too


def _shorten(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _timm_weights(name: str) -> dict[str, Tensor]:
    import timm

    if not timm.is_model(name):
        raise InputError(f"{name} is neither a run folder, nor a checkpoint file, nor the name of a timm model")
    return pretrained_timm_model(name).state_dict()


def pretrained_timm_model(name: str, **kwargs) -> nn.Module:
    """``timm.create_model`` with the weights from timm's cache, or downloaded.

    Raises:
        InputError: they are in neither.
    """
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it warns of every attempt
    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except (TypeError, AssertionError):  # of the arguments, not of the weights
        raise
    except Exception as error:  # no network, no such weights, a proxy's refusal: each library raises its own kind
        raise InputError(
            f"no pretrained weights of {name} in timm's cache, and none could be downloaded ({type(error).__name__}); "
            "give a local file instead"
        ) from error
