"""Image classification: cross entropy with DeiT's mixing and smoothing, top-1 and top-5 accuracy in percent."""

from __future__ import annotations

from functools import partial
from typing import Annotated

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
        num_classes: of the data.
        label_smoothing: share of the target spread over all classes.
        mixup, cutmix: their α; 0 switches each off. switch_prob: how often cutmix takes mixup's place.
        kwargs: of :class:`neutreno.tasks.base.Task`.
    """

    main_metric = "val/top1"
    evaluators = ("metrics", "crops", "robustness", "cost", "per_layer")
    percent = ("top1", "top5")

    accepts = "classes"

    @checked
    def __init__(
        self,
        model: Annotated[nn.Module, SUPPLIED],
        num_classes: Annotated[int, Ge(2), Le(10**7)],
        label_smoothing: Share = 0.0,
        mixup: NonNegative = 0.0,
        cutmix: NonNegative = 0.0,
        switch_prob: Share = 0.5,
        **kwargs,
    ) -> None:
        super().__init__(model, **kwargs)
        self.label_smoothing = label_smoothing
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(
                mixup, cutmix, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=num_classes
            )
        self.metrics = self.per_network(partial(self._new_metrics, num_classes))

    @staticmethod
    def _new_metrics(num_classes: int) -> MetricCollection:
        accuracy = {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in (1, 5) if k < num_classes
        }
        return MetricCollection({**accuracy, "loss": MeanMetric(nan_strategy="disable")}, compute_groups=False)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        if self.mixup is None:
            return F.cross_entropy(self.model(images), labels, label_smoothing=self.label_smoothing)
        if len(images) % 2:
            raise InputError(f"mixup needs an even batch per process, got {len(images)}; change data.batch_size")
        images, targets = self.mixup(images, labels)
        return F.cross_entropy(self.model(images), targets)

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor]) -> None:
        if not batch:  # no image of it could be read
            return
        images, labels = batch
        for name, network in self.networks.items():
            logits = network(images).float()
            for key, metric in self.metrics[split][name or "raw"].items(keep_base=True):
                if key == "loss":
                    metric.update(F.cross_entropy(logits, labels, reduction="none"))
                else:
                    metric.update(logits, labels)

    def _report(self, split: str) -> None:
        report = {}
        for name in self.networks:
            collection = self.metrics[split][name or "raw"]
            for key, value in collection.compute().items():
                number = value.item()  # float32: its rounding would show in a percentage
                report[f"{name}{split.removesuffix('_')}/{key}"] = round(100 * number, 4) if key != "loss" else number
            collection.reset()
        self.report(report)
