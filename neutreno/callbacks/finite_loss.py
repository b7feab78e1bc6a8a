"""Stops a run whose loss or weights are NaN or Inf."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer

from neutreno.errors import InputError

ADVICE = "try a lower task.lr, gradient clipping (trainer.gradient_clip_val=1) or trainer.precision=32-true"


class FiniteLoss(Callback):
    """Ends training on a NaN or infinite loss and names the step; and where a gradient was so in the last step before a
    checkpoint, whose loss was not, before such weights take the place of the last good ones.

    On the CPU every step is looked at. On an accelerator the first bad step is kept on the device and read every
    ``log_every_n_steps`` and before each checkpoint, because reading it would make each step wait for the device.
    """

    def __init__(self) -> None:
        self._bad_step: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int) -> None:
        loss = outputs["loss"].detach()
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, device=loss.device)
        step = trainer.fit_loop.epoch_loop.total_batch_idx // trainer.accumulate_grad_batches
        self._bad_step = torch.where(self._bad_step.lt(0) & ~loss.isfinite(), step, self._bad_step)
        if loss.device.type == "cpu" or step % trainer.log_every_n_steps == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, task: LightningModule, checkpoint: dict) -> None:
        self._check(trainer)
        state = checkpoint["state_dict"]
        names = (name for name, _ in task.named_parameters(remove_duplicate=False) if name in state)
        if bad := [name for name in names if not _local(state[name]).isfinite().all()]:
            raise InputError(
                f"{bad[0]} is NaN or Inf after step {trainer.global_step} (epoch {trainer.current_epoch}), though the "
                f"loss was finite; {ADVICE}"
            )

    def _check(self, trainer: Trainer) -> None:
        if self._bad_step is not None and (step := int(self._bad_step)) >= 0:
            raise InputError(f"the loss is NaN or Inf at step {step} (epoch {trainer.current_epoch}); {ADVICE}")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Of a sharded one this process's part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
