"""The one place that hooks a network: its tokens, layer by layer, as layer-wise metrics take them."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from neutreno.errors import InputError
from neutreno.oversmoothing.layers import Layer, find_layers, first_tensor, passes_messages, tokens_in
from neutreno.oversmoothing.tokens import LayerTokens

_HALF = (torch.float16, torch.bfloat16)


class Place(NamedTuple):
    """Where tokens were seen: the stack, the number of the layer in it, and the name of the module."""

    stack: str
    layer: int
    name: str


class _Recorder:
    """Hands the tokens of layers to ``take(place, tokens)`` as they run; :meth:`begin` before every batch."""

    def __init__(self, layers: Sequence[Layer], take: Callable[[Place, LayerTokens], None]) -> None:
        self.take, stacks = take, {layer.stack for layer in layers}
        decoders = {stack for stack in stacks if "decoder" in stack}
        self.decoders = decoders if decoders < stacks else set()

    def begin(self, args: tuple, kwargs: Mapping[str, Any], labels: Tensor | None) -> None:
        """A batch is about to run, with these arguments and labels."""

        def real(name: str, padding: str) -> Tensor | None:
            if isinstance(mask := kwargs.get(name), Tensor):
                return mask != 0
            mask = kwargs.get(padding)
            return (~mask if mask.dtype == torch.bool else mask == 0) if isinstance(mask, Tensor) else None

        self.calls: Counter[str] = Counter()  # by stack
        self.averaged: dict[nn.Module, dict[str, Callable]] = {}  # by what averages values in a layer
        self.labels = labels
        self.given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        self.graphs = kwargs.get("batch")
        self.nodes: dict[int, list[Tensor | None]] = {}  # by their number: what by_graph gives beside features
        own = real("attention_mask", "src_key_padding_mask")
        decoder = real("decoder_attention_mask", "tgt_key_padding_mask")
        self.masks = (own, decoder) if self.decoders else (decoder if own is None else own, None)

    def hooks(self, layer: Layer, attention: bool) -> Iterator[RemovableHandle]:
        """Hook a layer; with ``attention`` what its ``averaged(…)`` tells of its values is handed on, too."""
        of_graph = any(map(passes_messages, layer.module.modules()))
        own = next((m for m in layer.module.modules() if attention and hasattr(m, "averaged")), None)

        def average(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.averaged[module] = module.averaged(*args, **kwargs)

        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if self.calls[layer.stack] == 0:
                given = (*args, *kwargs.values())
                self.record(layer, None if of_graph and _several_kinds(*given) else first_tensor(given))

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self.calls[layer.stack] += 1
            self.record(layer, None if of_graph and _several_kinds(output) else first_tensor(output), own)

        if own is not None:
            yield own.register_forward_pre_hook(average, with_kwargs=True)
        if layer.channels is None:  # what enters a stage has no shape that could be told
            yield layer.module.register_forward_pre_hook(enter, with_kwargs=True)
        yield layer.module.register_forward_hook(leave)

    def record(self, layer: Layer, x: Tensor | None, attention: nn.Module | None = None) -> None:
        x = None if x is None else tokens_in(x, layer)
        mask, given = self.masks[layer.stack in self.decoders], (self.labels, next(iter(self.given), None))
        if x is not None and x.ndim == 2:
            x, mask, *given = self.by_graph(x)
        if x is None or x.shape[1] < 2:
            what = "gives no tokens" if x is None else "has a single token"
            warnings.warn(f"{layer.name} {what}; left out", stacklevel=2)
            return
        if mask is not None and mask.shape != x.shape[:2]:
            shapes = f"{tuple(mask.shape)}, the tokens {tuple(x.shape[:2])}"
            warnings.warn(f"the padding mask has the shape {shapes} in {layer.name}; all are measured", stacklevel=2)
            mask = None
        given = [y if y is not None and y.ndim and len(y) == len(x) else None for y in given]
        mask, labels, inputs = (None if y is None else y.to(x.device) for y in (mask, *given))
        told = self.averaged.get(attention, {})
        made = {make: cache(make) for make in {*told.values()}}  # A may be the kernel, too
        told = {name: made[make] for name, make in told.items()}
        tokens = LayerTokens(x, mask, labels, inputs, **told)
        if mask is not None and not mask.any(1).all():
            tokens = tokens.of(mask.any(1))  # samples of padding alone
        self.take(Place(layer.stack, self.calls[layer.stack], layer.name), tokens)

    def by_graph(self, x: Tensor) -> list[Tensor | None]:
        """Nodes (N, C), their mask, labels and inputs as samples, one a graph; no nodes where others are left of it."""
        of_graph = self.graphs if _tells_graphs(self.graphs) else x.new_zeros(len(x), dtype=torch.int64)
        if len(of_graph) != len(x):
            return [None] * 4
        order, sizes = of_graph.argsort(stable=True), of_graph.bincount().tolist()

        def samples(nodes: Tensor | None) -> Tensor | None:
            fits = nodes is not None and nodes.ndim and len(nodes) == len(x)
            return pad_sequence(nodes.to(x.device)[order].split(sizes), batch_first=True) if fits else None

        if len(x) not in self.nodes:  # once, so that what a metric keeps of the inputs holds for all layers
            features = (y for y in self.given if y.ndim == 2 and y.is_floating_point() and len(y) == len(x))
            real = x.new_ones(len(x), dtype=torch.bool)
            self.nodes[len(x)] = [samples(y) for y in (real, self.labels, next(features, None))]
        return [samples(x), *self.nodes[len(x)]]


def _tells_graphs(batch: Any) -> bool:
    """Whether it is PyTorch Geometric's ``batch``: the number of each node's graph, (N,)."""
    if not isinstance(batch, Tensor) or batch.ndim != 1 or batch.is_floating_point() or batch.dtype == torch.bool:
        return False
    return len(batch) > 0 and bool((batch >= 0).all())


def _several_kinds(*values: Any) -> bool:
    """Whether a graph layer takes or gives nodes by the names of their kinds, which are no tokens of one space."""
    found = tree_leaves(values, is_leaf=lambda value: isinstance(value, Mapping))
    nodes = lambda x: isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()  # noqa: E731
    return any(sum(map(nodes, value.values())) > 1 for value in found if isinstance(value, Mapping))


def record(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Sequence[str] | None,
    take: Callable[[Place, LayerTokens], None],
    attention: bool = True,
) -> list[Layer]:
    """Run batches through a network, hand the tokens of its layers to ``take``, and give the layers.

    In evaluation mode without gradients and without autocast, on the network's own device and by its uncompiled forward
    pass; a half-precision network runs as a copy in float32. The network is left as it was.
    """
    model = getattr(model, "_orig_mod", model)  # compiled code would pass hooks by
    if any(p.dtype in _HALF for p in model.parameters()):
        model = copy.deepcopy(model).float()
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    found = find_layers(model, layers)
    recorder = _Recorder(found, take)
    with ExitStack() as hooked, untouched(model), torch.autocast(first.device.type, enabled=False):
        for layer in found:
            for handle in recorder.hooks(layer, attention):
                hooked.enter_context(handle)
        for batch in batches:
            args, kwargs, labels = _arguments(batch, first)
            recorder.begin(args, kwargs, labels)
            _forward(model, kwargs, layers)(*args, **kwargs)
    return found


def tokens_of(
    model: nn.Module, batch: Any, layers: str | Sequence[str] | None = None
) -> list[tuple[Place, LayerTokens]]:
    """All that is seen of one batch, in the order in which it runs; see :func:`record`."""
    seen: list[tuple[Place, LayerTokens]] = []
    record(model, [batch], layers, lambda place, tokens: seen.append((place, tokens)))
    return seen


def _forward(model: nn.Module, kwargs: Mapping[str, Any], layers: Any) -> Callable[..., Any]:
    """What runs the layers: without the head where a model of timm's kind has a method for that, and never compiled."""
    if not kwargs and layers is None and hasattr(model, "forward_features"):
        return getattr(model, "features_alone", model.forward_features)  # the way into a sharded network
    return model if getattr(model, "_compiled_call_impl", None) is None else model.forward


def _arguments(batch: Any, like: Tensor) -> tuple[tuple[Any, ...], dict[str, Any], Tensor | None]:
    """What the model is called with, on its device and in its precision, and the labels."""

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)

    labels = None
    if isinstance(batch, tuple | list) and batch:
        batch, labels = batch[0], batch[1] if len(batch) > 1 else None
    if isinstance(batch, Mapping) and not isinstance(labels, Tensor):
        labels = batch.get("labels")
    labels = labels if isinstance(labels, Tensor) else None
    if isinstance(batch, Mapping):
        return (), {name: moved(value) for name, value in batch.items()}, labels
    if isinstance(batch, Tensor):
        return (moved(batch),), {}, labels
    raise InputError(f"a batch is a {type(batch).__name__}; give tensors, (inputs, labels) or dictionaries of tensors")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
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
