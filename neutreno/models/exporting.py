"""Weights as files for other libraries."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.layers import to_2tuple
from torch import nn

from neutreno.checkpoints import load_strictly
from neutreno.errors import InputError
from neutreno.files import replacing

TOLERANCE = 1e-5  # between logits, relative to the largest: rounding


def export_timm(network: nn.Module, path: str | Path, given_up: str = "") -> tuple[str, dict[str, Any]]:
    """Write weights for ``timm.create_model(name, checkpoint_path=path, **arguments)``, which loads them strictly.

    A network says by ``as_timm``, a name and arguments, how timm makes it. Before anything is written, timm's is made
    and must give the same logits.

    Args:
        path: a ``.safetensors`` file, whose metadata hold ``timm_name``, ``timm_arguments`` (JSON) and ``given_up``.
        given_up: how the network departs from timm's; then the logits differ.

    Returns:
        name and arguments.

    Raises:
        InputError: timm has no such network, the weights do not fit its, or it computes something else.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: timm tells the format by the ending; name a .safetensors file")
    if (form := getattr(network, "as_timm", None)) is None:
        which = "format=timm is for the models vit, deit and timm, with norm_eps=1e-6"
        raise InputError(f"timm has no {type(network).__name__} as this one was built; {which}")
    name, arguments = form
    with torch.random.fork_rng(devices=[]):
        net, inner = timm.create_model(name, **arguments).eval(), getattr(network, "net", network)
    weights = {key: value.detach().cpu().contiguous() for key, value in inner.state_dict().items()}
    load_strictly(net, weights, path)
    if not given_up:
        _check_logits(network, net, arguments, path)
    metadata = {"format": "pt", "timm_name": name, "timm_arguments": json.dumps(arguments)}
    content = save(weights, metadata | ({"given_up": given_up} if given_up else {}))
    with replacing(path, "wb") as file:
        file.write(content)
    return name, copy.deepcopy(arguments)


@torch.no_grad()
def _check_logits(network: nn.Module, net: nn.Module, arguments: dict[str, Any], path: Path) -> None:
    """
    Raises:
        InputError: the two give different logits for the same images.
    """
    side = to_2tuple(arguments.get("img_size", net.pretrained_cfg["input_size"][1:]))
    images = torch.rand(2, arguments.get("in_chans", 3), *side, generator=torch.Generator().manual_seed(0))
    device, mode = next(network.parameters()).device, network.training
    ours, theirs = network.eval()(images.to(device)).cpu(), net(images)
    network.train(mode)
    if not (ours - theirs).abs().max() <= TOLERANCE * ours.abs().max():
        raise InputError(f"{path} was not written: with these weights timm's {type(net).__name__} gives other logits")
