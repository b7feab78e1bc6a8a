"""The metrics of a trained run. Training ends with it and ``evaluate.py`` repeats it, so both give the same numbers."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningDataModule, Trainer

from neutreno.checkpoints import load_strictly, read_checkpoint
from neutreno.tasks.base import Task


def evaluate_weights(trainer: Trainer, task: Task, data: LightningDataModule) -> dict[str, float]:
    """Every validation metric and, where the data set has a test split, every test metric of the task's weights."""
    trainer.validate(task, data, verbose=False)
    metrics = dict(trainer.callback_metrics)
    if data.has_test:
        trainer.test(task, data, verbose=False)
        metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def evaluate_run(trainer: Trainer, task: Task, data: LightningDataModule, last: Path, best: Path) -> dict[str, float]:
    """Metrics of the last epoch's raw weights, of their average (``ema/``) if kept, and of the best epoch (``best/``).

    The last epoch's raw weights are the result, as DeiT reports it. "Best" was chosen on the validation split, so its
    validation metrics flatter it. Leaves the last weights loaded.
    """
    metrics = {}
    if best.exists():
        load_strictly(task, read_checkpoint(best).get("state_dict"), best)
        chosen = evaluate_weights(trainer, task, data)
        metrics = {f"best/{name}": value for name, value in chosen.items() if not name.startswith("ema/")}
    load_strictly(task, read_checkpoint(last).get("state_dict"), last)
    return evaluate_weights(trainer, task, data) | metrics
