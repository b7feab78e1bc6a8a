"""Layer-wise metrics of a network as a tidy table."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from neutreno.errors import InputError, check_number
from neutreno.oversmoothing.metrics import named_metrics
from neutreno.oversmoothing.recorder import Place, record
from neutreno.oversmoothing.tokens import OF_LAYER, LayerTokens, Metric
from neutreno.records import ALL

# A row of every table of layer-wise metrics: where, what, of which tokens, and over how many samples.
COLUMNS = ("stack", "name", "layer", "subset", "metric", "mean", "sd", "samples", "tokens", "dim")


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
            search does not find the layers, or finds others than those wanted; see
            :func:`neutreno.oversmoothing.layers.find_layers`.
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
    check_number("batch_size", batch_size, 1, integer=True)
    found = _Measured(named_metrics(metrics, "metrics"), getattr(model, "token_subsets", lambda stack, tokens: {}))
    attention = any({*metric.needs} & {*OF_LAYER} for metric in found.metrics)
    ran = record(model, _each(batches, batch_size), layers, found.take, attention)
    rows = found.rows([layer.stack for layer in ran])
    for name, reason in found.reasons().items():
        warnings.warn(f"the layer-wise metric {name} {reason}; left out", stacklevel=2)
    if not rows:
        raise InputError(
            f"nothing was measured in {type(model).__name__}: no batch ran two tokens or more through "
            f"{', '.join(layer.name for layer in ran[:3])}, …, or none of {', '.join(metrics)} applies"
        )
    return [{**fixed, **row} for row in rows]


class _Measured:
    """Values of metrics by place and subset, over all batches."""

    def __init__(self, metrics: list[Metric], subsets: Callable[[str, int], dict[str, Tensor]]) -> None:
        self.metrics, self.subsets = metrics, subsets
        self.values: dict[tuple[str, Place, str], list[Tensor]] = defaultdict(list)
        self.whole: dict[tuple[Metric, Place, str], list[LayerTokens]] = defaultdict(list)
        self.sizes: dict[tuple[Place, str], list[Tensor]] = defaultdict(list)  # how many tokens the samples have
        self.dims: dict[Place, int] = {}
        self.missing: dict[tuple[str, Place, str], list[str]] = {}  # what was not there, if only for one batch

    def take(self, place: Place, tokens: LayerTokens) -> None:
        self.dims[place] = tokens.features.shape[-1]
        for subset, part in self._parts(place, tokens):
            count = part.counting().sum(1).cpu()
            self.sizes[place, subset].append(count.double())
            for metric in self.metrics if len(count) else ():
                if metric.whole_set:
                    self.whole[metric, place, subset].append(_on_cpu(part))
                else:
                    self._apply(metric, part, place, subset, (len(count),))

    def _parts(self, place: Place, tokens: LayerTokens) -> Iterator[tuple[str, LayerTokens]]:
        """All tokens, and the network's subsets of them, whose attention is that of all."""
        yield ALL, tokens
        for name, chosen in self.subsets(place.stack, tokens.features.shape[1]).items():
            mask = chosen.to(tokens.features.device).expand(tokens.features.shape[:2])
            mask = mask if tokens.mask is None else mask & tokens.mask
            part = LayerTokens(tokens.features, mask, tokens.labels, tokens.inputs)
            yield name, part if mask.any(1).all() else part.of(mask.any(1))

    def reasons(self) -> dict[str, str]:
        """Why metrics were left out; layer 0 and subsets have no attention, which is no reason."""
        said = {"weights": "attention weights", "kernel": "a kernel", "values": "the values that are averaged"}
        found: dict[str, str] = {}
        somewhere = {(name, place.stack) for name, place, _ in self.values}  # such as not in a last layer of logits
        for (name, place, subset), missing in self.missing.items():
            elsewhere = (name, place.stack) in somewhere
            if not {*missing} <= {*OF_LAYER} or (place.layer and subset == ALL and not elsewhere):
                what = " and ".join(said.get(need, need) for need in missing)
                found.setdefault(name, f"needs {what}, which are not there (in {place.name})")
        return found

    def _apply(self, metric: Metric, tokens: LayerTokens, place: Place, subset: str, shape: tuple[int, ...]) -> None:
        key = (metric.name, place, subset)
        if missing := [name for name in metric.needs if getattr(tokens, name) is None]:
            self.missing[key] = missing
            return
        try:
            found = metric.function(tokens)
        except InputError as error:
            raise InputError(f"{place.name}: {error}") from error
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"the layer-wise metric {metric.name} gave {given}, not a tensor of shape {shape}")
        self.values[key].append(found.detach().double().cpu())

    def rows(self, stacks: Sequence[str]) -> list[dict[str, Any]]:
        """The table; of stacks none of whose layers ran, nothing."""
        for (metric, place, subset), parts in self.whole.items():
            self._apply(metric, _joined(parts), place, subset, ())
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
            at = (place.stack, place.name, place.layer, subset, name)
            values = (_finite(found.mean()), _finite(sd), len(sizes), sizes.mean().item(), self.dims[place])
            rows.append(dict(zip(COLUMNS, at + values, strict=True)))
        rows.sort(key=lambda r: (stacks.index(r["stack"]), order[r["metric"]], subsets.index(r["subset"]), r["layer"]))
        return rows


def _finite(value: Tensor | None) -> float | None:
    return value.item() if value is not None and value.isfinite() else None


def _on_cpu(tokens: LayerTokens) -> LayerTokens:
    parts = (tokens.features, tokens.counting(), tokens.labels, tokens.inputs)
    return LayerTokens(*(None if x is None else x.detach().to("cpu", copy=True) for x in parts))


def _joined(parts: Sequence[LayerTokens]) -> LayerTokens:
    """All samples of the probe set; where they have different numbers of tokens, padded, which the mask tells."""

    def all_of(name: str) -> Tensor | None:
        given = [getattr(part, name) for part in parts]
        return None if any(x is None or x.shape[1:] != given[0].shape[1:] for x in given) else torch.cat(given)

    features, mask = (
        pad_sequence([sample for part in parts for sample in getattr(part, name)], batch_first=True)
        for name in ("features", "mask")
    )
    return LayerTokens(features, None if mask.all() else mask, all_of("labels"), all_of("inputs"))


def _each(batches: Any, batch_size: int) -> Iterable[Any]:
    first = batches[0] if isinstance(batches, tuple) and batches else None
    if isinstance(batches, Mapping) or isinstance(first, Mapping):
        return [batches]
    if isinstance(first, Tensor) and len(batches) == 2:
        labels = batches[1]
        if labels is None:
            batches = first
        elif isinstance(labels, Tensor) and len(labels) == len(first):
            return list(zip(_parts(first, batch_size), _parts(labels, batch_size), strict=True))
    if isinstance(batches, Tensor):
        return _parts(batches, batch_size)
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise InputError(f"batches is a {type(batches).__name__}; give a tensor, a dictionary, or an iterable of them")
    return batches


def _parts(samples: Tensor, size: int) -> Sequence[Tensor]:
    """Parts of ``size`` samples; a last one of a single sample joins the part before it, for models that need two."""
    whole, rest = divmod(len(samples), size)
    return samples.split([*[size] * (whole - 1), size + 1] if rest == 1 and whole else size)
