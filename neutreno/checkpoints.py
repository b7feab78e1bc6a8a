"""Checkpoints: written whole or not at all, read without running anything that lies in them, loaded strictly."""

from __future__ import annotations

import argparse
import json
import logging
import math
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from neutreno.errors import InputError
from neutreno.files import replacing
from neutreno.variants import AT_BASELINE, recorded_axes

_log = logging.getLogger(__name__)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU. Only tensors and plain containers are accepted; nothing in it is executed.

    What ``torch.save`` writes is an archive with a checksum for each tensor, which ``torch.load`` ignores; here a wrong
    one is refused. (A safetensors file or one of PyTorch before 1.6 has none.)

    Raises:
        InputError: no such file, not a checkpoint, a damaged one, or one that holds other objects than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    packed, damaged = False, None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
                damaged = None if packed else archive.testzip()
    except Exception as error:  # of a torn archive: exceptions differ by where it is torn
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); restore it from a copy") from error
    if packed:  # a few bytes may stand for gigabytes
        raise InputError(f"{path} is a compressed archive, which torch.save does not write; refused")
    if damaged is not None:
        raise InputError(f"{path} is damaged: the checksum of {damaged} is wrong; restore it from a copy")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
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


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        weights, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if "variants" not in said:
        return weights
    return {**said, "state_dict": weights, "variants": json.loads(said["variants"])}


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Tensors of any device, each by itself: those that share memory, as tied weights do, are written twice.

    :func:`read_checkpoint` gives them as ``state_dict`` beside the metadata if these hold ``variants``, as JSON.

    Raises:
        InputError: the operating system failed the write.
    """
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with replacing(path, "wb") as file:
        file.write(save(plain, {"format": "pt", **metadata}))


def state_dict_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """The model's weights out of a checkpoint of this project, Lightning, DeiT's scripts or timm's."""
    found = content.get("state_dict")
    if isinstance(found, dict) and any(name.startswith("model.") for name in found):
        own = {k.removeprefix("model."): v for k, v in found.items() if k.startswith("model.")}
        return {k.removeprefix("net."): v for k, v in own.items()}  # TimmModel's prefix: timm's names are left
    return next((content[key] for key in ("model", "state_dict") if key in content), content)


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
        return by_name(state_dict_of(read_checkpoint(checkpoint_file(source))), source)
    if not timm.is_model(str(source)):
        raise InputError(f"{source} is neither a run folder, nor a checkpoint file, nor the name of a timm model")
    return pretrained_timm_model(str(source)).state_dict()


def by_name(weights: Any, source: str | Path) -> dict[str, Tensor]:
    """
    Raises:
        InputError: these are no weights by name.
    """
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{source} holds no weights by name")
    if odd := [k for k, v in weights.items() if v.layout is not torch.strided or v.is_quantized or v.is_meta]:
        raise InputError(f"{source} holds tensors that are sparse, quantized or empty of values: {_shorten(odd)}")
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
    weights = {k: v for k, v in read_weights(source).items() if not k.startswith(unused)}
    own = {k: v for k, v in model.state_dict().items() if k.startswith(heads)}
    if new_head:
        weights = {k: v for k, v in weights.items() if not k.startswith(heads)} | own
    for name, value in own.items():
        if name in weights and (theirs := weights[name].shape[:1]) != value.shape[:1]:
            raise InputError(
                f"the weights of {source} are for {', '.join(map(str, theirs)) or 'no'} classes, the model has "
                f"{len(value)}; "
                "model.new_head=true keeps the rest and starts a fresh head"
            )
    load_strictly(model, resampled(model, weights), source)


