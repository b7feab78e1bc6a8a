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


def dealt(world, micro_batches, samples=23, least_at_once=1):
    """Batches (step, micro-batch, rank) of an epoch that keeps its last one."""
    how = {"micro_batches": micro_batches, "world": world, "drop_last": False, "least_at_once": least_at_once}
    ranks = [TrainBatchSampler(samples, 6, 0, rank=rank, **how) for rank in range(world)]
    batches = list(zip(*ranks, strict=True))
    assert len(batches) == len(ranks[0]) and len(batches) % micro_batches == 0
    return [batches[i : i + micro_batches] for i in range(0, len(batches), micro_batches)]


def test_what_is_left_is_a_step_of_its_own_where_it_is_kept():
    steps = [step[0][0] for step in dealt(world=1, micro_batches=1)]
    assert [len(step) for step in steps] == [6, 6, 6, 5]
    assert sorted(index for step in steps for index, _ in step) == list(range(23))
    assert steps[:3] == list(TrainBatchSampler(23, 6, 0))  # all others are as without it
    assert len(dealt(world=1, micro_batches=1, samples=24)) == 4  # nothing is left


@pytest.mark.parametrize("world, micro_batches, samples", [(2, 1, 23), (3, 1, 20), (1, 3, 19), (3, 2, 20)])
def test_a_kept_last_batch_is_filled_from_the_orders_beginning_so_that_all_have_as_many(world, micro_batches, samples):
    steps = dealt(world, micro_batches, samples)
    assert len({len(share) for batch in steps[-1] for share in batch}) == 1
    given = [key for batch in steps[-1] for share in zip(*batch, strict=True) for key in share]
    left, parts = samples % 6, world * micro_batches
    whole = TrainBatchSampler(samples, 6, 0).order().tolist()
    filled = (whole[-left:] + whole)[: -(-left // parts) * parts]
    assert [index for index, _ in given] == filled
    assert len({seed for _, seed in given}) == len(given)  # a sample that fills is augmented anew


def test_a_model_that_takes_from_other_samples_is_given_no_single_one():
    steps = dealt(world=1, micro_batches=1, samples=19, least_at_once=2)
    assert [len(step[0][0]) for step in steps] == [6, 6, 6, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_a_kept_last_batch(workers):
    resumed = loader(start=3, epoch=1, workers=workers, drop_last=False)
    (last,) = [x for x, _ in resumed]
    assert len(last) == 5 and torch.equal(last, collect(epoch=1, drop_last=False)[3])


def test_copies_of_a_sample_are_augmented_differently():
    data = AugmentedDataset([(0, 0)], OnImage(noisy))
    assert not torch.equal(data[0, derive_seed(0, 0, 0)][0], data[0, derive_seed(0, 0, 1)][0])
