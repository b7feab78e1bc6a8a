"""The one place that hooks a network: its tokens, layer by layer, as layer-wise metrics take them.

Layers are found by what they are made of, so that no library is imported and no model is known by name.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neutreno.attention import SoftmaxAttention
from neutreno.errors import InputError, check_number
from neutreno.models.transformer import Trunk
from neutreno.oversmoothing.metrics import LayerTokens, Metric, named_metrics

# A row of every table of layer-wise metrics: where, what, of which tokens, and over how many samples.
COLUMNS = ("stack", "name", "layer", "subset", "metric", "mean", "sd", "samples", "tokens", "dim")
ALL = "all"  # the subset of all tokens
ATTENTION = {"weights", "values"}  # what a metric may need of a layer's attention

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn|multihead_attn", re.IGNORECASE)
_HALF = (torch.float16, torch.bfloat16)


class Layer(NamedTuple):
    """A layer: the name of the container that is its stack, its own name, itself; for a stage of maps how many channels
    it gives, and whether they stand last where the shape does not tell."""

    stack: str
    name: str
    module: nn.Module
    channels: int | None = None
    channels_last: bool = False


class Place(NamedTuple):
    """Where tokens were seen: the stack, the number of the layer in it, and the name of the module."""

    stack: str
    layer: int
    name: str


def measure(
    model: nn.Module,
    batches: Any,
    metrics: Sequence[str] = ("cosine",),
    layers: str | Sequence[str] | None = None,
    batch_size: int = 64,
    **fixed: Any,
) -> list[dict[str, Any]]:
    """Layer-wise metrics of a network's tokens, as a tidy table; the network is left as it was.

    Runs in evaluation mode without gradients and without autocast, on the network's own device and by its uncompiled
    forward pass; a half-precision network is measured as a copy in float32. Tokens are those that leave a layer, class
    tokens included, before a final norm. Padding, as ``attention_mask`` (Hugging Face) or ``src_key_padding_mask``
    (torch) tells it, does not count. A network may name subsets of its tokens by
    ``token_subsets(stack, N) -> {name: (N,) of booleans}``, which are measured beside all of them.

    Args:
        batches: inputs as one tensor (cut into parts of ``batch_size``), one dictionary of keyword arguments, or an
            iterable (a DataLoader, say) of tensors, of ``(inputs, labels)`` or of dictionaries. ``(inputs, labels)`` of
            two tensors of one length is cut like a single tensor.
        metrics: names of :mod:`neutreno.oversmoothing.metrics`, or paths of such functions elsewhere. One that needs
            what is not there (labels, attention that can be rebuilt) is left out with a warning.
        layers: names of modules, or patterns such as ``"encoder.layer.*"`` (``*`` does not cross a dot), where the
            search does not find the layers, or finds others than those wanted; see :func:`find_layers`.
        fixed: columns to put before.

    Returns:
        A row for every stack, metric, subset and layer, with :data:`COLUMNS`: ``stack`` (name of the container),
        ``name`` (of the module), ``layer`` (0: what enters the stack; k: the output of its k-th call), ``subset``
        (``all``, or one of the network's), ``metric``, ``mean`` and ``sd`` over samples (None where it is no finite
        number; the sd also of a metric over the whole set), ``samples``, ``tokens`` (their mean number in a sample) and
        ``dim``.

    Raises:
        InputError: no layers were found, none of them ran or all saw a single token, tokens are not finite, there is no
            batch, or a metric is not known.
    """
    named = named_metrics(metrics, "metrics")
    check_number("batch_size", batch_size, 1, integer=True)
    model = getattr(model, "_orig_mod", model)  # compiled code would pass hooks by
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if any(p.dtype in _HALF for p in model.parameters()):
        model, first = copy.deepcopy(model).float(), torch.empty(0, device=first.device)
    found = _Measured(named, getattr(model, "token_subsets", lambda stack, tokens: {}))
    recorder = Recorder(find_layers(model, layers), found.take, any({*m.needs} & ATTENTION for m in named))
    with recorder.attached(), _untouched(model), torch.autocast(first.device.type, enabled=False):
        for batch in _each(batches, batch_size):
            args, kwargs, labels = _arguments(batch, first)
            recorder.begin(args, kwargs, labels)
            _forward(model, kwargs, layers)(*args, **kwargs)
    rows = found.rows([layer.stack for layer in recorder.layers])
    for name, reason in found.reasons():
        warnings.warn(f"the layer-wise metric {name} {reason}; left out", stacklevel=2)
    if not rows:
        names = ", ".join(layer.name for layer in recorder.layers[:3])
        raise InputError(
            f"nothing was measured in {type(model).__name__}: no batch ran two tokens or more through {names}, …, or "
            f"none of {', '.join(metrics)} applies"
        )
    return [{**fixed, **row} for row in rows]


def _forward(model: nn.Module, kwargs: Mapping[str, Any], layers: Any) -> Callable[..., Any]:
    """What runs the layers: without the head where a model of timm's kind has a method for that, and never compiled."""
    if not kwargs and layers is None and hasattr(model, "forward_features"):
        return getattr(model, "features_alone", model.forward_features)  # the way into a sharded network
    return model if getattr(model, "_compiled_call_impl", None) is None else model.forward


