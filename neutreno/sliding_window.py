"""Segmentation of whole images by windows of the size that the model was trained on, at several scales, and flipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neutreno.errors import InputError, check_number

AT_ONCE = 2**24  # values that are resized at once, 64 MiB


@dataclass(frozen=True)
class SlidingWindow:
    """How a whole image is segmented; Segmenter's protocol.

    Args:
        window, stride: side of the square windows and their distance, in pixels; the last one is flush with the border.
            A smaller image is enlarged until its short side is a window's.
        scales: factors of the image's size whose results are averaged.
        flip: average with the results of the mirrored image.
        batch: windows at once.

    Raises:
        InputError: not such numbers.
    """

    window: int
    stride: int
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    batch: int = 8

    def __post_init__(self) -> None:
        for name in ("window", "stride", "batch"):
            check_number(name, getattr(self, name), 1, integer=True)
        if self.stride > self.window:
            raise InputError(f"stride={self.stride} is larger than window={self.window} and would leave gaps; lower it")
        if isinstance(self.scales, str) or not isinstance(self.scales, Sequence) or not self.scales:
            raise InputError(f"scales={self.scales} is not a list of factors; write scales=[1.0]")
        for scale in self.scales:
            check_number("scales", scale, 0.01, 100)
        if not isinstance(self.flip, bool):
            raise InputError(f"flip={self.flip} is neither true nor false")

    @property
    def views(self) -> list[tuple[float, bool]]:
        """(scale, mirrored) of every pass over an image."""
        return [(scale, flip) for scale in self.scales for flip in ((False, True) if self.flip else (False,))]


def _starts(length: int, window: int, stride: int) -> list[int]:
    return [*range(0, length - window, stride), length - window]


def _resize(image: Tensor, *size: int) -> Tensor:
    return image if size == image.shape[-2:] else F.interpolate(image[None], size=size, mode="bilinear")[0]


def _view(image: Tensor, scale: float, flip: bool, window: int) -> Tensor:
    """One image (C, H, W) in another size, at least a window's, and mirrored."""
    height, width = (max(1, int(side * scale)) for side in image.shape[-2:])
    image = _resize(image, height, width)
    if min(height, width) < window:
        longer = int(max(height, width) / min(height, width) * window)
        image = _resize(image, *((window, longer) if height < width else (longer, window)))
    return image.flip(-1) if flip else image


def _window_logits(model: nn.Module, images: Sequence[Tensor], window: SlidingWindow) -> list[Tensor]:
    """Logits (num_classes, h, w) of images at least a window large, averaged where windows overlap."""
    side = window.window
    places = [
        (i, (..., slice(top, top + side), slice(left, left + side)))
        for i, image in enumerate(images)
        for top in _starts(image.shape[-2], side, window.stride)
        for left in _starts(image.shape[-1], side, window.stride)
    ]
    totals: dict[int, Tensor] = {}
    counts = [image.new_zeros(image.shape[-2:]) for image in images]
    for first in range(0, len(places), window.batch):
        some = places[first : first + window.batch]
        for (i, place), logits in zip(some, model(torch.stack([images[i][at] for i, at in some])), strict=True):
            if i not in totals:
                dtype = torch.promote_types(logits.dtype, torch.float32)
                totals[i] = logits.new_zeros(len(logits), *images[i].shape[-2:], dtype=dtype)
            totals[i][place] += logits
            counts[i][place] += 1
    return [total.div_(count) for total, count in zip(totals.values(), counts, strict=True)]


def _resized_rows(logits: Tensor, size: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """``F.interpolate(logits, size, mode="bilinear")``, (C, h, w) → (C, H, W), a few rows at a time.

    For a photograph of full size and many classes the whole would not fit into memory.
    """
    height, width = size
    rows = max(1, AT_ONCE // (len(logits) * width))
    source = (torch.arange(height, device=logits.device, dtype=torch.float64) + 0.5) * logits.shape[1] / height - 0.5
    source.clamp_(min=0)
    above = source.long().clamp(max=logits.shape[1] - 1)
    below = (above + 1).clamp(max=logits.shape[1] - 1)
    share = (source - above)[:, None].to(logits.dtype)
    for first in range(0, height, rows):
        part = slice(first, min(first + rows, height))
        mixed = torch.lerp(logits[:, above[part]], logits[:, below[part]], share[part])
        yield part, F.interpolate(mixed[None], size=(mixed.shape[1], width), mode="bilinear")[0]


def _resized(
    model: nn.Module, images: Sequence[Tensor], sizes: Sequence[Sequence[int]], window: SlidingWindow
) -> Iterator[tuple[int, slice, Tensor]]:
    """Of every view of every image: its number, rows of the result, and the logits there, (num_classes, rows, W)."""
    for scale, flip in window.views:
        views = [_view(image, scale, flip, window.window) for image in images]
        for i, logits in enumerate(_window_logits(model, views, window)):
            for part, resized in _resized_rows(logits.flip(-1) if flip else logits, sizes[i]):
                yield i, part, resized


@torch.no_grad()
def probabilities(
    model: nn.Module, images: Sequence[Tensor], sizes: Sequence[Sequence[int]], window: SlidingWindow
) -> list[Tensor]:
    """Class probabilities of whole images, the mean over scales and flips.

    Args:
        images: each (C, h, w), of any size.
        sizes: (H, W) of each result.

    Returns:
        (num_classes, H, W) each.
    """
    results: dict[int, Tensor] = {}
    for i, part, logits in _resized(model, images, sizes, window):
        if i not in results:
            results[i] = logits.new_zeros(len(logits), *sizes[i])
        results[i][:, part] += logits.softmax(0) / len(window.views)
    return list(results.values())


@torch.no_grad()
def segment(
    model: nn.Module, images: Sequence[Tensor], sizes: Sequence[Sequence[int]], window: SlidingWindow
) -> list[Tensor]:
    """The likeliest class of every pixel of whole images, (H, W) each; arguments as for :func:`probabilities`."""
    if len(window.views) > 1:
        return [p.argmax(0) for p in probabilities(model, images, sizes, window)]
    rows: dict[int, list[Tensor]] = defaultdict(list)  # one view: the largest logit is the largest probability
    for i, _, logits in _resized(model, images, sizes, window):
        rows[i].append(logits.argmax(0))
    return [torch.cat(parts) for parts in rows.values()]
