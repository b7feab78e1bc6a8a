"""Weights as files for other libraries."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from torch import nn

from neutreno.checkpoints import load_strictly, write_safetensors
from neutreno.errors import InputError

TOLERANCE = 1e-5  # between logits, relative to the largest: rounding


def export_timm(
    network: nn.Module, path: str | Path, given_up: str = "", input_facts: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Write weights for ``timm.create_model(name, checkpoint_path=path, **arguments)``, which loads them strictly.

    A network says by ``as_timm``, a name and arguments, how timm makes it. Before anything is written, timm's is made
    and must give the same logits.

    Args:
        path: a ``.safetensors`` file, whose metadata hold ``timm_name`` and, as JSON, ``timm_arguments`` and ``input``.
        given_up: how the network departs from timm's; then the logits differ, a warning says how far, and the metadata
            hold ``given_up`` and ``logits_apart``.
        input_facts: how the network's images are made, see :meth:`neutreno.data.base.SplitData.input_facts`.

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
    weights = inner.state_dict()
    load_strictly(net, weights, path)
    metadata = {"timm_name": name, "timm_arguments": json.dumps(arguments), "input": json.dumps(input_facts or {})}
    apart, largest = _logits_apart(network, net, arguments)
    if given_up:
        said = f"{apart:.3g}, where the largest is {largest:.3g}"
        metadata |= {"given_up": given_up, "logits_apart": said}
        warnings.warn(f"{path} gives up {given_up}: logits of random images are off by up to {said}", stacklevel=3)
    elif not apart <= TOLERANCE * largest:
        raise InputError(f"{path} was not written: with these weights timm's {type(net).__name__} gives other logits")
    write_safetensors(path, weights, metadata)
    return name, copy.deepcopy(arguments)


@torch.no_grad()
def _logits_apart(network: nn.Module, net: nn.Module, arguments: dict[str, Any]) -> tuple[float, float]:
    """The largest difference between what the two give for the same images, and the largest logit of the first."""
    side = to_2tuple(arguments.get("img_size", net.pretrained_cfg["input_size"][1:]))
    images = torch.rand(2, arguments.get("in_chans", 3), *side, generator=torch.Generator().manual_seed(0))
    device, mode = next(network.parameters()).device, network.training
    ours, theirs = network.eval()(images.to(device)).cpu(), net(images)
    network.train(mode)
    return (ours - theirs).abs().max().item(), ours.abs().max().item()
