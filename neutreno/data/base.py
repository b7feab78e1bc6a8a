"""What every data set shares: its splits, the global batch and how it is split across ranks and devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from neutreno.attention import needs_others
from neutreno.config.options import EXECUTION, FREE, Seed, checked
from neutreno.data.fingerprint import fingerprint, sampled
from neutreno.data.loading import (
    AugmentedDataset,
    CorruptLog,
    CorruptSample,
    ResumableLoader,
    TrainBatchSampler,
    collate_readable,
)
from neutreno.errors import InputError, Together
from neutreno.runs import other_splits

MOST_WORKERS = 8  # more of them seldom load faster, and each takes memory
TRIED = 1000  # samples of a split, until one can be read


def check_root(root: str | Path | None, reader: str = "hfds/…") -> Path:
    """The folder of the data; a message names ``reader`` as what may be given instead.

    Raises:
        InputError: ``data.root`` is not set, or is not a folder.
    """
    if root is None:
        said = "data.root is not set: give the folder of the data, data.root=FOLDER"
        raise InputError(f"{said}, or data.reader={reader}")
    if not Path(root).is_dir():
        raise InputError(f"data.root={root} is not a folder; give the folder of the data set")
    return Path(root)


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names):,})" if len(names) > most else "")


class SplitData(LightningDataModule):
    """Splits of samples and how they are batched. Subclasses say what the splits and transforms are.

    Args:
        batch_size: global, i.e. what the optimizer sees in one step over all processes and accumulated micro-batches.
        eval_batch_size: per process.
        micro_batch_size: largest number of samples per forward pass on a device; the rest of its share of the batch is
            accumulated. None: the whole share at once. "auto": as many as fit into a GPU's memory, on a CPU the
            whole share.
        num_workers: loading processes per training process; 0 loads in the training process. "auto": one less than it
            has cores, at least one and at most :data:`MOST_WORKERS`.
        seed: of the order and the augmentation.
        repeats: of repeated augmentation; 1 switches it off.
        max_corrupt: a run skips, notes and counts corrupt samples up to this share of the training and validation
            set, then stops.

    ``corrupt`` is where they are noted (see :meth:`note_corrupt`); until it is set, the first one is an error.
    ``notes`` are lines for the terminal: what the data set chose, or left out, by itself.
    """

    samples_are = "samples"
    collate_eval = staticmethod(collate_readable)

    image_shape: tuple[int, int, int] | None = None  # (C, H, W) of what a model of images sees
    drop_last = True  # whether an epoch ends with its last whole batch

    @checked
    def __init__(
        self,
        batch_size: Annotated[int, Ge(1), Le(10**7)] = 128,
        eval_batch_size: Annotated[Annotated[int, Ge(1), Le(10**7)], EXECUTION] = 256,
        num_workers: Annotated[Annotated[int, Ge(0), Le(4096)] | Literal["auto"], EXECUTION] = 0,
        seed: Seed = 0,
        repeats: Annotated[int, Ge(1), Le(1000)] = 1,
        max_corrupt: Annotated[Annotated[float, Ge(0), Le(0.5)], FREE] = 0.001,
        micro_batch_size: Annotated[Annotated[int, Ge(1), Le(10**7)] | Literal["auto"] | None, EXECUTION] = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.micro_batch_size = batch_size, eval_batch_size, micro_batch_size
        self.num_workers, self.seed, self.repeats, self.max_corrupt = num_workers, seed, repeats, max_corrupt
        self.splits: dict[str, Sequence | None] = {}
        self.corrupt: CorruptLog | None = None
        self.notes: list[str] = []
        self.held_out = False  # whether the validation samples were drawn from the training ones
        self.trains = True
        self.needs_others = ""  # what the model takes from other samples of a batch; see check_batches

    @classmethod
    def bound(cls, trainer: DictConfig, data: DictConfig) -> None:
        """Check what bounds a run on this data, which is epochs; a data set that counts steps sets ``max_epochs``.

        Raises:
            InputError: it is not bounded so.
        """
        if trainer.max_steps != -1:
            raise InputError(f"trainer.max_steps={trainer.max_steps}: epochs bound this run; set trainer.max_epochs")
        if trainer.max_epochs is None:
            raise InputError("trainer.max_epochs has no value: epochs bound this run; give one, trainer.max_epochs=…")

    def note_corrupt(self, path: str | Path) -> None:
        """From now on skip corrupt samples and name them in the file ``path``, up to ``max_corrupt`` of all."""
        samples = sum(len(self.splits[name]) for name in ("train", "val") if self.splits[name] is not None)
        self.corrupt = CorruptLog(path, int(self.max_corrupt * samples))

    def read(self) -> dict[str, Sequence | None]:
        """``{"train": …, "val": …, "test": … or None}``, each a sequence of samples.

        Where ``self.trains`` is False, there may be no training split.
        """
        raise NotImplementedError

    def check_read(self) -> None:
        """Refuse settings that do not fit what was read; told together with all else that does not fit it."""

    def train_transform(self) -> Callable:
        """What makes a sample of the model's input, called with the sample's parts."""
        raise NotImplementedError

    def eval_transform(self) -> Callable:
        raise NotImplementedError

    def probe_transform(self) -> Callable:
        """What makes a sample of the probe's: all of one size."""
        return self.eval_transform()

    def setup(self, stage: str | None = None) -> None:
        if self.splits:
            return
        self.trains, self.notes = stage != "validate", []
        splits, together = self.read(), Together()
        with together:
            self.check_read()
        with together:
            if self.trains and self.batch_size > (samples := len(splits["train"])):
                said = f"data.batch_size={self.batch_size} is larger than the training set of {samples}"
                raise InputError(f"{said}; type data.batch_size={2 ** (samples.bit_length() - 1)}, or less")
        with together:  # what is wrong with them is said early
            self.eval_transform()
            if self.trains:
                self.train_transform()
        together.refuse()
        self.splits = splits
        if self.trains and not self.has_test:
            self.notes.append("no test split: the figures at the end are the validation split's, which chooses best/…")

    @property
    def workers(self) -> int:
        """``num_workers`` as a number."""
        if self.num_workers != "auto":
            return self.num_workers
        return min(MOST_WORKERS, suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1))

    def accumulated_batches(self, world: int, micro_batches: int = 1, fits: int | None = None) -> int:
        """Number of micro-batches into which each of ``world`` ranks splits its share of the global batch:
        ``micro_batches`` if more than one, else the fewest equal ones of at most ``micro_batch_size`` samples (``fits``
        where that is "auto").

        Raises:
            InputError: the batch cannot be split so, ``micro_batches`` leaves larger ones, or what is left is too few.
        """
        found = self._micro_batches(world, micro_batches, fits)
        if self.batch_size // (world * found) < self.least_at_once:
            parts = f"{world} processes x {found} accumulated micro-batches"
            alone = f"data.batch_size={self.batch_size} in {parts} is one at a time"
            raise InputError(f"{alone}, but {self.needs_others}; raise it, or data.micro_batch_size")
        return found

    def _micro_batches(self, world: int, micro_batches: int, fits: int | None) -> int:
        micro_batch_size = fits if self.micro_batch_size == "auto" else self.micro_batch_size
        share, rest = divmod(self.batch_size, world * micro_batches)
        if rest:
            parts = f"{world} processes x {micro_batches} accumulated micro-batches"
            raise InputError(f"data.batch_size={self.batch_size} is not a multiple of {parts}")
        if micro_batch_size is None or share <= micro_batch_size:
            return micro_batches
        if micro_batches > 1:
            raise InputError(
                f"trainer.accumulate_grad_batches={micro_batches} leaves micro-batches of {share} samples, "
                f"data.micro_batch_size={micro_batch_size} is smaller; set only one of them"
            )
        fitting = [n for n in range(2, share + 1) if share % n == 0 and share // n <= micro_batch_size]
        return next((n for n in fitting if share // n % 2 == 0), fitting[0])  # mixup needs even batches

    @property
    def has_test(self) -> bool:
        """Whether there is a test split apart from the validation split (ImageNet's labels end with the latter)."""
        return self.splits.get("test") is not None

    def model_arguments(self) -> dict[str, Any]:
        """What the data alone can tell the model's constructor."""
        return {}

    def portable_arguments(self) -> dict[str, int | Tensor]:
        """The same as numbers and tensors, which make the same model where the data is not."""
        return self.model_arguments()

    def input_facts(self) -> dict[str, Any]:
        """What who uses the model without this data has to know of its input, as plain data."""
        return {}

    def check_model(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        """Refuse a model whose ``settings`` were made for other data."""

    def check_batches(self, model: nn.Module) -> None:
        """Meet what the model asks of a batch; of those to train on :meth:`accumulated_batches` judges.

        Raises:
            InputError: it takes something from other samples, and is evaluated on one at a time.
        """
        self.needs_others = needs_others(model)
        if self.eval_batch_size < self.least_at_once:
            raise InputError(f"data.eval_batch_size={self.eval_batch_size}, but {self.needs_others}; raise it")

    @property
    def least_at_once(self) -> int:
        """Samples that the model must be given together."""
        return 2 if self.needs_others else 1

    def check_readable(self) -> None:
        """Refuse a split of which nothing can be read: then there is no run to begin. It reads a sample of each.

        Raises:
            InputError: names the split and the first of its samples.
        """
        for name in ("train", "val"):
            first, tried = None, sampled(len(self.splits[name]), TRIED)
            for index in tried:
                try:
                    self.splits[name][int(index)]
                    break
                except CorruptSample as error:
                    first = first or error
            else:
                few = "" if len(tried) == len(self.splits[name]) else f" {TRIED:,} that were tried of the"
                raise InputError(f"none of the{few} {name} split's {self.samples_are} can be read, the first: {first}")

    def check_limits(self, trainer: Trainer) -> None:
        """
        Raises:
            InputError: the share of the batches that ``trainer`` is limited to is less than one batch.
        """
        there = {s: self.eval_batches(trainer.world_size, s) for s in ("val", "test") if self.splits.get(s) is not None}
        if self.trains:
            there["train"] = self.whole_epoch * trainer.accumulate_grad_batches
        for name, batches in there.items():
            limit = getattr(trainer, f"limit_{name}_batches")
            if isinstance(limit, float) and limit * batches < 1:
                key = f"trainer.limit_{name}_batches={limit:g}"
                key += " (by overfit_batches)" if trainer.overfit_batches else ""
                raise InputError(f"{key} is less than one of {batches} batches; raise it, or give a number of batches")
        interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
        if not self.trains or not isinstance(interval, int) or every is None:
            return
        limit = trainer.limit_train_batches
        most = min(limit, there["train"]) if isinstance(limit, int) else int(limit * there["train"])
        if interval > most:
            said = f"trainer.val_check_interval={interval}, but an epoch has {most} batches"
            raise InputError(f"{said}; lower it, or set trainer.check_val_every_n_epoch=null")

    @property
    def label_names(self) -> list[str] | None:
        """What the labels are called, by number, where they have names."""
        return None

    def record(self) -> dict[str, Any]:
        """What a run's record says of the data beside its settings."""
        named = {} if self.label_names is None else {"classes": self.label_names}
        return {"digests": self.digests, "data_notes": self.notes, **named}

    def check_against(self, record: dict[str, Any]) -> None:
        """Compare with the data of a run, by its record: what differs is noted, where it is no mistake for sure.

        Raises:
            InputError: samples to validate on may have been trained on; or some classes are the run's, others not.
        """
        now = {name: digest for name, digest in self.digests.items() if name in record.get("digests", {})}
        if said := other_splits({name: record["digests"][name] for name in now}, now):
            if self.held_out:
                drawn = "its validation samples are drawn from the training ones, so some may have been trained on"
                raise InputError(f"this is not the data that the run had: {said}, and {drawn}; give that data")
            self.notes.append(f"this is not the data that the run had: {said}")
        before, names = record.get("classes"), self.label_names
        if before is None or names is None or before == names:
            return
        said = f"the run's classes are {listed(before)}, those here {listed(names)}"
        if {*before} & {*names}:
            raise InputError(f"{said}: labels would be taken for others; give data with the run's classes")
        self.notes.append(f"{said}; labels are compared by their numbers")

    @cached_property
    def digests(self) -> dict[str, str]:
        """The fingerprint of each split that has one."""
        found = {name: fingerprint(split) for name, split in self.splits.items() if split is not None}
        return {name: digest for name, digest in found.items() if digest is not None}

    def baselines(self) -> dict[str, float]:
        """Metrics of no model at all, to read a model's by."""
        return {}

    def count(self, split: str) -> int:
        """How large a split is, in units of ``samples_are``."""
        return len(self.splits[split])

    @property
    def samples_per_step(self) -> int:
        """In units of ``samples_are``."""
        return self.batch_size

    def eval_batches(self, world: int, split: str = "val") -> int:
        """Batches of a split that is evaluated, of each of ``world`` processes."""
        return -(-len(self.splits[split]) // (world * self.eval_batch_size))

    @property
    def whole_epoch(self) -> int:
        """Optimizer steps in one epoch, where the trainer sets no limit."""
        whole, left = divmod(len(self.splits["train"]), self.batch_size)
        return whole + bool(left and not self.drop_last)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        limit = self.trainer.limit_train_batches if self.trainer else None
        if limit is None:
            return self.whole_epoch
        if isinstance(limit, float):
            return max(1, int(self.whole_epoch * limit))
        return max(1, min(self.whole_epoch, limit // self.trainer.accumulate_grad_batches))

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.trainer.max_epochs * self.steps_per_epoch

    @property
    def _share(self) -> dict[str, int]:
        """Which part of a batch or a split is this process's."""
        return {"world": self.trainer.world_size, "rank": self.trainer.global_rank}

    def _dataset(self, split: str, transform: Callable) -> AugmentedDataset:
        return AugmentedDataset(self.splits[split], transform, self.corrupt)

    def _train_sampler(self) -> TrainBatchSampler:
        how = {"micro_batches": self.trainer.accumulate_grad_batches, "repeats": self.repeats, **self._share}
        how |= {"drop_last": self.drop_last, "least_at_once": self.least_at_once}
        return TrainBatchSampler(len(self.splits["train"]), self.batch_size, self.seed, **how)

    def train_dataloader(self) -> DataLoader:
        data = self._dataset("train", self.train_transform())
        return ResumableLoader(data, batch_sampler=self._train_sampler(), **self._loading())

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def probe_samples(self, num_samples: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Inputs (n, …) and labels (n, …) spread evenly over the validation set, the same for every run and seed."""
        data = self._dataset("val", self.probe_transform())
        indices = np.linspace(0, len(data) - 1, min(num_samples, len(data))).round().astype(int)
        batch = collate_readable([data[int(i)] for i in indices])
        if not batch:
            raise InputError("none of the samples that the probe measures could be read; see which are corrupt")
        return batch[0], batch[1] if len(batch) > 1 else None

    def _eval_loader(self, split: str) -> DataLoader:
        data, world = self._dataset(split, self.eval_transform()), self.trainer.world_size
        if len(data) < world:
            raise InputError(f"{len(data)} samples of the {split} split for {world} processes; use fewer")
        sampler = UnrepeatedDistributedSampler(data, world, self.trainer.global_rank, shuffle=False)  # none twice
        return DataLoader(data, self.eval_batch_size, sampler=sampler, collate_fn=self.collate_eval, **self._loading())

    def _loading(self) -> dict:
        workers = {"num_workers": self.workers, "persistent_workers": self.workers > 0}
        return {**workers, "pin_memory": torch.cuda.is_available()}
