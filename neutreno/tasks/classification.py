"""Image classification: cross entropy with DeiT's mixing and smoothing, top-1 and top-5 accuracy in percent."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge, Le
from timm.data import Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from neutreno.config.options import SUPPLIED, NonNegative, Share, checked
from neutreno.errors import InputError
from neutreno.tasks.base import Task


class Classification(Task):
    """Trains an image classifier and reports ``val/top1``, ``val/top5`` (percent), ``val/loss`` (cross entropy).

    Metrics are summed over all samples and processes. Those of the EMA weights carry the prefix ``ema/``.

    Args:
        num_classes: of the data; None: the model's.
        label_smoothing: share of the target spread over all classes.
        mixup, cutmix: their α; 0 switches each off. switch_prob: how often cutmix takes mixup's place.
        kwargs: of :class:`neutreno.tasks.base.Task`.
    """

    main_metric = "val/top1"
    evaluators = ("metrics", "crops", "robustness", "cost", "per_layer")
    percent = ("top1", "top5")
    pipeline_tag = "image-classification"
    titles: ClassVar[dict[str, str]] = {"top1": "top-1", "top5": "top-5"}

    accepts = "classes"

    @checked
    def __init__(
        self,
        model: Annotated[nn.Module, SUPPLIED],
        num_classes: Annotated[int, Ge(2), Le(10**7)] | None,
        label_smoothing: Share = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        switch_prob: Share = 0.5,
        **kwargs,
    ) -> None:
        super().__init__(model, **kwargs)
        num_classes = self.check_classes(num_classes)
        self.label_smoothing = label_smoothing
        how = {"switch_prob": switch_prob, "label_smoothing": label_smoothing, "num_classes": num_classes}
        self.mixup = Mixup(mixup, cutmix, **how) if mixup > 0 or cutmix > 0 else None
        self.metrics = self.per_network(partial(self._new_metrics, num_classes))

    @staticmethod
    def _new_metrics(num_classes: int) -> MetricCollection:
        top = {k: MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in (1, 5) if k < num_classes}
        found = {**{f"top{k}": metric for k, metric in top.items()}, "loss": MeanMetric(nan_strategy="disable")}
        return MetricCollection(found, compute_groups=False)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        if self.mixup is None:
            return F.cross_entropy(self.model(images), labels, label_smoothing=self.label_smoothing)
        if len(images) % 2:
            raise InputError(f"mixup needs an even batch per process, got {len(images)}; change data.batch_size")
        images, targets = self.mixup(images, labels)
        return F.cross_entropy(self.model(images), targets)

    def _update(self, metric: MetricCollection, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        logits = network(images).float()
        for key, one in metric.items(keep_base=True):
            given = (F.cross_entropy(logits, labels, reduction="none"),) if key == "loss" else (logits, labels)
            one.update(*given)

    def _figures(self, value: dict[str, Tensor]) -> dict[str, float]:
        # The metrics are float32, whose rounding would show in a percentage.
        return {key: x.item() if key == "loss" else round(100 * x.item(), 4) for key, x in value.items()}
