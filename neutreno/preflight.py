"""What a run will cost, measured on a few of its steps: ``python train.py … preflight=true``."""

from __future__ import annotations

import copy
import math
import resource
import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig
from scipy import stats
from timm.optim import create_optimizer_v2
from torch.utils._pytree import tree_map

from neutreno.callbacks.exact_resume import ExactResume
from neutreno.errors import InputError, check_number
from neutreno.parallel import GatherForEvaluation, build_trainer, describe, kill_others
from neutreno.stopping import stopping

WARMUP_STEPS = 3  # besides emptying what the workers have loaded ahead
MEASURED_S = 20.0
VALIDATION_BATCHES = 8
ALPHA, POWER = 0.05, 0.8  # of the test that is to find a difference
SPARE_MEMORY = 0.1  # of a GPU: gradient buckets of several processes, fragments


def seeds_needed(difference: float, sd: float) -> int:
    """Seeds per row at which a two-sided two-sample t test finds a true ``difference`` with probability ``POWER``.

    Both in units of the metric; ``sd`` is that between seeds, the same in both rows. By the noncentral t distribution
    with 2n − 2 degrees of freedom and noncentrality d √(n/2), d = difference / sd (Cohen, 1988).

    Raises:
        InputError: not two positive numbers.
    """
    for name, value in {"expected.difference": difference, "expected.sd": sd}.items():
        check_number(name, value)
        if value == 0:
            raise InputError(f"{name}=0: no number of seeds shows that; give a positive number")

    def reached(n: int) -> float:
        shift, freedom = difference / sd * math.sqrt(n / 2), 2 * n - 2
        critical = stats.t.ppf(1 - ALPHA / 2, freedom)
        return stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)

    seeds = range(2, sys.maxsize)
    return seeds[bisect_left(seeds, POWER, key=reached)]  # it grows with n


def largest_batch(task: LightningModule, sample: Any, trainer: Trainer, most: int) -> tuple[int, int | None]:
    """How many samples one device can train on at once, and the number that was too much (None: none up to ``most``).

    Doubles a batch of copies of ``sample`` (a batch of one) until memory ends: forward, backward and optimizer step of
    a copy of ``task`` in the trainer's precision, neither sharded nor compiled. (Lightning's batch size finder refuses
    distributed strategies, and sets a loader's batch, which here follows from the global one.)

    Raises:
        InputError: not even two samples fit.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(1 - SPARE_MEMORY, device)
    trial = precision.convert_module(copy.deepcopy(task)).to(device).train()
    optimizer = create_optimizer_v2(trial.model, **trial.opt)
    fits, too_much = 0, None
    while fits < most and too_much is None:
        size = min(max(2, 2 * fits), most)  # mixup needs an even batch
        try:
            batch = tree_map(lambda x: x.repeat(size, *[1] * (x.ndim - 1)).to(device), sample)  # noqa: B023
            with precision.train_step_context():
                loss = trial.loss(precision.convert_input(batch))
            loss.backward()
            optimizer.step()
            fits = size
        except torch.OutOfMemoryError:
            too_much = size
        batch = loss = None
        optimizer.zero_grad()
    del trial, optimizer
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.reset_peak_memory_stats(device)
    if not fits:
        raise InputError(f"{device} has not enough memory for two samples; take a smaller model or trainer=fsdp")
    return fits, too_much


class MicroBatch(Callback):
    """Where ``data.micro_batch_size`` is "auto" on GPUs, measures what fits and sets the accumulated micro-batches.

    A callback, because all processes must agree and can communicate only from here on.

    Args:
        always: measure for the report, whatever ``data.micro_batch_size`` is, and as far as memory goes.
    """

    def __init__(self, always: bool = False) -> None:
        self.always = always
        self.fits: tuple[int, int | None] | None = None

    def setup(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        data, device = trainer.datamodule, trainer.strategy.root_device
        auto = data.micro_batch_size == "auto"
        if stage != "fit" or device.type != "cuda" or not (auto or self.always):
            return
        loader = data.train_dataloader()
        sample = tree_map(lambda x: x[:1], next(iter(loader)))
        most = len(data.splits["train"]) // 2 * 2 or 1 if self.always else data.batch_size // trainer.world_size
        fits, too_much = largest_batch(task, sample, trainer, most)
        fits = int(trainer.strategy.reduce(torch.full((), fits, device=device), reduce_op="min"))
        self.fits = fits, too_much
        if auto:
            micro_batches = trainer.accumulate_grad_batches
            trainer.accumulate_grad_batches = data.accumulated_batches(trainer.world_size, micro_batches, fits)


class Clock(Callback):
    """Times steps with all that belongs to them, and apart from that the model's part; stops the run when it knows."""

    def __init__(self) -> None:
        self.steps, self.model_s, self.total_s = 0, 0.0, 0.0
        self._since: float | None = None

    def _now(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        loader, micro_batches = trainer.train_dataloader, trainer.accumulate_grad_batches
        ahead = getattr(loader, "num_workers", 0) * (getattr(loader, "prefetch_factor", 0) or 0)
        most = trainer.datamodule.planned_steps - 1
        self._warm = min(WARMUP_STEPS + math.ceil(ahead / micro_batches), most)

    def on_train_batch_start(self, trainer: Trainer, task: LightningModule, batch, batch_idx: int) -> None:
        self._began = self._now(trainer)
        if self._since is None and trainer.global_step == 0 == self._warm:
            self._since = self._began

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs, batch, batch_idx: int) -> None:
        now = self._now(trainer)
        if self._since is not None:
            self.model_s += now - self._began
            self.total_s, self.steps = now - self._since, trainer.global_step - self._warm
        elif trainer.global_step == self._warm:
            self._since = now
        enough = self.steps and self.total_s > MEASURED_S and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(bool(enough), all=False)

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self._validation = [self._now(trainer)]

    def on_validation_batch_end(self, trainer: Trainer, task: LightningModule, *args, **kwargs) -> None:
        self._validation.append(self._now(trainer))

    @property
    def validation_batch_s(self) -> float:
        first = min(1, len(self._validation) - 2)  # the first batch waits for the workers to start
        return (self._validation[-1] - self._validation[first]) / (len(self._validation) - 1 - first)


