"""What every task shares: optimizer, schedule, EMA of the weights, and what is logged while training."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler, TanhLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.utilities.distributed import gather_all_tensors

from neutreno.config.building import locate
from neutreno.config.options import SUPPLIED, Count, Decay, NonNegative, checked
from neutreno.errors import InputError
from neutreno.parallel import ShardedStrategy, shard
from neutreno.reports.evaluation import metric_title, metric_value
from neutreno.reports.layers import logged_name


def _constant(optimizer: Optimizer, t_initial: int, lr_min: float, **warmup: Any) -> StepLRScheduler:
    return StepLRScheduler(optimizer, decay_t=t_initial, decay_rate=1.0, **warmup)


SCHEDULES = {
    "cosine": CosineLRScheduler,
    "linear": partial(PolyLRScheduler, power=1.0),
    "poly": partial(PolyLRScheduler, power=0.9),
    "tanh": TanhLRScheduler,
    "constant": _constant,
}

OWN_ARGUMENTS = ("opt", "lr", "weight_decay", "layer_decay")
IMPLEMENTATIONS = {"fused", "foreach", "differentiable"}  # torch's, of which an optimizer has one


class Task(LightningModule):
    """Trains ``model``. A subclass gives ``loss(batch)`` and keeps ``self.metrics = self.per_network(…)``; it updates
    one of them in ``_update(metric, network, batch)``, and names its figures in ``_figures(value)``. Where these do not
    fit, it overrides ``_evaluate(split, batch)`` and ``_report(split)``, which hands all figures to :meth:`report`.

    ``main_metric`` chooses the best epoch, the one where it is largest (``main_metric_mode`` "max") or smallest.

    Args:
        model: the network.
        opt, lr, weight_decay, opt_args: timm's optimizer by name; norms, biases, position embedding and class token
            are not decayed. ``lr`` is the peak. torch's own are its fused ones, where it has them and they can be.
        layer_decay: the learning rate falls by this factor from each layer to the one before (Clark et al., "ELECTRA",
            2020; BEiT), for models that tell timm their layers; None: one rate for all.
        lr_batch, batch_size: if given, ``lr`` is meant for a global batch of ``lr_batch`` samples and grows in
            proportion to the global ``batch_size`` (Goyal et al., 2017; DeiT).
        schedule, warmup_epochs, warmup_lr, min_lr, lr_per: timm's schedule, ``cosine``, ``linear``, ``poly`` (of power
            0.9), ``tanh`` or ``constant`` (without ``min_lr``), with linear warm-up, moved on per ``step`` or per
            ``epoch`` (DeiT's way: there epochs 0 and 1 both run at ``warmup_lr``).
        warmup_steps: instead of ``warmup_epochs``, with ``lr_per=step``.
        ema_decay: keep EMA of the weights, updated each step, evaluated in addition to the raw weights; None: off.
    """

    main_metric: str
    main_metric_mode = "max"
    throughput = "train/samples_per_s"

    evaluators: tuple[str, ...] = ("metrics", "per_layer")  # of evaluate.py, by name; your own by its class path
    percent: tuple[str, ...] = ()  # how the names of those metrics end that are given in percent
    titles: ClassVar[dict[str, str]] = {}  # what people call its metrics, by how their names end; others by their names

    pipeline_tag: str | None = None  # what the Hugging Face hub calls such a task
    writer: str | None = None  # path of a function that writes what left() gives: (left, folder, prefix) -> files
    accepts: str | None = None  # what a model's ``output`` has to be, where it says one; None: anything
    keeps_best = False  # whether it keeps the best weights itself, among its ``networks``
    protocol = ""  # how a split is evaluated, where there are several ways; stands in its metrics' names

    @checked
    def __init__(
        self,
        model: Annotated[nn.Module, SUPPLIED],
        opt: str = "adamw",
        lr: NonNegative = 1e-3,
        weight_decay: NonNegative = 0.05,
        opt_args: dict[str, Any] | None = None,
        schedule: Literal[*SCHEDULES] = "cosine",
        warmup_epochs: Annotated[float, Ge(0), Le(10**6)] = 5,
        warmup_lr: NonNegative = 1e-6,
        min_lr: NonNegative = 1e-5,
        lr_per: Literal["step", "epoch"] = "step",
        ema_decay: Decay | None = None,
        lr_batch: Count | None = None,
        batch_size: Count | None = None,
        warmup_steps: Annotated[int, Ge(0), Le(10**9)] | None = None,
        layer_decay: Annotated[float, Gt(0), Le(1)] | None = None,
    ) -> None:
        super().__init__()
        self.variants: dict[str, Any] | None = None  # the axes that are trained, from who composed them
        self.run: dict[str, Any] | None = None  # what checkpoints say of their run, see runs.check_origin
        given = getattr(model, "output", None)
        if isinstance(given, str) and self.accepts not in (None, given):
            raise InputError(
                f"this task takes a model of {self.accepts}, and {type(model).__name__} gives {given}; leave model=… "
                "out, and the data set chooses one that fits"
            )
        if min_lr > lr and schedule != "constant":
            raise InputError(f"task.min_lr={min_lr:g} is above task.lr={lr:g}; lower it, or raise task.lr")
        if lr_batch is not None:
            if batch_size is None:
                raise InputError(f"task.lr_batch={lr_batch} needs task.batch_size, the global one")
            lr = lr * batch_size / lr_batch
        if warmup_steps is not None and lr_per == "epoch":
            raise InputError(f"task.warmup_steps={warmup_steps} needs task.lr_per=step; or set task.warmup_epochs")
        self.model = model
        self.opt = {"opt": opt, "lr": lr, "weight_decay": weight_decay, **(opt_args or {})}
        if own := [key for key in OWN_ARGUMENTS if key in (opt_args or {})]:
            raise InputError(f"task.opt_args.{own[0]} is a setting of its own: task.{own[0]}=…")
        try:  # on one parameter, so that a wrong name is found before a run begins
            tried = create_optimizer_v2([nn.Parameter(torch.zeros(1))], **self.opt)
        except Exception as error:  # each optimizer judges its arguments in its own way
            raise InputError(f"task.opt={opt} with task.opt_args={opt_args}: {error}") from error
        if getattr(tried, "is_second_order", False):
            raise InputError(f"task.opt={opt} needs second derivatives, which training here does not compute")
        if layer_decay is not None and not hasattr(model, "group_matcher"):
            said = f"task.layer_decay={layer_decay:g}: {type(model).__name__} does not say which weights make a layer"
            raise InputError(f"{said} (group_matcher); leave it out")
        self.layer_decay = layer_decay
        self.schedule, self.lr_per, self.min_lr = schedule, lr_per, min_lr
        self.warmup_epochs, self.warmup_steps, self.warmup_lr = warmup_epochs, warmup_steps, warmup_lr
        self.ema = None if ema_decay is None else ModelEmaV3(model, decay=ema_decay).requires_grad_(False)
        self.train_loss = MeanMetric(nan_strategy="disable")

    @classmethod
    def shown(cls, name: str, value: float) -> tuple[str, str]:
        """A metric as a person reads it: its title, and its value with the unit."""
        return metric_title(name, cls.titles), metric_value(value, name.endswith(cls.percent))

    @classmethod
    def judged_by(cls, has_test: bool) -> dict[str, str]:
        """The metrics that runs are compared by, the test split's first where there is one, and their titles."""
        names = [cls.main_metric.replace("val/", "test/", 1)] * has_test + [cls.main_metric]
        return {name: metric_title(name, cls.titles) for name in names}

    def loss(self, batch) -> Tensor:
        raise NotImplementedError

    def check_classes(self, num_classes: int | None) -> int:
        """``num_classes``, or the model's where that is None.

        Raises:
            InputError: the model says that it has another number of classes, or none where it is asked.
        """
        made_for = getattr(self.model, "num_classes", num_classes)
        if made_for is None:
            raise InputError("task.num_classes is not set, and the model does not say it; set task.num_classes=…")
        if num_classes not in (None, made_for):
            said = f"task.num_classes={num_classes}, but the model has {made_for} classes"
            raise InputError(f"{said}; leave task.num_classes and model.num_classes out, and both are the data's")
        return made_for

    def samples_in(self, batch) -> int:
        """What ``throughput`` counts."""
        return len(batch[0])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.variants is not None:
            checkpoint["variants"] = self.variants
        if self.run is not None:
            checkpoint["run"] = self.run
        sums = torch.stack([self.train_loss.mean_value, self.train_loss.weight])  # of an epoch that is not over yet
        by_rank = gather_all_tensors(sums) if self.trainer.world_size > 1 else [sums]
        checkpoint["train_loss"] = torch.stack(by_rank).tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        by_rank, ranks = checkpoint["train_loss"], self.trainer.world_size
        if len(by_rank) != ranks:  # the same mean, and the weight of as many steps
            by_rank = [[sum(parts) / len(parts) for parts in zip(*by_rank, strict=True)]] * ranks
        for name, value in zip(("mean_value", "weight"), by_rank[self.trainer.global_rank], strict=True):
            getattr(self.train_loss, name).fill_(value)

    def check_checkpoint(self, checkpoint: dict, data: LightningDataModule, path: str | Path) -> None:
        """Refuse a checkpoint whose weights would fit, but mean something else with this data."""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are evaluated, by the prefix of their metrics: raw weights, and their average if kept."""
        return {"": self.model} | ({"ema/": self.ema.module} if self.ema is not None else {})

    @property
    def measured(self) -> nn.Module:
        """The network whose layers are measured; by default the last epoch's, whose metrics are the result."""
        return self.model

    def per_network(self, new_metric: Callable[[], nn.Module]) -> nn.ModuleDict:
        """A metric for every split and network (``raw`` or ``ema/``), so that none ever sees another's samples."""
        names = [name or "raw" for name in self.networks]
        return nn.ModuleDict({s: nn.ModuleDict({n: new_metric() for n in names}) for s in ("val_", "test_")})

    def _update(self, metric: nn.Module, network: nn.Module, batch) -> None:
        raise NotImplementedError

    def _figures(self, value: Any) -> dict[str, float]:
        """By name, what is reported of ``value``, which a metric has computed."""
        raise NotImplementedError

    def _evaluate(self, split: str, batch) -> None:
        if isinstance(batch, list) and not batch:  # no sample of it could be read
            return
        for name, network in self.networks.items():
            self._update(self.metrics[split][name or "raw"], network, batch)

    def _report(self, split: str) -> None:
        where, found = split.removesuffix("_") + self.protocol, {}
        for name in self.networks:
            metric = self.metrics[split][name or "raw"]
            found |= {f"{name}{where}/{key}": value for key, value in self._figures(metric.compute()).items()}
            metric.reset()
        self.report(found)

    def validation_step(self, batch, batch_idx: int) -> None:
        self._evaluate("val_", batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val_")

    def test_step(self, batch, batch_idx: int) -> None:
        self._evaluate("test_", batch)

    def on_test_epoch_end(self) -> None:
        self._report("test_")

    def log_now(self, metrics: dict[str, float]) -> None:
        """Hand metrics to all loggers at once, at the number of optimizer steps done.

        Not ``self.log``: it writes epoch-end values only after the checkpoint, so a run killed in between would miss
        them, and costs a millisecond per step.
        """
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step=self.global_step)

    def log_layers(self, rows: list[dict[str, Any]]) -> None:
        """Hand rows of layer-wise metrics to all loggers, to those without ``log_layers`` value by value."""
        values = {logged_name(row, rows[0]["stack"]): row["mean"] for row in rows if row["mean"] is not None}
        for logger in self.loggers:
            if hasattr(logger, "log_layers"):
                logger.log_layers(rows, self.global_step)
            else:
                logger.log_metrics({"epoch": self.current_epoch, **values}, step=self.global_step)

    def report(self, metrics: dict[str, float]) -> None:
        """Hand the metrics of an evaluation to the trainer, and while training to all loggers."""
        self.log_dict({k: torch.tensor(v, dtype=torch.float64) for k, v in metrics.items()}, logger=False)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_now(metrics)

    def left(self) -> Any:
        """What the last evaluation leaves to look at beside its metrics, plain data for ``writer``; None: nothing."""

    def write_left(self, folder: Path, prefix: str = "") -> list[Path]:
        """The files, named ``prefix…``, of what the last evaluation leaves to look at."""
        left = self.left() if self.writer is not None else None
        return [] if left is None else locate(self.writer)(left, folder, prefix)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self)

    def spans(self, epochs: int, data: LightningDataModule) -> tuple[int, int]:
        """Length of a run and of its warm-up, in what ``lr_per`` counts."""
        per_epoch = data.steps_per_epoch if self.lr_per == "step" else 1
        warmup = round(self.warmup_epochs * per_epoch) if self.warmup_steps is None else self.warmup_steps
        return epochs * per_epoch, warmup

    def _fused(self) -> dict[str, bool]:
        """torch's fused optimizers save a small network a tenth of its step. Lightning does not clip in half precision
        with them."""
        kind = get_optimizer_class(self.opt["opt"].lower().removeprefix("lookahead_"), bind_defaults=False)
        has = kind.__module__.startswith("torch.optim") and "fused" in inspect.signature(kind).parameters
        mixed = self.trainer.precision.endswith("-mixed") and self.trainer.gradient_clip_val
        return {"fused": True} if has and not mixed and not self.opt.keys() & IMPLEMENTATIONS else {}

    def configure_optimizers(self) -> dict:
        optimizer = create_optimizer_v2(self.model, **self.opt, layer_decay=self.layer_decay, **self._fused())
        run, warmup = self.spans(self.trainer.max_epochs, self.trainer.datamodule)
        schedule = SCHEDULES[self.schedule](
            optimizer,
            t_initial=run,
            lr_min=self.min_lr,
            warmup_t=warmup,
            warmup_lr_init=self.warmup_lr,
            t_in_epochs=self.lr_per == "epoch",
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.lr_per}}

    def lr_scheduler_step(self, scheduler: Scheduler, metric) -> None:
        if self.lr_per == "step":
            scheduler.step_update(self.global_step)
        else:
            scheduler.step(self.current_epoch)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.train_loss.update(loss.detach())
        if self.global_step % self.trainer.log_every_n_steps == 0:
            peak = max(group["lr"] for group in self.optimizers().param_groups)
            self.log_now({"train/loss_step": loss.item(), "train/lr": peak})
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:  # here, before any callback saves a checkpoint of this step
            self.ema.update(self.model)

    def _start_clock(self) -> None:
        self._samples, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def on_train_start(self) -> None:  # a run that resumes within an epoch does not see that epoch's start
        self._start_clock()

    def on_train_epoch_start(self) -> None:
        self.train_loss.reset()
        self._start_clock()

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._samples += self.samples_in(batch) * self.trainer.world_size

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What is done within it does not count as training in the throughput."""
        begun = time.perf_counter()
        yield
        self._since += time.perf_counter() - begun

    def on_validation_end(self) -> None:
        self._since = time.perf_counter()  # throughput is that of training alone

    def on_train_epoch_end(self) -> None:
        if self._samples:  # none when a run resumes at an epoch's end
            loss, rate = self.train_loss.compute().item(), self._samples / max(self._seconds, 1e-9)
            self.log_now({"train/loss": loss, self.throughput: rate})
