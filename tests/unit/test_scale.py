"""Into how many micro-batches a batch is split."""

import pytest

from neutreno.data.digits import Digits


@pytest.mark.parametrize(
    "micro_batch_size, world, micro_batches, expected",
    [
        (None, 1, 1, 1),
        (None, 2, 4, 4),
        (1024, 1, 1, 1),
        (256, 1, 1, 4),
        (200, 1, 1, 8),  # 1024 / 5 is no whole number
        (256, 4, 1, 1),
        (100, 4, 1, 4),
        (1, 4, 1, 256),
        (256, 2, 2, 2),
        ("auto", 2, 1, 1),  # on a CPU
    ],
)
def test_the_smallest_number_of_equal_parts_that_fit(micro_batch_size, world, micro_batches, expected):
    data = Digits(img_size=8, in_chans=1, num_classes=10, batch_size=1024, micro_batch_size=micro_batch_size)
    assert data.accumulated_batches(world, micro_batches) == expected
