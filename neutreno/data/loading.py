"""Data loading whose randomness is stateless, so that a resumed run sees what an uninterrupted one would have seen.

The order of an epoch is a function of (seed, epoch); the augmentation of a sample of (seed, epoch, its position in that
order). Nothing random needs saving, and the number of workers or processes changes nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from neutreno.errors import InputError, one_line


def derive_seed(*parts: int) -> int:
    """A well-mixed 64-bit seed from non-negative integers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def seed_cpu(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on the CPU in this process: all that a transform draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """The same, and PyTorch on every device. Unlike Lightning's function of this name it takes 64 bits."""
    seed_cpu(seed)
    if _has_accelerator():  # without one, torch.manual_seed notes where it was called from, for each kind of device
        torch.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


class CorruptSample(InputError):
    """One file of a data set cannot be read; a long run goes on without it."""


class CorruptLog:
    """Names the corrupt samples that any process of a run met, a line each, in one file beside the run.

    A file, because loading workers have no other way to tell, and because the count must survive a kill.

    Args:
        path: the file; made when the first sample is noted.
        limit: so many corrupt samples are skipped; one more ends the run.
    """

    def __init__(self, path: str | Path, limit: int) -> None:
        self.path, self.limit = Path(path), limit
        self._noted: set[str] = set()

    def note(self, what: str) -> None:
        """
        Raises:
            InputError: more than ``limit`` samples are corrupt.
        """
        what = one_line(what)  # a line in UTF-8, whatever a file's name holds
        if what not in self._noted:
            self._noted.add(what)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{what}\n")
            if len(found := self.read()) > self.limit:
                raise InputError(
                    f"more than {self.limit} corrupt images (data.max_corrupt), the first: {found[0]}; "
                    f"all are listed in {self.path}"
                )

    def read(self) -> list[str]:
        """What was met, each once, by all processes."""
        return sorted(set(self.path.read_text(encoding="utf-8").splitlines())) if self.path.exists() else []


class AugmentedDataset(Dataset):
    """Applies ``transform`` to a sample's parts, in a random state given with the index: ``dataset[index, seed]``.

    A corrupt sample is noted in ``corrupt``. In training another one, drawn with the same seed, takes its place; in
    evaluation it is None, which :func:`collate_readable` leaves out. Without ``corrupt`` its error is raised.
    """

    def __init__(self, samples: Sequence, transform: Callable, corrupt: CorruptLog | None = None) -> None:
        self.samples, self.transform, self.corrupt = samples, transform, corrupt

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]):
        sample = self._ready(key)
        return None if sample is None else self.transform(*sample)

    def __getitems__(self, keys: list) -> list:
        """A batch, as PyTorch's loader asks for it. A transform with ``draw`` and ``many`` draws for each sample in its
        own random state, as it would alone, and then transforms all in one."""
        if not hasattr(self.transform, "many"):
            return [self[key] for key in keys]
        drawn = [(sample, self.transform.draw(*sample)) for key in keys if (sample := self._ready(key)) is not None]
        return self.transform.many(*zip(*drawn, strict=True)) if drawn else []

    def _ready(self, key: int | tuple[int, int]):
        """The sample, and the random state in which it is transformed."""
        if not isinstance(key, tuple):
            return self._read(key)
        index, seed = key
        sample = self._read(index)
        if sample is None:
            draw = np.random.default_rng(seed)
            while sample is None:
                sample = self._read(int(draw.integers(len(self))))
        seed_cpu(seed)
        return sample

    def _read(self, index: int):
        try:
            return self.samples[index]
        except CorruptSample as error:
            if self.corrupt is None:
                raise
            self.corrupt.note(str(error))
            return None


class OnImage:
    """A transform of the image alone, as one of a sample: (image, label) → (``transform(image)``, label)."""

    def __init__(self, transform: Callable) -> None:
        self.transform = transform

    def __call__(self, image, label: int):
        return self.transform(image), label


class OnImages(OnImage):
    """The same of a transform that has ``draw(image)`` and ``many(images, draws)``, images of one size (B, C, S, S)."""

    def draw(self, image: torch.Tensor, label: int):
        return self.transform.draw(image)

    def many(self, samples: Sequence[tuple[torch.Tensor, int]], draws: Sequence) -> list:
        images, labels = zip(*samples, strict=True)
        return [*zip(self.transform.many(torch.stack(images), draws), labels, strict=True)]


def collate_readable(samples: list):
    """A batch of the samples that could be read; of none, an empty list."""
    readable = [s for s in samples if s is not None]
    return default_collate(readable) if readable else []


