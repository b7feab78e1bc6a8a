"""One progress bar for the whole run, with the time left, the loss and the main metric."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from neutreno import console

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
BAR_EVERY_S = 1.0  # reading the loss makes a GPU's step wait


class RunProgress(ProgressBar):
    """Lightning's native bars count one epoch; a researcher with a deadline asks when the run ends.

    On a terminal a bar over all steps; in a log file a line every few seconds. What else takes long is said by
    :func:`neutreno.console.heartbeat`.
    """

    def __init__(self, line_every_s: float = 10.0) -> None:
        super().__init__()
        self.line_every_s = line_every_s
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Of the ranks beyond 0, which stay silent anyway."""

    def on_fit_start(self, trainer: Trainer, task: LightningModule) -> None:
        console.doing("measuring the layers, preparing the first step")

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._started = self._line = time.monotonic()
        self._loss: torch.Tensor | None = None  # of the last batch
        self._first, self._total = trainer.global_step, trainer.datamodule.planned_steps
        console.doing("training")
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._first, bar_format=BAR, dynamic_ncols=True, smoothing=0.05)

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        console.said()  # steps go on; their line follows
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None  # None: a task that left the batch out
        self._loss = None if loss is None else loss * trainer.accumulate_grad_batches  # by which Lightning divides it
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
        if time.monotonic() - self._line > (self.line_every_s if self._bar is None else BAR_EVERY_S):
            self._say(trainer, task, trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        done = trainer.current_epoch + 1
        due = time.monotonic() - self._line > self.line_every_s or done == trainer.max_epochs
        if trainer.is_global_zero and (due or self._bar is not None):
            self._say(trainer, task, done)

    def _say(self, trainer: Trainer, task: LightningModule, epoch: int) -> None:
        self._line = time.monotonic()
        console.said()
        value = trainer.callback_metrics.get(task.main_metric)  # None before the first validation
        figures = [] if self._loss is None else [f"loss {self._loss.item():.3f}"]
        figures += [] if value is None else [" ".join(task.shown(task.main_metric, float(value)))]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([*figures, f"epoch {epoch}/{trainer.max_epochs}"]))
            return
        step, spent = trainer.global_step, self._line - self._started
        left = spent / max(step - self._first, 1) * (self._total - step)
        where = [f"epoch {epoch}/{trainer.max_epochs}", f"step {step}/{self._total}"]
        print(", ".join([*where, *figures, f"{tqdm.format_interval(left)} left"]), flush=True)

    def on_validation_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int, *_
    ) -> None:
        console.doing("validating", batch_of(batch_idx, trainer.num_val_batches[0]))

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        console.doing("training" if trainer.state.fn == TrainerFn.FITTING else "evaluating")

    def on_test_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int, *_) -> None:
        console.doing("testing", batch_of(batch_idx, trainer.num_test_batches[0]))

    def _close(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        console.doing("evaluating")

    on_train_end = on_exception = _close


def batch_of(index: int, batches: int | float) -> str:
    """``batches`` is infinite for data whose length is not known, such as a stream's."""
    return f"batch {index + 1}" + (f" of {batches}" if math.isfinite(batches) else "")
