"""What a layer-wise metric is given, and how a function becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neutreno.errors import InputError

OF_LAYER = ("weights", "kernel", "values")  # made by the layer itself, a batch at a time
NEEDS = ("labels", "inputs", *OF_LAYER)  # what a metric may ask for beside the features


@dataclass(frozen=True)
class LayerTokens:
    """The tokens of one layer, and what else a layer-wise metric may ask for.

    Attributes:
        features: what leaves the layer (enters the first, for layer 0), (B, N, d). A graph is one sample of N nodes.
        mask: which tokens count, (B, N); None: all. Padding and token subsets are masks.
        labels: of the samples, (B, …), as the data gives them; None: there are none.
        inputs: what the network was given, (B, …).
        weights: makes A (B, H, N, N) of the layer's attention, rows that sum to 1; None where the layer has none that
            can be rebuilt.
        kernel: makes K (B, H, N, N) of J and G: A of attention, A + I of a graph's Â.
        values: makes V_l and V_0 (B, H, N, D), the layer's values and those of the first layer of its stack.
        roots: makes the roots of a graph's degrees (N,), over which J and G take the values; None: the values alone.
    """

    features: Tensor
    mask: Tensor | None = None
    labels: Tensor | None = None
    inputs: Tensor | None = None
    weights: Callable[[], Tensor] | None = None
    kernel: Callable[[], Tensor] | None = None
    values: Callable[[], tuple[Tensor, Tensor]] | None = None
    roots: Callable[[], Tensor] | None = None

    def counting(self) -> Tensor:
        """The mask, (B, N), also where all tokens count."""
        return self.features.new_ones(self.features.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def per_sample(self, formula: Callable[[Tensor], Tensor]) -> Tensor:
        """``formula`` of the tokens that count, (n, d) of each sample: (B,)."""
        if self.mask is None or self.mask.all():
            return formula(self.features)
        if (self.mask == self.mask[0]).all():
            return formula(self.features[:, self.mask[0]])
        return torch.cat([formula(x[None, mask]) for x, mask in zip(self.features, self.mask, strict=True)])

    def of(self, samples: Tensor) -> LayerTokens:
        """The same of some samples alone, (B,) of booleans."""
        chosen = {name: value[samples] for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name in ("weights", "kernel"):
            if (make := getattr(self, name)) is not None:
                chosen[name] = lambda make=make: make()[samples]
        if self.values is not None:
            chosen["values"] = lambda: tuple(v[samples] for v in self.values())
        return replace(self, **chosen)


@dataclass(frozen=True)
class Metric:
    """A layer-wise metric: its name in records, its function, what it needs of :data:`NEEDS`, and whether it takes the
    whole probe set at once, then giving one number, (), instead of one per sample, (B,).

    ``collapsed_at``: from this value on, the tokens count as collapsed; None: no value says so."""

    name: str
    function: Callable[[LayerTokens], Tensor]
    needs: tuple[str, ...] = ()
    whole_set: bool = False
    collapsed_at: float | None = None


def layerwise_metric(
    name: str | None = None, needs: Sequence[str] = (), whole_set: bool = False, collapsed_at: float | None = None
) -> Callable[[Callable], Callable]:
    """Registers a function of :class:`LayerTokens` as a layer-wise metric.

    Where something that it needs is missing, it is left out, and that is said.

    Args:
        name: in records and figures; None: the function's own.
        needs: of :data:`NEEDS`.
        whole_set: it is given all samples of the probe set at once and returns a single number, ().
        collapsed_at: from this value on, the tokens count as collapsed; see :mod:`neutreno.oversmoothing.escape`.

    Raises:
        ValueError: the name is no word, there is nothing of that kind to need, or attention is asked for over the
            whole set.
    """
    if name is not None and not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a layer-wise metric; write letters, digits and _")
    if unknown := set(needs) - {*NEEDS}:
        raise ValueError(f"a layer-wise metric may need {', '.join(NEEDS)}, not {', '.join(sorted(unknown))}")
    if whole_set and {*OF_LAYER} & {*needs}:
        raise ValueError("attention is made a batch at a time: a metric over the whole set cannot have it")

    def register(function: Callable) -> Callable:
        function.__layerwise__ = Metric(name or function.__name__, function, tuple(needs), whole_set, collapsed_at)
        return function

    return register


def check_finite(x: Tensor, title: str) -> None:
    """
    Raises:
        InputError: some are not; ``title`` is what is measured.
    """
    if not torch.isfinite(x).all():
        raise InputError(f"{title}: the tokens contain NaN or Inf; did the training diverge?")
