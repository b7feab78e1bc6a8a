"""The over-smoothing probe: what the tokens are like after every layer, before, while and after training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Callback, LightningModule, Trainer

from neutreno.errors import check_number
from neutreno.files import replacing
from neutreno.oversmoothing.escape import collapse
from neutreno.oversmoothing.measure import COLUMNS, measure
from neutreno.oversmoothing.metrics import named_metrics, probed
from neutreno.parallel import gathered
from neutreno.reports.figures import plot_similarity

WHEN = ("step", "epoch", "when")
REDRAWN_S = 60  # while a run goes on: a figure takes longer than an epoch of a small one


class OversmoothingProbe(Callback):
    """Measures tokens by layer on fixed validation samples: at initialisation, every n epochs, after given steps, at
    the end.

    Logs ``oversmoothing/cosine/layer_07`` (all tokens; layer_00 is the embedding, layer_k the output of block k), a
    subset of the tokens as ``oversmoothing/cosine_patch/layer_07`` and a further stack as
    ``oversmoothing/cosine_decoder/layer_01``, for every metric by its name, or what a logger makes of its rows; and
    writes ``oversmoothing.csv`` and, of the cosine similarity, ``oversmoothing.png`` into ``folder``. What was measured
    travels in the checkpoint, so a resumed run ends with the same files.

    Args:
        at_steps: numbers of optimizer steps, after which it measures, too, and which make it tell when tokens collapse
            and escape: :func:`~neutreno.oversmoothing.escape.collapse`. Those beyond the run's end say nothing.
        metrics: layer-wise metrics, see :func:`~neutreno.oversmoothing.metrics.probed`.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_epochs: int = 10,
        num_samples: int = 128,
        metrics: Sequence[str] = ("cosine", "residual", "effective_rank"),
        at_steps: Sequence[int] | None = None,
    ) -> None:
        check_number("probe.every_n_epochs", every_n_epochs, 1, integer=True)
        check_number("probe.num_samples", num_samples, 1, integer=True)
        for step in at_steps or ():
            check_number("probe.at_steps", step, 0, integer=True)
        self.metrics, self.at_steps = probed(metrics), frozenset(at_steps or ())
        self.folder, self.every_n_epochs, self.num_samples = Path(folder), every_n_epochs, num_samples
        self.rows: list[dict[str, Any]] = []
        self._samples: Any = None
        self._step = -1  # of the last measurement; known to all ranks
        self._drawn = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self._step = self.rows[-1]["step"] if self.rows else -1

    def first_and_last(self) -> list[dict[str, Any]]:
        """The rows of the first measurement and of the latest, for a run's record."""
        steps = {row["step"] for row in (self.rows[0], self.rows[-1])} if self.rows else set()
        return [row for row in self.rows if row["step"] in steps]

    def collapse(self) -> tuple[dict[str, float], dict[str, float]]:
        """What :func:`~neutreno.oversmoothing.escape.collapse` tells of the run; nothing without ``at_steps``."""
        return collapse(self.rows, named_metrics(self.metrics)) if self.at_steps else ({}, {})

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        if not self.rows:
            self._measure(trainer, task, "initial", 0)

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *_: Any) -> None:
        if trainer.global_step in self.at_steps:
            with task.off_the_clock():
                self._measure(trainer, task, "training", trainer.current_epoch + int(trainer.is_last_batch))

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        done = trainer.current_epoch + 1  # Lightning counts it only after this hook
        last = done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if last or done % self.every_n_epochs == 0:
            self._measure(trainer, task, "final" if last else "training", done)

    def _measure(self, trainer: Trainer, task: LightningModule, when: str, done: int) -> None:
        if trainer.global_step == self._step and when == "training":
            return
        self._step = trainer.global_step
        with gathered(task.measured):  # by all processes
            if not trainer.is_global_zero:
                return
            if self._samples is None:
                self._samples = trainer.datamodule.probe_samples(self.num_samples)
            fixed = {"step": trainer.global_step, "epoch": done, "when": when}
            rows = measure(task.measured, self._samples, self.metrics, **fixed)
        self.rows = [row for row in self.rows if row["step"] != self._step] + rows
        task.log_layers(rows)
        self.write(redraw=time.monotonic() - self._drawn > REDRAWN_S)

    def write(self, redraw: bool = True) -> None:
        """Write the table, and with ``redraw`` the figure, from what has been measured so far."""
        if not self.rows:
            return
        with replacing(self.folder / "oversmoothing.csv") as file:
            pd.DataFrame(self.rows, columns=[*WHEN, *COLUMNS]).to_csv(file, index=False)
        if redraw:
            plot_similarity(self.rows, self.folder / "oversmoothing.png", self.folder.name)
            self._drawn = time.monotonic()
