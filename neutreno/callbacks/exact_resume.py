"""What makes a killed and resumed run end with the weights of an uninterrupted one, bit for bit on the CPU.

All that leans on the inner workings of Lightning's loop is here and in :mod:`neutreno.data.loading`.
"""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from neutreno.callbacks.metrics_csv import MetricsCSV
from neutreno.data.loading import derive_seed, seed_everything
from neutreno.errors import InputError


class ExactResume(Callback):
    """Makes a step's random numbers a function of (seed, epoch, batch, process), and the record follow the checkpoint.

    So nothing random needs saving. Batches are counted, not optimizer steps: accumulated batches must not share masks.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.rewind(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, task: LightningModule, batch, batch_idx: int) -> None:
        seed_everything(derive_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))

    def on_save_checkpoint(self, trainer: Trainer, task: LightningModule, checkpoint: dict) -> None:
        checkpoint["accumulate_grad_batches"] = trainer.accumulate_grad_batches
        for logger in trainer.loggers:
            logger.save()

    def on_load_checkpoint(self, trainer: Trainer, task: LightningModule, checkpoint: dict) -> None:
        data, now = trainer.datamodule, trainer.accumulate_grad_batches
        before = checkpoint.get("accumulate_grad_batches", now)
        if before != now and checkpoint["global_step"] % data.steps_per_epoch:  # Lightning counts batches, not steps
            micro, rest = divmod(data.batch_size, before * trainer.world_size)
            instead = "on as many devices as before" if rest else f"with data.micro_batch_size={micro}"
            raise InputError(
                f"the checkpoint was taken within an epoch, at {before} accumulated micro-batches a step, not {now}: "
                f"resume {instead}"
            )
