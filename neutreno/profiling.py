"""Over-smoothing by layer of any transformer, as it is: timm's, Hugging Face's, torch's, ours.

Layers are found by what they are made of, so that no library is imported and no model is known by name.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from neutreno.errors import InputError, check_number
from neutreno.oversmoothing import MEASURES, check_measures

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|multihead_attn", re.IGNORECASE)
_HALF = (torch.float16, torch.bfloat16)


class Layer(NamedTuple):
    """A transformer layer: the name of the container that is its stack, its own name, and itself."""

    stack: str
    name: str
    module: nn.Module


def profile(
    model: nn.Module,
    batches: Tensor | Mapping[str, Any] | Iterable[Any],
    measures: Sequence[str] = ("cosine", "residual", "effective_rank"),
    layers: str | Sequence[str] | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Measures of over-smoothing of a model's tokens, by layer; the model is left as it was.

    Runs in evaluation mode without gradients, on the model's own device; a half-precision model is measured as a copy
    in float32. Padding, as ``attention_mask`` (Hugging Face) or ``src_key_padding_mask`` (torch) tells it, is left out
    sample by sample. Tokens are those that leave a layer, class tokens included, before a final norm.

    Args:
        batches: inputs as one tensor (cut into parts of ``batch_size``), one dictionary of keyword arguments, or an
            iterable (a DataLoader, say) of tensors, of ``(inputs, labels)``, of which the labels are left out, or of
            dictionaries.
        measures: names of :data:`neutreno.oversmoothing.MEASURES`.
        layers: names of modules, or patterns such as ``"encoder.layer.*"`` (``*`` does not cross a dot), where the
            search does not find the layers, or finds others than those wanted; see :func:`find_layers`.

    Returns:
        A row for every stack, layer and measure: ``stack`` (name of the container), ``layer`` (0: what enters the
        stack; k: the output of its k-th call), ``name`` (of the module), ``measure``, ``mean`` and ``sd`` over
        samples, ``samples``, ``tokens`` (their mean number in a sample) and ``dim``.

    Raises:
        InputError: no layers were found, none of them ran or all saw a single token, tokens are not finite, there is
            no batch, or a measure is not known or is one of attention weights, which this does not see.
    """
    names = check_measures("measures", [measures] if isinstance(measures, str) else measures)
    if of_attention := [name for name in names if name not in MEASURES]:
        raise InputError(
            f"measures: {', '.join(of_attention)} is measured on attention weights, which fused attention never holds; "
            f"choose from: {', '.join(MEASURES)}"
        )
    check_number("batch_size", batch_size, 1, integer=True)
    model = getattr(model, "_orig_mod", model)  # compiled code would pass hooks by
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if any(p.dtype in _HALF for p in model.parameters()):
        model, first = copy.deepcopy(model).float(), torch.empty(0, device=first.device)
    recorder = _Recorder(find_layers(model, layers), names)
    with recorder.attached(), _untouched(model), torch.autocast(first.device.type, enabled=False):
        for batch in _each(batches, batch_size):
            args, kwargs = _arguments(batch, first)
            recorder.begin(kwargs)
            model(*args, **kwargs)
    return recorder.table(type(model).__name__)


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
    return {
        name: module
        for name, module in attentions(layer).items()
        if not _CROSS.search(f"{name} {type(module).__name__}")
    }


def find_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> list[Layer]:
    """The transformer layers of ``model``, in the order of its modules.

    A layer is a child of an ``nn.ModuleList`` or ``nn.Sequential`` that holds self-attention
    (``nn.MultiheadAttention``, or a class whose name has "attention" or "attn" in it) and weight matrices outside of
    attention, and no such layer within itself.

    Raises:
        InputError: there is none, or nothing has a name given by ``layers``.
    """
    named = dict(model.named_modules())
    if layers is not None:
        return _named_layers(model, named, [layers] if isinstance(layers, str) else list(layers))
    found = []
    for stack, container in named.items():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            for key, child in container.named_children():
                if _is_layer(child):
                    found.append(Layer(stack, f"{stack}.{key}".removeprefix("."), child))
    found = [a for a in found if not any(b.name.startswith(f"{a.name}.") for b in found)]
    if not found:
        raise InputError(
            f"no transformer layers found in {type(model).__name__}: looked for children of an nn.ModuleList or "
            "nn.Sequential that hold self-attention (nn.MultiheadAttention, or a class named …Attention or …Attn) and "
            f"weight matrices beside it; name them by layers=, e.g. layers='blocks.*'; {_containers(named)}"
        )
    return found


def _is_layer(module: nn.Module) -> bool:
    if not self_attentions(module):
        return False
    inside = {id(p) for attention in attentions(module).values() for p in attention.parameters()}
    return any(p.ndim >= 2 and id(p) not in inside for p in module.parameters())


def _named_layers(model: nn.Module, named: dict[str, nn.Module], patterns: list[str]) -> list[Layer]:
    found: dict[str, Layer] = {}
    for pattern in patterns:
        regex = re.compile(re.escape(str(pattern)).replace(r"\*", "[^.]*"))
        matching = [name for name in named if name and regex.fullmatch(name)]
        if not matching:
            raise InputError(f"layers: {type(model).__name__} has no module named {pattern!r}; {_containers(named)}")
        found |= {name: Layer(name.rpartition(".")[0], name, named[name]) for name in matching}
    order = {name: number for number, name in enumerate(named)}
    return sorted(found.values(), key=lambda layer: order[layer.name])


def _containers(named: Mapping[str, nn.Module], most: int = 6) -> str:
    seen = [
        f"{name or 'the model itself'} ({len(module)} × {', '.join(dict.fromkeys(type(m).__name__ for m in module))})"
        for name, module in named.items()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module)
    ]
    more = f" and {len(seen) - most} more" if len(seen) > most else ""
    return f"its containers are: {'; '.join(seen[:most])}{more}" if seen else "it has no containers of modules"