# Finding layers


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
    """The layers of ``model``, in the order of its modules.

    Those that it names itself, by ``token_layers() -> {stack: [name of the module]}``, where a stage of maps is
    ``(name, channels)``; else the blocks of its trunks; else every child of an ``nn.ModuleList`` or ``nn.Sequential``
    that holds self-attention (``nn.MultiheadAttention``, or a class whose name has "attention" or "attn" in it) and
    weight matrices outside of attention, and no such layer within itself.

    Raises:
        InputError: there is none, or nothing has a name given by ``layers``.
    """
    named = dict(model.named_modules())
    if layers is not None:
        return _named_layers(model, named, [layers] if isinstance(layers, str) else list(layers))
    if hasattr(model, "token_layers") and model.token_layers():
        given = [(stack, layer) for stack, layers in model.token_layers().items() for layer in layers]
        given = [(stack, *(layer if isinstance(layer, tuple) else (layer, None))) for stack, layer in given]
        last = getattr(model, "channels_last", False)
        return [Layer(stack, name, named[name], channels, last) for stack, name, channels in given]
    trunks = {name: module for name, module in named.items() if isinstance(module, Trunk)}
    if trunks:
        return [
            Layer(stack, f"{stack}.{key}".removeprefix("."), block)
            for stack, trunk in trunks.items()
            for key, block in trunk.named_children()
        ]
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


# Recording