class TrainBatchSampler(Sampler):
    """Batches of (index, sample seed) for one process, out of an order that all processes share.

    The global batch is what the optimizer sees in one step. It is split into ``micro_batches`` (gradient
    accumulation), and each of them across the ranks in turn, so the same global batches are formed on any number of
    processes. An incomplete last global batch is dropped; with ``drop_last=False`` it is a step of its own, filled from
    the order's beginning, as PyTorch's ``DistributedSampler`` does, until every process and micro-batch has as many
    samples and at least ``least_at_once``: one process without accumulation gets what is left and no more.

    ``repeats`` > 1 is repeated augmentation (Hoffer et al., 2020; DeiT uses 3): every sample stands so many times in a
    row in the order, each time augmented anew, and the epoch ends after as many samples as without, so it sees only
    1 / repeats of them. As in DeiT's sampler the copies go to different processes.
    """

    def __init__(
        self,
        samples: int,
        global_batch: int,
        seed: int,
        micro_batches: int = 1,
        world: int = 1,
        rank: int = 0,
        repeats: int = 1,
        drop_last: bool = True,
        least_at_once: int = 1,
    ) -> None:
        self.samples, self.seed, self.rank, self.world, self.repeats = samples, seed, rank, world, repeats
        steps, left = divmod(samples, global_batch)
        kept = left > 0 and not drop_last
        share = max(-(-left // (micro_batches * world)), least_at_once)  # of what is left
        self.per_batch, self.per_last = global_batch // micro_batches, share * world
        self.whole, self.batches = steps * micro_batches, (steps + kept) * micro_batches
        self.epoch = self.start = 0
        self.sampler = self  # Lightning sets the epoch of a batch sampler's sampler, not of the batch sampler

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def order(self) -> torch.Tensor:
        """The epoch's samples, in the order that all processes share; those that fill its last batch stand behind."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        drawn = torch.randperm(self.samples, generator=generator)[: -(-self.samples // self.repeats)]
        order = drawn.repeat_interleave(self.repeats)[: self.samples]
        return torch.cat([order, order[: max(0, self._begin(self.batches) - self.samples)]])

    def positions(self, batch: int) -> slice:
        """Where in the order this process's share of a batch stands."""
        return slice(self._begin(batch) + self.rank, self._begin(batch + 1), self.world)

    def _begin(self, batch: int) -> int:
        whole = min(batch, self.whole)
        return whole * self.per_batch + (batch - whole) * self.per_last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order().tolist()
        places = range(len(order))
        for batch in range(self.start, self.batches):
            yield [(order[p], derive_seed(self.seed, self.epoch, p)) for p in places[self.positions(batch)]]


class Resumable:
    """Lightning's interface for loaders with a state: starts at the batch where a checkpoint was taken.

    ``batches_from(first)`` of a subclass gives an epoch's batches from there on. ``__iter__`` is a generator on
    purpose: on resume Lightning asks for the iterator before it sets the epoch, and what started then would load the
    wrong one.
    """

    given = 0  # batches of this epoch that the training loop has got
    epoch = 0
    _resume_at = 0

    def __iter__(self) -> Iterator:
        self.given, self._resume_at = self._resume_at, 0
        for batch in self.batches_from(self.given):
            self.given += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume_at = state["given"]


class ResumableLoader(Resumable, DataLoader):
    """PyTorch's loader over a :class:`TrainBatchSampler`."""

    def batches_from(self, first: int) -> Iterator:
        self.batch_sampler.start = first
        return DataLoader.__iter__(self)


class StreamLoader(Resumable):
    """Batches of one process out of a stream, as many as an epoch has.

    A run that resumes in mid-epoch takes the epoch's remaining number of batches from the stream's beginning: samples
    of the part before are repeated and others left out in that one epoch.
    """

    def __init__(self, stream: IterableDataset, batches: int, batch_size: int, **loading) -> None:
        self.stream, self.batches = stream, batches
        self._loader = DataLoader(stream, batch_size=batch_size, drop_last=True, **loading)
        self.sampler = self  # where Lightning sets the epoch

    def __len__(self) -> int:
        return self.batches

    def batches_from(self, first: int) -> Iterator:
        self.stream.epoch = self.epoch
        while first < self.batches:
            before = first
            for batch in itertools.islice(self._loader, self.batches - first):
                first += 1
                yield batch
            if first == before:
                raise InputError("the stream gives no full batch; lower data.batch_size or data.num_workers")