class _Recorder:
    """Measures the tokens of layers as they run."""

    def __init__(self, layers: list[Layer], measures: list[str]) -> None:
        self.layers, self.measures = layers, measures
        self.values: dict[tuple[str, int, str], dict[str, list[Tensor]]] = {}
        self.dims: dict[tuple[str, int, str], int] = {}
        self.calls: dict[str, int] = {}
        self.masks: tuple[Tensor | None, Tensor | None] = (None, None)
        decoders = {layer.stack for layer in layers if "decoder" in layer.stack}
        self.decoders = decoders if len(decoders) < len({layer.stack for layer in layers}) else set()

    def begin(self, kwargs: Mapping[str, Any]) -> None:
        """A batch is about to run, with these arguments."""

        def real(name: str, padding: str) -> Tensor | None:
            if isinstance(mask := kwargs.get(name), Tensor):
                return mask != 0
            mask = kwargs.get(padding)
            return (~mask if mask.dtype == torch.bool else mask == 0) if isinstance(mask, Tensor) else None

        self.calls = defaultdict(int)
        own = real("attention_mask", "src_key_padding_mask")
        decoder = real("decoder_attention_mask", "tgt_key_padding_mask")
        self.masks = (own, decoder) if self.decoders else (decoder if own is None else own, None)

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for layer in self.layers:
                handles.append(layer.module.register_forward_pre_hook(self._entering(layer), with_kwargs=True))
                handles.append(layer.module.register_forward_hook(self._leaving(layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if self.calls[layer.stack] == 0:
                self._record(layer, 0, first_tensor((args, kwargs)))

        return hook

    def _leaving(self, layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self.calls[layer.stack] += 1
            self._record(layer, self.calls[layer.stack], first_tensor(output))

        return hook

    def _record(self, layer: Layer, number: int, x: Tensor | None) -> None:
        x = None if x is None else _tokens(x, layer.module)
        if x is None or x.shape[1] < 2:
            what = "gives no tokens" if x is None else "has a single token"
            warnings.warn(f"{layer.name} {what}; left out", stacklevel=2)
            return
        mask = self.masks[layer.stack in self.decoders]
        if mask is not None and mask.shape != x.shape[:2]:
            shapes = f"{tuple(mask.shape)}, the tokens {tuple(x.shape[:2])}"
            warnings.warn(f"the padding mask has the shape {shapes} in {layer.name}; all are measured", stacklevel=2)
            mask = None
        key = (layer.stack, number, layer.name)
        into = self.values.setdefault(key, defaultdict(list))
        self.dims[key] = x.shape[-1]
        # Samples of several lengths one by one, else all at once
        parts = [x] if mask is None or mask.all() else [x[i : i + 1, m] for i, m in enumerate(mask.to(x.device))]
        for part in parts:
            if part.shape[1]:
                into["tokens"].append(torch.full((len(part),), part.shape[1], dtype=torch.float64))
                for measure in self.measures:
                    try:
                        into[measure].append(MEASURES[measure](part).cpu())
                    except InputError as error:
                        raise InputError(f"{layer.name}: {error}") from error

    def table(self, model: str) -> pd.DataFrame:
        measured = {stack for stack, number, _ in self.values if number}
        rows = []
        for measure in self.measures:
            for (stack, number, name), values in self.values.items():
                if stack in measured and values["tokens"]:
                    found, tokens = torch.cat(values[measure]), torch.cat(values["tokens"]).mean().item()
                    sd = found.std(correction=min(1, len(found) - 1)).item()
                    row = {"stack": stack, "layer": number, "name": name, "measure": measure}
                    row |= {"mean": found.mean().item(), "sd": sd, "samples": len(found)}
                    rows.append({**row, "tokens": tokens, "dim": self.dims[stack, number, name]})
        if not rows:
            names = ", ".join(layer.name for layer in self.layers[:3])
            raise InputError(f"nothing was measured in {model}: no batch ran two tokens or more through {names}, …")
        order = {layer.stack: i for i, layer in enumerate(self.layers)}
        rows.sort(key=lambda row: (order[row["stack"]], self.measures.index(row["measure"]), row["layer"]))
        return pd.DataFrame(rows)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floating point in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((x for x in map(first_tensor, value) if x is not None), None)
    return None


def _tokens(x: Tensor, layer: nn.Module) -> Tensor | None:
    """(B, N, C) of what a layer gives: of tokens, of torch's (N, B, C), of maps (B, H, W, C) or (B, C, H, W)."""
    if x.ndim == 4:  # where a layer convolves, channels stand first
        return x.flatten(2).mT if any(isinstance(m, nn.Conv2d) for m in layer.modules()) else x.flatten(1, 2)
    if x.ndim != 3:
        return None
    of_torch = [m for m in layer.modules() if isinstance(m, nn.MultiheadAttention)]
    return x.transpose(0, 1) if of_torch and not of_torch[0].batch_first else x


def _each(batches: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(batches, Tensor):
        return batches.split(batch_size)
    if isinstance(batches, Mapping):
        return [batches]
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise InputError(f"batches is a {type(batches).__name__}; give a tensor, a dictionary, or an iterable of them")
    return batches


def _arguments(batch: Any, like: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model is called with, on its device and in its precision."""

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)

    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        return (), {name: moved(value) for name, value in batch.items()}
    if isinstance(batch, Tensor):
        return (moved(batch),), {}
    raise InputError(f"a batch is a {type(batch).__name__}; give tensors, (inputs, labels) or dictionaries of tensors")


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()  # torch's fused encoder layer skips hooks and drops padding
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in training.items():
            module.training = mode