def preflight(config: DictConfig, task: LightningModule, data: LightningDataModule, plugins: list) -> None:
    """Train a few steps without keeping anything, and print what the whole run of ``config`` will take.

    Raises:
        InputError: the run's settings allow no step.
    """
    clock, micro_batch = Clock(), MicroBatch(always=True)
    callbacks = [micro_batch, ExactResume(config.seed), GatherForEvaluation(), clock]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = build_trainer(config.trainer, callbacks=callbacks, plugins=plugins, **quiet)
    micro_batches = trainer.accumulate_grad_batches
    trainer.accumulate_grad_batches = data.accumulated_batches(trainer.world_size, micro_batches)
    data.check_limits(trainer)
    limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
    scratch = tempfile.TemporaryDirectory()  # removed when this function ends
    data.note_corrupt(Path(scratch.name) / "corrupt_images.txt")
    with stopping(kill_others(trainer)):
        trainer.fit(task, data)
    memory = _memory(trainer.strategy.root_device)
    batches = data.eval_batches(trainer.world_size)
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    trainer.limit_val_batches = max(1, min(VALIDATION_BATCHES, int(batches)))
    trainer.validate(task, data, verbose=False)
    if not trainer.is_global_zero:
        return

    shared = describe(trainer, data)
    step_s, model_s = clock.total_s / clock.steps, clock.model_s / clock.steps
    waiting = 1 - model_s / step_s
    validation_s = clock.validation_batch_s * batches
    at_the_end = 1 if task.keeps_best else 2  # of the last weights, and of the best
    validations = trainer.max_epochs // (trainer.check_val_every_n_epoch or 1) + at_the_end
    hours = (data.planned_steps * step_s + validations * validation_s) / 3600
    lines = {
        "parameters": f"{sum(p.numel() for p in task.model.parameters()):,}",
        "devices": f"{shared['processes']} x {trainer.strategy.root_device.type} on {shared['machines']} machine(s), "
        f"micro-batches of {shared['micro_batch_size']} samples on each, {shared['accumulate_grad_batches']} of them "
        f"accumulated for the global batch of {data.batch_size}",
        "memory per device": memory,
        "training": f"{data.samples_per_step / step_s:,.1f} {data.samples_are}/s with loading, "
        f"{data.samples_per_step / model_s:,.1f} {data.samples_are}/s the model's step alone "
        f"({clock.steps} steps of {step_s:.3g} s)",
        "bottleneck": f"{'loading' if waiting > 0.1 else 'computing'}: {100 * waiting:.0f} % of a step waits for data"
        + (f"; more data.num_workers (now {data.workers}) or faster storage help" if waiting > 0.1 else ""),
        "validation": f"{validation_s:.3g} s each, estimated from {trainer.limit_val_batches} of {batches} batches",
        "whole run": f"{hours:.3g} hours for {trainer.max_epochs} epochs of {data.steps_per_epoch} steps, "
        f"{validations} validations included (start, probe, checkpoints and the test split are not)",
        "largest micro-batch": _largest(micro_batch.fits),
        "seeds per row": _seeds(config.expected, hours),
    }
    print(f"preflight of {config.name}")
    for name, text in lines.items():
        print(f"  {name:21} {text}")


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        most, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"{most / 2**30:.2f} GiB allocated at most, of {total / 2**30:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return f"{peak / 2**20:.2f} GiB peak RSS of this process, libraries included"


def _largest(fits: tuple[int, int | None] | None) -> str:
    if fits is None:
        return "not measured: on a CPU memory is bounded by RAM"
    size, too_much = fits
    return f"{size}; {f'{too_much} did not fit' if too_much else 'more was not tried'}"


def _seeds(expected: DictConfig, hours: float) -> str:
    if expected.difference is None or expected.sd is None:
        return "unknown: the recipe expects no difference; give expected.difference and expected.sd"
    n, test = seeds_needed(expected.difference, expected.sd), f"two-sided t test, α {ALPHA}, power {POWER}"
    found = f"find a difference of {expected.difference:g} at a sd between seeds of {expected.sd:g}"
    return f"{n} to {found} ({test}): {n * hours:.3g} hours a row"
