"""Finding the layers of a network, and the tokens in what they give.

Layers are found by what they are made of, so that no library is imported and no model is known by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neutreno.errors import InputError
from neutreno.models.transformer import Trunk

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|multihead_attn", re.IGNORECASE)


class Layer(NamedTuple):
    """A layer: the name of the container that is its stack, its own name, itself; for a stage of maps how many channels
    it gives, and whether they stand last where the shape does not tell."""

    stack: str
    name: str
    module: nn.Module
    channels: int | None = None
    channels_last: bool = False


def attentions(layer: nn.Module) -> dict[str, nn.Module]:
    """The outermost attention modules strictly within ``layer``, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in layer.named_modules():
        is_one = isinstance(module, nn.MultiheadAttention) or _ATTENTION.search(type(module).__name__)
        if name and is_one and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def self_attentions(layer: nn.Module) -> dict[str, nn.Module]:
    """Those of :func:`attentions` that are no attention to another sequence."""
    found = attentions(layer).items()
    return {name: module for name, module in found if not _CROSS.search(f"{name} {type(module).__name__}")}


def passes_messages(module: nn.Module) -> bool:
    """Whether it is a graph layer of PyTorch Geometric's kind."""
    return all(callable(getattr(module, name, None)) for name in ("propagate", "message"))


def find_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> list[Layer]:
    """The layers of ``model``, in the order of its modules.

    Those that it names itself, by ``token_layers() -> {stack: [name of the module]}``, where a stage of maps is
    ``(name, channels)``; else the blocks of its trunks; else every child of an ``nn.ModuleList`` or ``nn.Sequential``
    that holds self-attention (``nn.MultiheadAttention``, or a class whose name has "attention" or "attn" in it) and
    weight matrices outside of attention, and no such layer within itself; else, as one stack, every such child that
    holds a graph layer of PyTorch Geometric, and those that are in none.

    Raises:
        InputError: there is none, or nothing has a name given by ``layers``.
    """
    named = dict(model.named_modules())
    if layers is not None:
        return _named_layers(model, named, [layers] if isinstance(layers, str) else list(layers))
    if hasattr(model, "token_layers") and (told := model.token_layers()):
        given = [(stack, x if isinstance(x, tuple) else (x, None)) for stack, listed in told.items() for x in listed]
        last = getattr(model, "channels_last", False)
        return [Layer(stack, name, named[name], channels, last) for stack, (name, channels) in given]
    found = _children(named, Trunk) or [
        layer for layer in _children(named, nn.ModuleList | nn.Sequential) if _is_layer(layer.module)
    ]
    if found := _innermost(found) or _graph_layers(named):
        return found
    raise InputError(
        f"no layers found in {type(model).__name__}: looked for children of an nn.ModuleList or nn.Sequential that "
        "hold self-attention (nn.MultiheadAttention, or a class named …Attention or …Attn) and weight matrices beside "
        "it, and for graph layers of PyTorch Geometric; name them by layers=, e.g. layers='blocks.*'; "
        f"{_containers(named)}"
    )


def _innermost(layers: list[Layer]) -> list[Layer]:
    return [a for a in layers if not any(b.name.startswith(f"{a.name}.") for b in layers)]


def _graph_layers(named: Mapping[str, nn.Module]) -> list[Layer]:
    passing = [name for name, module in named.items() if name and passes_messages(module)]
    children = _children(named, nn.ModuleList | nn.Sequential)
    held = _innermost([a for a in children if any(f"{name}.".startswith(f"{a.name}.") for name in passing)])
    alone = [name for name in passing if not any(f"{name}.".startswith(f"{a.name}.") for a in held)]
    outermost = [a for a in alone if not any(a.startswith(f"{b}.") for b in alone)]
    chosen = {a.name for a in held} | {*outermost}
    parents = [name.split(".")[:-1] for name in chosen]
    stack = ".".join(part for part, *_ in takewhile(lambda found: len({*found}) == 1, zip(*parents, strict=False)))
    return [Layer(stack, name, module) for name, module in named.items() if name in chosen]


def _children(named: Mapping[str, nn.Module], kind: Any) -> list[Layer]:
    containers = {stack: container for stack, container in named.items() if isinstance(container, kind)}
    return [
        Layer(stack, f"{stack}.{key}".removeprefix("."), child)
        for stack, container in containers.items()
        for key, child in container.named_children()
    ]


def _is_layer(module: nn.Module) -> bool:
    if not self_attentions(module):
        return False
    inside = {id(p) for attention in attentions(module).values() for p in attention.parameters()}
    return any(p.ndim >= 2 and id(p) not in inside for p in module.parameters())


def _named_layers(model: nn.Module, named: dict[str, nn.Module], patterns: list[str]) -> list[Layer]:
    regexes = {pattern: re.compile(re.escape(str(pattern)).replace(r"\*", "[^.]*")) for pattern in patterns}
    matching = {name: [p for p, regex in regexes.items() if name and regex.fullmatch(name)] for name in named}
    for pattern in patterns:
        if not any(pattern in matched for matched in matching.values()):
            raise InputError(f"layers: {type(model).__name__} has no module named {pattern!r}; {_containers(named)}")
    return [Layer(name.rpartition(".")[0], name, named[name]) for name, matched in matching.items() if matched]


def _containers(named: Mapping[str, nn.Module], most: int = 6) -> str:
    seen = [
        f"{name or 'the model itself'} ({len(module)} × {', '.join(dict.fromkeys(type(m).__name__ for m in module))})"
        for name, module in named.items()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module)
    ]
    more = f" and {len(seen) - most} more" if len(seen) > most else ""
    return f"its containers are: {'; '.join(seen[:most])}{more}" if seen else "it has no containers of modules"


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floating point in nested tuples, lists and dictionaries."""
    return next((x for x in tree_leaves(value) if isinstance(x, Tensor) and x.is_floating_point()), None)


def tokens_in(x: Tensor, layer: Layer) -> Tensor | None:
    """(B, N, C) of what a layer gives: of tokens, of torch's (N, B, C), of maps (B, H, W, C) or (B, C, H, W).

    Nodes of graphs stay (N, C), whose samples the batch tells.
    """
    modules = list(layer.module.modules())
    if x.ndim == 4:  # channels stand first where a layer convolves; of a stage, the shape tells, or its model
        first = any(isinstance(m, nn.Conv2d) for m in modules)
        if layer.channels is not None:
            told = (x.shape[1] == layer.channels) != (x.shape[-1] == layer.channels)
            first = x.shape[1] == layer.channels if told else not layer.channels_last
        return x.flatten(2).mT if first else x.flatten(1, 2)
    if x.ndim == 2 and any(map(passes_messages, modules)):
        return x
    if x.ndim != 3:
        return None
    of_torch = [m for m in modules if isinstance(m, nn.MultiheadAttention)]
    return x.transpose(0, 1) if of_torch and not of_torch[0].batch_first else x
