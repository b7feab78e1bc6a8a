"""Lightning's checkpoint callback and writer, made fit for exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from neutreno.files import replacing


class Checkpoint(ModelCheckpoint):
    """Corrections: a run folder may be moved; nothing is saved within a step, on an epoch's last batch, or unvalidated.

    Lightning forgets the best score when the folder's path has changed, and would then overwrite the best weights with
    worse ones. A run that resumes from a checkpoint of the last batch skips the validation that was to follow; the
    checkpoint of the epoch's end comes a moment later anyway. After a resume Lightning would save again between two
    accumulated batches, without the gradients of the first.
    """

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and batch_idx + 1 < trainer.num_training_batches:
            super().on_train_batch_end(trainer, task, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:  # not before the first validation
            super().on_train_epoch_end(trainer, task)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = {k: here(state_dict[k]) for k in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames, so that a kill or a full disk never costs the previous checkpoint.

    Lightning's native writer moves the file from ``$TMPDIR``, which is not atomic across file systems.
    """

    written: Callable[[], None] | None = None  # called once, when the first one is in its place

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "wb") as file:
            torch.save(checkpoint, file)
        if self.written is not None:
            written, self.written = self.written, None
            written()
