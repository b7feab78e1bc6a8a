import random

import numpy as np
import pytest
import torch

from neutreno.data.loading import AugmentedDataset, OnImage, ResumableLoader, TrainBatchSampler, derive_seed


def noisy(x):
    """Draws from all three generators that transforms draw from."""
    return torch.tensor([x, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def loader(start=0, epoch=0, workers=0, **sampler):
    samples = [(i, i) for i in range(23)]
    batches = TrainBatchSampler(len(samples), 6, seed=3, **sampler)
    result = ResumableLoader(AugmentedDataset(samples, OnImage(noisy)), batch_sampler=batches, num_workers=workers)
    result.load_state_dict({"given": start})
    batches.set_epoch(epoch)
    return result


def collect(*args, **kwargs):
    return [x for x, _ in loader(*args, **kwargs)]


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    first = collect(epoch=4)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert all(map(torch.equal, first, collect(epoch=4)))
    assert not torch.equal(torch.cat(first), torch.cat(collect(epoch=5)))


def test_workers_change_nothing():
    assert all(map(torch.equal, collect(epoch=2), collect(epoch=2, workers=2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_the_rest_of_the_epoch_and_then_whole_epochs(workers):
    resumed = loader(start=2, epoch=1, workers=workers)
    assert all(map(torch.equal, [x for x, _ in resumed], collect(epoch=1)[2:]))
    resumed.batch_sampler.set_epoch(2)
    assert all(map(torch.equal, [x for x, _ in resumed], collect(epoch=2)))
    assert len(resumed) == 3


def test_state_counts_the_batches_given_not_those_loaded_ahead():
    running = loader(workers=2)
    batches = iter(running)
    next(batches), next(batches)
    assert running.state_dict() == {"given": 2}
    next(batches)
    assert running.state_dict() == {"given": 0}  # the epoch's end is the next one's start


def test_the_epoch_set_after_the_iterator_was_asked_for_counts():
    running = loader(epoch=0)
    batches = iter(running)  # as Lightning does on resume
    running.batch_sampler.set_epoch(7)
    assert torch.equal(next(batches)[0], collect(epoch=7)[0])


@pytest.mark.parametrize("world, micro_batches", [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2)])
def test_the_same_global_batches_on_any_number_of_processes(world, micro_batches):
    shares = [list(TrainBatchSampler(23, 6, 0, micro_batches=micro_batches, world=world, rank=r)) for r in range(world)]
    assert {len(share) for share in shares} == {3 * micro_batches}
    steps = []
    for step in range(3):
        batch = [key for part in range(micro_batches) for share in shares for key in share[step * micro_batches + part]]
        steps.append(sorted(batch))
    assert steps == [sorted(batch) for batch in TrainBatchSampler(23, 6, 0)]


def test_copies_of_a_sample_are_augmented_differently():
    data = AugmentedDataset([(0, 0)], OnImage(noisy))
    assert not torch.equal(data[0, derive_seed(0, 0, 0)][0], data[0, derive_seed(0, 0, 1)][0])
