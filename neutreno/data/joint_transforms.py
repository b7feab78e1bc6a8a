"""Transforms of an image and its mask together, where torchvision's v2 has none that fits: mmsegmentation's protocol.

They act on ``tv_tensors.Image`` (C, H, W) and ``tv_tensors.Mask`` (H, W), and draw from PyTorch's generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

IGNORE = 255  # the label of pixels that neither train nor count


def fitted_size(height: int, width: int, limits: Sequence[int] | None, factor: float = 1.0) -> tuple[int, int]:
    """(height, width) of the largest image of this ratio whose long and short sides are within ``limits`` times
    ``factor``; without limits of ``factor`` times this size."""
    if limits is not None:
        long, short = (int(side * factor) for side in (max(limits), min(limits)))
        factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class FitResize(v2.Transform):
    """Resize to :func:`fitted_size`, by a factor drawn uniformly from ``scale``; ``masks`` by nearest neighbour, too.

    Bilinear without antialiasing, as OpenCV does in the released Segmenter's pipeline.
    """

    def __init__(self, limits: Sequence[int] | None, scale: Sequence[float] = (1.0, 1.0), masks: bool = True) -> None:
        super().__init__()
        self.limits, self.scale, self.masks = limits, scale, masks

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = torch.empty(()).uniform_(*self.scale).item()
        return {"size": list(fitted_size(*v2.query_size(flat_inputs), self.limits, factor))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask) and not self.masks:
            return inpt
        return F.resize(inpt, params["size"], v2.InterpolationMode.BILINEAR, antialias=False)


class VariedCrop(v2.Transform):
    """Random square crop in which no class fills ``max_share`` of the pixels that count, or more.

    It is drawn anew up to ``tries`` times and the last one then taken as it comes. Images smaller than ``side`` are
    cropped to their extent.
    """

    def __init__(self, side: int, max_share: float, tries: int) -> None:
        super().__init__()
        self.side, self.max_share, self.tries = side, max_share, tries

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        mask = next(x for x in flat_inputs if isinstance(x, tv_tensors.Mask))
        box = self._draw(*mask.shape)
        for _ in range(self.tries if self.max_share < 1 else 0):
            counts = F.crop(mask, **box).flatten().bincount(minlength=IGNORE + 1)[:IGNORE]
            if counts.max() < self.max_share * counts.sum():
                break
            box = self._draw(*mask.shape)
        return box

    def _draw(self, height: int, width: int) -> dict[str, int]:
        top, left = (int(torch.randint(max(0, extent - self.side) + 1, ())) for extent in (height, width))
        return {"top": top, "left": left, "height": min(self.side, height), "width": min(self.side, width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.Transform):
    """mmsegmentation's ``PhotoMetricDistortion`` of float images in [0, 1]: each part with probability one half.

    Brightness is added (± 32 of 255); contrast multiplies (0.5 … 1.5), before the rest or after it; saturation is that
    of HSV (times 0.5 … 1.5), hue turns by ± 18 of 180 degrees. torchvision's ``RandomPhotometricDistort`` multiplies
    brightness, blends for contrast and saturation, and permutes channels.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ranges = {
            "brightness": (-32 / 255, 32 / 255),
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": (-0.1, 0.1),
        }
        drawn = {name: torch.empty(()).uniform_(*ends).item() for name, ends in ranges.items()}
        params = {name: value if torch.rand(()) < 0.5 else None for name, value in drawn.items()}
        return {**params, "contrast_first": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image, contrast = inpt.as_subclass(torch.Tensor), params["contrast"]
        if params["brightness"] is not None:
            image = (image + params["brightness"]).clamp(0, 1)
        if contrast is not None and params["contrast_first"]:
            image = (image * contrast).clamp(0, 1)
        if params["saturation"] is not None:  # of HSV: the largest channel stays, the smallest ends at 0
            value = image.amax(0, keepdim=True)
            most = value / (value - image.amin(0, keepdim=True)).clamp(min=1e-6)
            image = value - (value - image) * most.clamp(max=params["saturation"])
        if params["hue"] is not None:
            image = F.adjust_hue(image, params["hue"])
        if contrast is not None and not params["contrast_first"]:
            image = (image * contrast).clamp(0, 1)
        return tv_tensors.wrap(image, like=inpt)


class PadTo(v2.Transform):
    """Pad right and below to ``side`` x ``side``: images by 0, masks by :data:`IGNORE`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = F.get_size(inpt)
        missing = [0, 0, max(0, self.side - width), max(0, self.side - height)]
        return F.pad(inpt, missing, fill=IGNORE if isinstance(inpt, tv_tensors.Mask) else 0)
