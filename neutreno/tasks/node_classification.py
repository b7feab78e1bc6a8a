"""Node classification: cross entropy and accuracy in percent over the labelled nodes of one graph."""

from __future__ import annotations

import copy
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from neutreno.config.options import SUPPLIED, checked
from neutreno.data.graph_files import UNLABELLED
from neutreno.tasks.base import Task


class NodeClassification(Task):
    """Trains a network on one graph and reports ``val/accuracy`` (percent) and ``val/loss`` (cross entropy).

    A step is an epoch of the full batch. After each the network is evaluated on the validation nodes, and the weights
    of the first epoch of highest accuracy are kept: their metrics are ``best/…``, as papers on graphs report them, and
    their layers are those that are measured. They are part of every checkpoint, so no file of them is written.

    Batches are features (1, N, F) and labels (1, N), ``UNLABELLED`` at nodes of other splits; those of training hold
    the validation labels (1, N), too.

    Args:
        model: with ``num_classes``, which the data tell it.
        kwargs: of :class:`neutreno.tasks.base.Task`.
    """

    main_metric = "val/accuracy"
    throughput = "train/nodes_per_s"
    percent = ("accuracy",)
    pipeline_tag = "graph-ml"
    keeps_best = True

    accepts = "nodes"

    @checked
    def __init__(self, model: Annotated[nn.Module, SUPPLIED], **kwargs) -> None:
        super().__init__(model, **kwargs)
        self.best = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("best_correct", torch.tensor(-1))
        self.register_buffer("best_step", torch.tensor(0))
        self.metrics = self.per_network(partial(self._new_metrics, model.num_classes))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**super().networks, "best/": self.best}

    @property
    def measured(self) -> nn.Module:
        """The best epoch's, until then."""
        return self.best

    @staticmethod
    def _new_metrics(num_classes: int) -> MetricCollection:
        accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED)
        return MetricCollection({"accuracy": accuracy, "loss": MeanMetric(nan_strategy="disable")})

    def samples_in(self, batch: tuple[Tensor, ...]) -> int:
        return batch[0].shape[1]

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        self._batch = batch
        x, labels, _ = batch
        return F.cross_entropy(self.model(x)[0], labels[0], ignore_index=UNLABELLED)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self._keep_best()

    @torch.no_grad()
    def _keep_best(self) -> None:
        x, _, labels = self._batch
        self.model.eval()
        with self.trainer.precision_plugin.val_step_context():  # as it is validated
            correct = (self.model(x).argmax(-1) == labels).sum()
        self.model.train()
        if correct > self.best_correct:
            self.best_correct.copy_(correct)
            self.best_step.fill_(self.global_step + 1)  # Lightning counts the step after this hook
            self.best.load_state_dict(self.model.state_dict())

    def report(self, metrics: dict[str, float]) -> None:
        super().report({**metrics, "best/step": self.best_step.item()})

    def _update(self, metric: MetricCollection, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        logits, labels = network(batch[0])[0].float(), batch[1][0]
        labelled = labels != UNLABELLED
        metric["accuracy"].update(logits, labels)
        metric["loss"].update(F.cross_entropy(logits[labelled], labels[labelled], reduction="none"))

    def _figures(self, value: dict[str, Tensor]) -> dict[str, float]:
        # The metrics are float32, whose rounding would show in a percentage.
        return {key: x.item() if key == "loss" else round(100 * x.item(), 4) for key, x in value.items()}
