"""One progress bar for the whole run, with the time left and the main metric."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm


class RunProgress(ProgressBar):
    """Lightning's native bars count one epoch; a researcher with a deadline asks when the run ends.

    On a terminal a bar over all steps; in a log file one line per epoch, at most every few seconds.
    """

    def __init__(self, line_every_s: float = 10.0) -> None:
        super().__init__()
        self.line_every_s = line_every_s
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Of the ranks beyond 0, which stay silent anyway."""

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._started = self._line = time.monotonic()
        self._first, self._total = trainer.global_step, trainer.datamodule.planned_steps
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._first, unit="step", dynamic_ncols=True, smoothing=0.05)

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int) -> None:
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        done = trainer.current_epoch + 1
        value = trainer.callback_metrics.get(task.main_metric)  # None before the first validation
        text = f"epoch {done}/{trainer.max_epochs}" + ("" if value is None else f"  {task.main_metric} {value:.2f}")
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._line > self.line_every_s or done == trainer.max_epochs:
            self._line = time.monotonic()
            spent = self._line - self._started
            left = spent / max(trainer.global_step - self._first, 1) * (self._total - trainer.global_step)
            print(f"{text}  {tqdm.format_interval(spent)} spent, {tqdm.format_interval(left)} left", flush=True)

    def _close(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    on_train_end = on_exception = _close