class Recorder:
    """Hands the tokens of layers to ``take(place, tokens)`` as they run; :meth:`begin` before every batch.

    Args:
        layers: of :func:`find_layers`.
        take: called for what enters a stack (layer 0) and for what leaves each of its layers.
        attention: hand on weights and values, too, which costs a projection per layer.
    """

    def __init__(
        self, layers: Sequence[Layer], take: Callable[[Place, LayerTokens], None], attention: bool = True
    ) -> None:
        self.layers, self.take, self.attention = list(layers), take, attention
        decoders = {layer.stack for layer in layers if "decoder" in layer.stack}
        self._decoders = decoders if len(decoders) < len({layer.stack for layer in layers}) else set()
        self._calls: dict[str, int] = defaultdict(int)
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)
        self._labels: Tensor | None = None
        self._inputs: Any = None
        self._attended: dict[nn.Module, tuple[Tensor, ...]] = {}  # of an attention: q, k, v, V_0

    def begin(self, args: tuple = (), kwargs: Mapping[str, Any] | None = None, labels: Tensor | None = None) -> None:
        """A batch is about to run, with these arguments and labels."""
        kwargs = kwargs or {}

        def real(name: str, padding: str) -> Tensor | None:
            if isinstance(mask := kwargs.get(name), Tensor):
                return mask != 0
            mask = kwargs.get(padding)
            return (~mask if mask.dtype == torch.bool else mask == 0) if isinstance(mask, Tensor) else None

        self._calls.clear()
        self._attended.clear()
        self._labels = labels
        self._inputs = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        own = real("attention_mask", "src_key_padding_mask")
        decoder = real("decoder_attention_mask", "tgt_key_padding_mask")
        self._masks = (own, decoder) if self._decoders else (decoder if own is None else own, None)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks are there within it, and gone after it."""
        handles: list[Any] = []
        try:
            for layer in self.layers:
                own = [m for m in layer.module.modules() if self.attention and isinstance(m, SoftmaxAttention)]
                attention = own[0] if own else None
                if attention is not None:
                    handles.append(attention.register_forward_pre_hook(self._attend, with_kwargs=True))
                if layer.channels is None:  # what enters a stage has no shape that could be told
                    entering = partial(self._enter, layer)
                    handles.append(layer.module.register_forward_pre_hook(entering, with_kwargs=True))
                handles.append(layer.module.register_forward_hook(partial(self._leave, layer, attention)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._attended.clear()

    def _attend(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x, v0, *_ = *args, kwargs.get("v0"), None
        q, k, v = attention.project(x)
        self._attended[attention] = (q, k, v, v if v0 is None else v0)

    def _enter(self, layer: Layer, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._calls[layer.stack] == 0:
            self._record(layer, 0, first_tensor((args, kwargs)))

    def _leave(self, layer: Layer, attention: nn.Module | None, module: nn.Module, args: tuple, output: Any) -> None:
        self._calls[layer.stack] += 1
        self._record(layer, self._calls[layer.stack], first_tensor(output), attention)

    def _record(self, layer: Layer, number: int, x: Tensor | None, attention: nn.Module | None = None) -> None:
        x = None if x is None else _tokens(x, layer)
        if x is None or x.shape[1] < 2:
            what = "gives no tokens" if x is None else "has a single token"
            warnings.warn(f"{layer.name} {what}; left out", stacklevel=2)
            return
        mask = self._masks[layer.stack in self._decoders]
        if mask is not None and mask.shape != x.shape[:2]:
            shapes = f"{tuple(mask.shape)}, the tokens {tuple(x.shape[:2])}"
            warnings.warn(f"the padding mask has the shape {shapes} in {layer.name}; all are measured", stacklevel=2)
            mask = None
        mask = None if mask is None else mask.to(x.device)
        inputs, labels = (
            None if y is None or y.ndim == 0 or len(y) != len(x) else y.to(x.device)
            for y in (self._inputs, self._labels)
        )
        weights = values = None
        if attention in self._attended:
            q, k, v, v0 = self._attended[attention]
            weights, values = cache(lambda: attention.weights(q, k)), lambda: (v, v0)
        tokens = LayerTokens(x, mask, labels, inputs, weights, values)
        if mask is not None and not mask.any(1).all():
            tokens = tokens.of(mask.any(1))  # samples of padding alone
        self.take(Place(layer.stack, number, layer.name), tokens)


class _Measured:
    """Values of metrics by place and subset, over all batches."""

    def __init__(self, metrics: list[Metric], subsets: Callable[[str, int], dict[str, Tensor]]) -> None:
        self.metrics, self.subsets = metrics, subsets
        self.values: dict[tuple[str, Place, str], list[Tensor]] = defaultdict(list)
        self.whole: dict[tuple[str, Place, str], list[LayerTokens]] = defaultdict(list)
        self.sizes: dict[tuple[Place, str], list[Tensor]] = defaultdict(list)  # how many tokens the samples have
        self.dims: dict[Place, int] = {}
        self.missing: dict[tuple[str, Place, str], list[str]] = {}  # what was not there, if only for one batch

    def take(self, place: Place, tokens: LayerTokens) -> None:
        self.dims[place] = tokens.features.shape[-1]
        for subset, part in self._parts(place, tokens):
            mask = part.mask
            count = torch.full((len(part.features),), part.features.shape[1]) if mask is None else mask.sum(1).cpu()
            self.sizes[place, subset].append(count.double())
            for metric in self.metrics if len(count) else ():
                key = (metric.name, place, subset)
                if missing := [name for name in metric.needs if getattr(part, name) is None]:
                    self.missing[key] = missing
                elif metric.whole_set:
                    self.whole[key].append(_on_cpu(part))
                else:
                    self.values[key].append(self._applied(metric, part, place, (len(count),)))

    def _parts(self, place: Place, tokens: LayerTokens) -> Iterator[tuple[str, LayerTokens]]:
        """All tokens, and the network's subsets of them, whose attention is that of all."""
        yield ALL, tokens
        for name, chosen in self.subsets(place.stack, tokens.features.shape[1]).items():
            mask = chosen.to(tokens.features.device).expand(tokens.features.shape[:2])
            mask = mask if tokens.mask is None else mask & tokens.mask
            part = LayerTokens(tokens.features, mask, tokens.labels, tokens.inputs)
            yield name, part if mask.any(1).all() else part.of(mask.any(1))

    def reasons(self) -> Iterator[tuple[str, str]]:
        """The metrics that were left out, and why; layer 0 and subsets have no attention, which is no reason."""
        said = {"weights": "attention weights", "values": "the values of attention"}
        found: dict[str, str] = {}
        for (name, place, subset), missing in self.missing.items():
            if {*missing} <= ATTENTION and (place.layer == 0 or subset != ALL):
                continue
            what = " and ".join(said.get(need, need) for need in missing)
            found.setdefault(name, f"needs {what}, which are not there (in {place.name})")
        yield from found.items()

    @staticmethod
    def _applied(metric: Metric, tokens: LayerTokens, place: Place, shape: tuple[int, ...]) -> Tensor:
        try:
            found = metric.function(tokens)
        except InputError as error:
            raise InputError(f"{place.name}: {error}") from error
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"the layer-wise metric {metric.name} gave {given}, not a tensor of shape {shape}")
        return found.detach().double().cpu()

    def _finish(self) -> None:
        """The metrics over the whole set, now that it is there."""
        for metric in self.metrics:
            for key in [key for key in self.whole if key[0] == metric.name]:
                tokens = _joined(self.whole.pop(key))
                if missing := [name for name in metric.needs if getattr(tokens, name) is None]:
                    self.missing[key] = missing  # its shape differs between batches
                else:
                    self.values[key] = [self._applied(metric, tokens, key[1], ())]

    def rows(self, stacks: Sequence[str]) -> list[dict[str, Any]]:
        """The table; of stacks none of whose layers ran, nothing."""
        self._finish()
        ran = {place.stack for place in self.dims if place.layer}
        subsets = list(dict.fromkeys(subset for _, subset in self.sizes))
        order = {metric.name: number for number, metric in enumerate(self.metrics)}
        stacks = list(dict.fromkeys(stacks))
        rows = []
        for (name, place, subset), parts in self.values.items():
            if place.stack not in ran or (name, place, subset) in self.missing:
                continue
            found, sizes = torch.cat([part.reshape(-1) for part in parts]), torch.cat(self.sizes[place, subset])
            sd = found.std(correction=min(1, len(found) - 1)) if parts[0].ndim else None
            row = {"stack": place.stack, "name": place.name, "layer": place.layer, "subset": subset, "metric": name}
            row |= {"mean": _finite(found.mean()), "sd": _finite(sd), "samples": len(sizes)}
            rows.append({**row, "tokens": sizes.mean().item(), "dim": self.dims[place]})
        rows.sort(key=lambda r: (stacks.index(r["stack"]), order[r["metric"]], subsets.index(r["subset"]), r["layer"]))
        return rows


