"""Lightning's checkpoint callback, made fit for exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Checkpoint(ModelCheckpoint):
    """Three corrections: a run folder may be moved; no checkpoint is taken within a step, nor on an epoch's last batch.

    Lightning forgets the best score when the folder's path has changed, and would then overwrite the best weights with
    worse ones. And a run that resumes from a checkpoint of the last batch skips the validation that was to follow; the
    checkpoint of the epoch's end comes a moment later anyway. After a resume Lightning would save again between two
    accumulated batches, without the gradients of the first.
    """

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and batch_idx + 1 < trainer.num_training_batches:
            super().on_train_batch_end(trainer, task, outputs, batch, batch_idx)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = {k: here(state_dict[k]) for k in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
