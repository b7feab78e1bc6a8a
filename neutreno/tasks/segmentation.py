"""Semantic segmentation: cross entropy per pixel; mean IoU over the whole set, by sliding windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from neutreno.config.options import FREE, SUPPLIED, checked
from neutreno.data.segmentation import IGNORE
from neutreno.errors import InputError
from neutreno.sliding_window import SlidingWindow, segment
from neutreno.tasks.base import Task

SHOWN = 4  # images of the panel


def scores(confusion: Tensor) -> dict[str, Tensor]:
    """Figures of a confusion matrix (num_classes, num_classes), rows being the truth, in [0, 1].

    Returns:
        ``miou``, the mean over classes that occur in truth or prediction; ``pixel_acc``; ``mean_acc``, the mean recall
        over classes that occur in the truth; and by class ``iou`` and ``acc`` (num_classes,), NaN where undefined.
    """
    confusion = confusion.double()
    right, truth, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    iou, recall = right / (truth + predicted - right), right / truth
    means = {"miou": iou.nanmean(), "pixel_acc": right.sum() / truth.sum(), "mean_acc": recall.nanmean()}
    return {**means, "iou": iou, "acc": recall}


class Segmentation(Task):
    """Trains a Segmenter and reports ``val/miou``, ``val/pixel_acc``, ``val/mean_acc`` in percent.

    All come from one confusion matrix over all pixels of the set at the labels' own size, whatever the number of
    processes. Metrics of the EMA weights carry the prefix ``ema/``.

    Args:
        num_classes: of the data; None: the model's.
        inference: arguments of :class:`neutreno.sliding_window.SlidingWindow` for validation and test.
        protocols: further ones for ``evaluate.py``, by name, each as what differs from ``inference`` (null: none);
            their metrics are ``val_NAME/miou``.
        kwargs: of :class:`neutreno.tasks.base.Task`.

    Raises:
        InputError: the model is no Segmenter, or a protocol is not possible.
    """

    main_metric = "val/miou"
    evaluators = ("metrics", "windows", "cost", "per_layer")
    percent = ("miou", "pixel_acc", "mean_acc")
    pipeline_tag = "image-segmentation"
    titles: ClassVar[dict[str, str]] = {
        "miou": "mean IoU",
        "pixel_acc": "pixel accuracy",
        "mean_acc": "mean accuracy",
    }

    accepts = "masks"
    writer = "neutreno.reports.segmentation.write"

    @checked
    def __init__(
        self,
        model: Annotated[nn.Module, SUPPLIED],
        num_classes: Annotated[int, Ge(2), Le(10**6)] | None,
        inference: Annotated[Mapping[str, Any], FREE],
        protocols: Annotated[Mapping[str, Mapping[str, Any] | None] | None, FREE] = None,
        **kwargs,
    ) -> None:
        super().__init__(model, **kwargs)
        num_classes = self.check_classes(num_classes)
        self.inference = self._window("inference", inference)
        further = {name: {**inference, **more} for name, more in (protocols or {}).items() if more is not None}
        self.protocols = {name: self._window(f"protocols.{name}", settings) for name, settings in further.items()}
        new_metric = partial(MulticlassConfusionMatrix, num_classes, ignore_index=IGNORE, validate_args=False)
        self.metrics = self.per_network(new_metric)
        self.by_class: dict[str, dict[str, Tensor]] = {}  # of the raw weights, by split and protocol
        self._shown: list[tuple[Tensor, Tensor, Tensor]] = []  # image, mask, prediction
        self._to_show = False

    def _window(self, key: str, settings: Mapping[str, Any]) -> SlidingWindow:
        least, side = getattr(self.model, "smallest_side", 1), settings.get("window")
        try:
            if isinstance(side, int) and 0 < side < least:
                raise InputError(f"window={side} is smaller than a patch of {least} pixels; enlarge it")
            return SlidingWindow(**settings)
        except (InputError, TypeError) as error:  # of a wrong number; of a name that is unknown or absent
            said = str(error).removeprefix("SlidingWindow.__init__() ")
            out = f"; task.{key}=null leaves it out" if key.startswith("protocols") else ""
            raise InputError(f"task.{key}: {said}{out}") from error

    @contextmanager
    def following(self, protocol: str) -> Iterator[None]:
        """Evaluate by one of ``protocols`` meanwhile."""
        before, self.inference, self.protocol = self.inference, self.protocols[protocol], f"_{protocol}"
        try:
            yield
        finally:
            self.inference, self.protocol = before, ""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        total = F.cross_entropy(self.model(images), masks, ignore_index=IGNORE, reduction="sum")
        return total / (masks != IGNORE).sum().clamp(min=1)  # a crop may hold padding and unlabelled pixels alone

    def _update(self, metric: nn.Module, network: nn.Module, batch: list[tuple[Tensor, Tensor]]) -> None:
        images, masks = zip(*batch, strict=True)
        predicted = segment(network, images, [mask.shape for mask in masks], self.inference)
        for one, mask in zip(predicted, masks, strict=True):
            metric.update(one.flatten(), mask.flatten())
        if self._to_show and network is self.model:
            self._shown.append((images[0].cpu(), masks[0].cpu(), predicted[0].cpu()))

    def _figures(self, value: Tensor) -> dict[str, float]:
        if not value.any():
            raise InputError("no labelled pixel in the images; there is nothing to score")
        return {key: round(100 * figure.item(), 4) for key, figure in scores(value).items() if key in self.percent}

    def _report(self, split: str) -> None:
        confusion = self.metrics[split]["raw"].compute()
        by_class = {key: figure.cpu() for key, figure in scores(confusion).items() if key not in self.percent}
        self.by_class[split.removesuffix("_") + self.protocol] = by_class | {"pixels": confusion.sum(1).cpu()}
        super()._report(split)

    def on_validation_epoch_start(self) -> None:
        if not self.protocol:
            self._shown = []

    def validation_step(self, batch: list[tuple[Tensor, Tensor]], batch_idx: int) -> None:
        every = max(1, self.trainer.num_val_batches[0] // SHOWN)  # spread over the set
        self._to_show = not self.protocol and batch_idx % every == 0 and len(self._shown) < SHOWN
        super().validation_step(batch, batch_idx)
        self._to_show = False

    def left(self) -> dict[str, Any] | None:
        if not self.by_class:  # nothing was evaluated
            return None
        return {"names": self.trainer.datamodule.class_names, "by_class": self.by_class, "shown": self._shown}
