"""The task's metrics of the last epoch's weights, of their average, and of the best epoch's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning import LightningDataModule, Trainer

from neutreno.evaluation.base import Evaluator, Findings, Subject
from neutreno.evaluation.opening import load_checkpoint, read_fitting
from neutreno.tasks.base import Task


def evaluate_weights(trainer: Trainer, task: Task, data: LightningDataModule) -> dict[str, float]:
    """Every validation metric and, where the data set has a test split, every test metric of the task's weights."""
    metrics = validate(trainer, task, data)
    if data.has_test:
        trainer.test(task, data, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics


def validate(trainer: Trainer, task: Task, data: LightningDataModule) -> dict[str, float]:
    """Every validation metric of the task's weights."""
    trainer.validate(task, data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def evaluate_run(
    trainer: Trainer,
    task: Task,
    data: LightningDataModule,
    last: Path,
    best: Path,
    other_variants: Sequence[str] = (),
) -> dict[str, float]:
    """Metrics of the last epoch's raw weights, of their average (``ema/``) if kept, and of the best epoch (``best/``).

    The last epoch's raw weights are the result, as DeiT reports it. "Best" was chosen on the validation split, so its
    validation metrics flatter it. Leaves the last weights loaded.
    """
    metrics = {}
    if best.exists():
        load_checkpoint(task, data, best, other_variants)
        chosen = evaluate_weights(trainer, task, data)
        metrics = {f"best/{name}": value for name, value in chosen.items() if not name.startswith("ema/")}
    load_checkpoint(task, data, last, other_variants)
    return evaluate_weights(trainer, task, data) | metrics


class Metrics(Evaluator):
    """What the end of training reports: every metric of the validation and the test split, and of no model at all."""

    def check(self, subject: Subject) -> None:
        if subject.best is not None and subject.best.exists():
            read_fitting(subject.task, subject.data, subject.best, subject.other_variants)

    def run(self, subject: Subject) -> Findings:
        trainer, task, data = subject.trainer, subject.task, subject.data
        if subject.last is None:
            metrics = evaluate_weights(trainer, task, data)
        else:
            metrics = evaluate_run(trainer, task, data, subject.last, subject.best, subject.other_variants)
        return Findings(metrics=metrics | data.baselines())