def _finite(value: Tensor | None) -> float | None:
    return value.item() if value is not None and value.isfinite() else None


def _on_cpu(tokens: LayerTokens) -> LayerTokens:
    parts = (tokens.features, tokens.mask, tokens.labels, tokens.inputs)
    return LayerTokens(*(None if x is None else x.detach().to("cpu", copy=True) for x in parts))


def _joined(parts: Sequence[LayerTokens]) -> LayerTokens:
    """All samples of the probe set; where they have different numbers of tokens, padded, which a mask tells."""
    most = max(part.features.shape[1] for part in parts)

    def padded(part: LayerTokens) -> tuple[Tensor, Tensor]:
        x = part.features
        mask = torch.ones(x.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
        more = most - x.shape[1]
        return nn.functional.pad(x, (0, 0, 0, more)), nn.functional.pad(mask, (0, more))

    features, masks = zip(*map(padded, parts), strict=True)
    mask = torch.cat(masks)

    def all_of(name: str) -> Tensor | None:
        given = [getattr(part, name) for part in parts]
        return None if any(x is None or x.shape[1:] != given[0].shape[1:] for x in given) else torch.cat(given)

    return LayerTokens(torch.cat(features), None if mask.all() else mask, all_of("labels"), all_of("inputs"))


def tokens_of(
    model: nn.Module, batch: Any, layers: str | Sequence[str] | None = None
) -> list[tuple[Place, LayerTokens]]:
    """All that is seen of one batch, in the order in which it runs; see :func:`measure` for the arguments."""
    seen: list[tuple[Place, LayerTokens]] = []
    recorder = Recorder(find_layers(model, layers), lambda place, tokens: seen.append((place, tokens)))
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    args, kwargs, labels = _arguments(batch, first)
    with recorder.attached(), _untouched(model):
        recorder.begin(args, kwargs, labels)
        _forward(model, kwargs, layers)(*args, **kwargs)
    return seen


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floating point in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((x for x in map(first_tensor, value) if x is not None), None)
    return None


def _tokens(x: Tensor, layer: Layer) -> Tensor | None:
    """(B, N, C) of what a layer gives: of tokens, of torch's (N, B, C), of maps (B, H, W, C) or (B, C, H, W)."""
    modules = list(layer.module.modules())
    if x.ndim == 4:  # channels stand first where a layer convolves; of a stage, the shape tells, or its model
        first = any(isinstance(m, nn.Conv2d) for m in modules)
        if layer.channels is not None:
            told = (x.shape[1] == layer.channels) != (x.shape[-1] == layer.channels)
            first = x.shape[1] == layer.channels if told else not layer.channels_last
        return x.flatten(2).mT if first else x.flatten(1, 2)
    if x.ndim != 3:
        return None
    of_torch = [m for m in modules if isinstance(m, nn.MultiheadAttention)]
    return x.transpose(0, 1) if of_torch and not of_torch[0].batch_first else x


# Batches


def _each(batches: Any, batch_size: int) -> Iterable[Any]:
    if isinstance(batches, Tensor):
        return batches.split(batch_size)
    if isinstance(batches, Mapping) or (isinstance(batches, tuple) and batches and isinstance(batches[0], Mapping)):
        return [batches]
    if isinstance(batches, tuple) and len(batches) == 2 and isinstance(batches[0], Tensor):
        inputs, labels = batches
        if labels is None:
            return inputs.split(batch_size)
        if isinstance(labels, Tensor) and len(labels) == len(inputs):
            return list(zip(inputs.split(batch_size), labels.split(batch_size), strict=True))
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise InputError(f"batches is a {type(batches).__name__}; give a tensor, a dictionary, or an iterable of them")
    return batches


def _arguments(batch: Any, like: Tensor) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """What the model is called with, on its device and in its precision, and the labels."""

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)

    labels = None
    if isinstance(batch, tuple | list) and batch:
        labels = batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        batch = batch[0]
    if isinstance(batch, Mapping):
        labels = batch.get("labels") if labels is None and isinstance(batch.get("labels"), Tensor) else labels
        return (), {name: moved(value) for name, value in batch.items()}, labels
    if isinstance(batch, Tensor):
        return (moved(batch),), {}, labels
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