def resampled(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another resolution or patch size made to fit the ViTs of timm's kind in ``model``, as timm does: the
    patch projection by pseudo-inverse resizing, the grid of positions by interpolation. The others as they are."""
    weights = dict(weights)
    for name, vit in model.named_modules():
        patches_name, positions_name = (f"{name}.{k}".strip(".") for k in ("patch_embed.proj.weight", "pos_embed"))
        patches, positions = weights.get(patches_name), weights.get(positions_name)
        if not isinstance(vit, timm.models.VisionTransformer) or any(
            x is None for x in (patches, positions, vit.pos_embed)
        ):
            continue
        own = vit.patch_embed.proj.weight
        if patches.ndim == 4 and patches.shape[:2] == own.shape[:2] and patches.shape != own.shape:
            weights[patches_name] = resample_patch_embed(patches, list(own.shape[2:]))
            _log.info("patch projection: %s resampled to %s pixels", tuple(patches.shape[2:]), tuple(own.shape[2:]))
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        side = math.isqrt(max(0, positions.shape[1] - prefix)) if positions.ndim == 3 else 0
        if side and side * side + prefix == positions.shape[1] and positions.shape[1] != vit.pos_embed.shape[1]:
            grid = vit.patch_embed.grid_size
            how = getattr(vit, "resizing", {})  # our Segmenter's is another than timm's
            weights[positions_name] = resample_abs_pos_embed(positions, list(grid), [side, side], prefix, **how)
            _log.info("positions: a grid of %s resized to %s", (side, side), tuple(grid))
    return weights


_ADVICE = (  # which option chooses what any or all of the names are of: of another shape (≠), or on one side alone (±)
    ("≠", any, r"norm1\.weight", "model.size (or model.embed_dim) chooses the width"),
    ("±", any, "_token|head_dist", "model.distilled, model.reg_tokens and model.class_token choose the tokens"),
    ("±", any, "fc_norm|attn_pool", "model.global_pool chooses how tokens are pooled"),
    ("±", all, r"qkv\.bias", "model.qkv_bias chooses whether there is a bias"),
    ("±", all, r"decoder\.blocks\.", "model.decoder_depth chooses the decoder's blocks"),
    ("±", all, r"\bblocks\.\d", "model.size (or model.depth) chooses the number of blocks, block=… what they hold"),
    ("≠", any, "pos_embed", "recipe.patch_size and data.img_size choose the grid of patches"),
    ("≠", any, r"patch_embed\.proj\.weight", "data.in_chans chooses the channels"),
    ("≠", any, r"\bmlp\.", "model.mlp_ratio chooses the width of the MLP"),
)


def load_strictly(module: nn.Module, weights: Any, source: str | Path) -> None:
    """``load_state_dict`` after :func:`check_fit`: where that raises, nothing was loaded."""
    check_fit(module, weights, source)
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))  # sharded modules too


def check_fit(module: nn.Module, weights: Any, source: str | Path) -> None:
    """
    Raises:
        InputError: parameters are missing, unexpected or of another shape, and which option chooses the module's; or
            what is finite in the module is not in the file.
    """
    own, weights = module.state_dict(), by_name(weights, source)
    differ = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    problems = {
        "of another shape (file ≠ model)": [f"{k} {tuple(weights[k].shape)} ≠ {tuple(own[k].shape)}" for k in differ],
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
    }
    if any(problems.values()):
        said = "; ".join(f"{what}: {_shorten(names)}" for what, names in problems.items() if names)
        found = {"≠": differ, "±": problems["missing"] + problems["unexpected"]}
        for kind, how, pattern, advice in _ADVICE:
            if found[kind] and how(re.search(pattern, name) for name in found[kind]):
                said += f"; {advice}"
                break
        raise InputError(f"the weights of {source} do not fit the model: {said}")
    if bad := [k for k, value in own.items() if not weights[k].isfinite().all() and value.isfinite().all()]:
        raise InputError(f"the weights of {source} hold NaN or Inf: {_shorten(bad)}; take others, or train anew")


def _shorten(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def pretrained_timm_model(name: str, **kwargs) -> nn.Module:
    """``timm.create_model`` with the weights from timm's cache, or downloaded.

    Raises:
        InputError: they are in neither.
    """
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
