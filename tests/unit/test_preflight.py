"""How many seeds a difference needs, and how large a micro-batch may be."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import neutreno.preflight
from neutreno.data.digits import Digits
from neutreno.errors import InputError
from neutreno.preflight import MicroBatch, seeds_needed


@pytest.mark.parametrize("effect, seeds", [(0.2, 394), (0.5, 64), (0.8, 26), (1.2, 12)])
def test_seeds_are_those_of_the_usual_tables(effect, seeds):
    """Samples per group, two-sided, α 0.05, power 0.8 (Cohen, 1988; 393.4 for 0.2)."""
    assert seeds_needed(effect, 1.0) == seeds
    assert seeds_needed(3 * effect, 3.0) == seeds_needed(effect, 1.0)


@pytest.mark.parametrize("difference, sd", [(0.84, 0.42), (0.84, 1.0), (3.0, 0.5)])
def test_simulated_comparisons_find_the_difference_as_often_as_promised(difference, sd):
    """And one seed fewer would not do."""
    n, repeats = seeds_needed(difference, sd), 100_000
    draw = np.random.default_rng(0)

    def found(n):
        first, second = draw.normal(0, sd, (repeats, n)), draw.normal(difference, sd, (repeats, n))
        return (stats.ttest_ind(first, second, axis=1).pvalue < 0.05).mean()

    assert found(n) > 0.795
    assert n == 2 or found(n - 1) < 0.805


@pytest.mark.parametrize("difference, sd", [(0, 1), (1, 0), (-1, 1), (float("nan"), 1), ("much", 1)])
def test_no_number_of_seeds_shows_nothing(difference, sd):
    with pytest.raises(InputError, match="expected"):
        seeds_needed(difference, sd)


def test_micro_batch_size_auto_takes_what_the_smallest_device_holds(monkeypatch):
    data = Digits(img_size=8, in_chans=1, num_classes=10, batch_size=256, micro_batch_size="auto")
    data.setup()
    strategy = SimpleNamespace(root_device=torch.device("cuda"), reduce=lambda value, reduce_op: min(value, 16))
    trainer = SimpleNamespace(
        datamodule=data, strategy=strategy, world_size=4, global_rank=0, accumulate_grad_batches=1
    )
    data.trainer = trainer
    monkeypatch.setattr(torch, "full", lambda shape, value, device: value)  # there may be no such device here
    monkeypatch.setattr(neutreno.preflight, "largest_batch", lambda task, sample, trainer, most: (32, 64))
    MicroBatch().setup(trainer, None, "fit")
    assert trainer.accumulate_grad_batches == 4  # 256 = 4 devices x 4 batches x 16
