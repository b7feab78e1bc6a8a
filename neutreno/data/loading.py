"""Data loading whose randomness is stateless, so that a resumed run sees what an uninterrupted one would have seen.

The order of an epoch is a function of (seed, epoch); the augmentation of a sample of (seed, epoch, its position in that
order). Nothing random needs saving, and the number of workers or processes changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def derive_seed(*parts: int) -> int:
    """A well-mixed 64-bit seed from non-negative integers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (every device) in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class AugmentedDataset(Dataset):
    """Applies ``transform`` under a random state given with the index: ``dataset[index, sample_seed]``."""

    def __init__(self, samples: Sequence, transform: Callable) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]):
        if isinstance(key, tuple):
            key, seed = key
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
        image, label = self.samples[key]
        return self.transform(image), label


class TrainBatchSampler(Sampler):
    """Batches of (index, sample seed) for one process, out of an order that all processes share.

    The global batch is what the optimizer sees in one step. It is cut into ``parts`` (gradient accumulation) and each
    part into one piece per process, so the same global batches are formed on any number of processes. An incomplete
    last global batch is dropped.
    """

    def __init__(self, samples: int, global_batch: int, seed: int, parts: int = 1, world: int = 1, rank: int = 0):
        self.samples, self.seed, self.rank, self.world = samples, seed, rank, world
        self.per_step = global_batch // parts
        self.batches = samples // global_batch * parts
        self.epoch = self.start = 0
        self.sampler = self  # Lightning sets the epoch of a batch sampler's sampler, not of the batch sampler

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.samples, generator=generator).tolist()
        piece = self.per_step // self.world
        for batch in range(self.start, self.batches):
            first = batch * self.per_step + self.rank * piece
            yield [(order[p], derive_seed(self.seed, self.epoch, p)) for p in range(first, first + piece)]


class ResumableLoader(DataLoader):
    """A loader that starts where a checkpoint was taken, through Lightning's interface for stateful loaders."""

    given = 0
    _resume_at = 0

    def __iter__(self):
        # A generator on purpose: on resume Lightning asks for the iterator before it sets the epoch, and workers
        # that started then would load the wrong one.
        self.given = self.batch_sampler.start = self._resume_at
        self._resume_at = 0
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume_at = state["given"]


class ShareSampler(Sampler):
    """Every ``world``-th sample: evaluation on several processes with no sample counted twice."""

    def __init__(self, samples: int, world: int, rank: int) -> None:
        self.indices = range(rank, samples, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
