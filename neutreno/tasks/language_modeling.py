"""Language modeling: cross entropy of the next token, perplexity."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from neutreno.config.options import SUPPLIED
from neutreno.tasks.base import Task


class LanguageModeling(Task):
    """Trains a language model and reports ``val/loss``, nats per token, and ``val/ppl``, perplexity: its exponential.

    Over all tokens and ranks, each sequence read without the tokens before it. Metrics of the EMA weights carry
    the prefix ``ema/``. Checkpoints hold the vocabulary, so that the model can write without its data.

    Args:
        kwargs: of :class:`neutreno.tasks.base.Task`.
    """

    main_metric, main_metric_mode = "val/ppl", "min"
    titles: ClassVar[dict[str, str]] = {"ppl": "perplexity"}
    evaluators = ("metrics", "perplexity", "per_layer")
    throughput = "train/tokens_per_s"
    pipeline_tag = "text-generation"
    accepts = "tokens"

    def __init__(self, model: Annotated[nn.Module, SUPPLIED], **kwargs) -> None:
        super().__init__(model, **kwargs)
        self.metrics = self.per_network(partial(MeanMetric, nan_strategy="disable"))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.model(*batch).mean()

    def samples_in(self, batch: tuple[Tensor, Tensor]) -> int:
        return batch[1].numel()

    def _update(self, metric: MeanMetric, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        metric.update(network(*batch).double())

    def _figures(self, value: Tensor) -> dict[str, float]:
        return {"ppl": value.exp().item(), "loss": value.item()}

    def on_validation_epoch_start(self) -> None:
        for split in self.metrics.values():  # here, for Lightning's bf16-true makes all of a task bfloat16
            for metric in split.values():
                metric.set_dtype(torch.float64)

    on_test_epoch_start = on_validation_epoch_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = "\n".join(self.trainer.datamodule.vocabulary.words)

    def check_checkpoint(self, checkpoint: dict[str, Any], data: LightningDataModule, path: str | Path) -> None:
        data.vocabulary.check(checkpoint.get("vocabulary"), path)
