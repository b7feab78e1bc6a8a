"""Small data sets that live on the training device as one tensor and are augmented there, batch by batch.

One process that decodes and augments image by image starves a GPU: a DeiT of a few million parameters trains on tens of
thousands of 32-pixel images per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from neutreno.data import loading


def load_images(
    samples: Sequence, device: torch.device, corrupt: loading.CorruptLog | None, num_workers: int, replace: bool
) -> tuple[Tensor, Tensor]:
    """All samples, images of one size, as uint8 (N, C, S, S) and their labels (N,), on ``device``.

    Another sample takes a corrupt one's place, always the same one, if ``replace`` (in training), else it is left out.
    """
    data = loading.AugmentedDataset(samples, loading.OnImage(v2.PILToTensor()), corrupt)
    keys = [(i, i) if replace else i for i in range(len(samples))]
    loader = DataLoader(data, 1000, sampler=keys, num_workers=num_workers, collate_fn=loading.collate_readable)
    batches = [batch for batch in loader if len(batch)]
    return torch.cat([x for x, _ in batches]).to(device), torch.cat([y for _, y in batches]).to(device)


def crop_and_flip(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad by zeros, crop at random, flip half of the images (N, C, S, S), each by its own draws (3, N) in [0, 1).

    By indexing, because torchvision's transforms draw once for a whole batch.
    """
    side = images.shape[-1]
    top, left = (draws[:2] * (2 * padding + 1)).long()
    rows = top[:, None] + torch.arange(side, device=images.device)
    columns = left[:, None] + torch.arange(side, device=images.device)
    columns = torch.where(draws[2, :, None] < 0.5, columns.flip(1), columns)
    padded = F.pad(images, [padding] * 4)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class DeviceLoader(loading.Resumable):
    """Training batches of one process out of images on the device; the same batches on any number of processes.

    Order and augmentation are functions of (seed, epoch, position in the epoch's order), as everywhere here.

    Args:
        images, labels: of :func:`load_images`.
        normalize: uint8 images → what the model sees.
        sampler: which samples make a batch.
        padding: of the random crop.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, normalize: Callable, sampler: loading.TrainBatchSampler, padding: int
    ) -> None:
        self.images, self.labels, self.normalize, self.padding = images, labels, normalize, padding
        self.sampler = sampler  # where Lightning sets the epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def batches_from(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, device = self.sampler, self.images.device
        order = sampler.order().to(device)
        generator = torch.Generator().manual_seed(loading.derive_seed(sampler.seed, sampler.epoch, 1))
        draws = torch.rand(3, len(order), generator=generator).to(device)
        for batch in range(first, len(sampler)):
            positions = sampler.positions(batch)
            chosen = order[positions]
            images = crop_and_flip(self.images[chosen], draws[:, positions], self.padding)
            yield self.normalize(images), self.labels[chosen]


class DeviceEvalLoader(Sequence):
    """Batches to evaluate: every ``world``-th image from ``rank`` on, in order. It has no ``sampler`` on purpose:
    Lightning takes an evaluation loader that has one for PyTorch's."""

    def __init__(
        self, images: Tensor, labels: Tensor, normalize: Callable, batch_size: int, world: int = 1, rank: int = 0
    ) -> None:
        self.images, self.labels = (x[rank::world].split(batch_size) for x in (images, labels))
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.normalize(self.images[index]), self.labels[index]
