"""The one place that hooks a network: its tokens, layer by layer, as layer-wise metrics take them."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neutreno.attention import SoftmaxAttention
from neutreno.errors import InputError
from neutreno.oversmoothing.layers import Layer, find_layers, first_tensor, tokens_in
from neutreno.oversmoothing.metrics import LayerTokens

_HALF = (torch.float16, torch.bfloat16)


class Place(NamedTuple):
    """Where tokens were seen: the stack, the number of the layer in it, and the name of the module."""

    stack: str
    layer: int
    name: str


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
        x = None if x is None else tokens_in(x, layer)
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
    recorder = Recorder(find_layers(model, layers), take, attention)
    with recorder.attached(), _untouched(model), torch.autocast(first.device.type, enabled=False):
        for batch in batches:
            args, kwargs, labels = _arguments(batch, first)
            recorder.begin(args, kwargs, labels)
            _forward(model, kwargs, layers)(*args, **kwargs)
    return recorder.layers


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
