"""The largest batch that a device holds."""

import pytest
import torch
from lightning import Trainer
from torch import nn

from neutreno.errors import InputError
from neutreno.preflight import largest_batch
from neutreno.tasks.classification import Classification


class Bounded(nn.Linear):
    """A network whose device holds so many samples."""

    def __init__(self, room):
        super().__init__(4, 3)
        self.room, self.tried = room, []

    def forward(self, x):
        assert torch.equal(x, x[:1].expand_as(x))
        self.tried.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(x)


def measure(room, most):
    model, trainer = Bounded(room), Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    before = model.weight.clone()
    result = largest_batch(Classification(model, 3, mixup=0.5), (torch.randn(1, 4), torch.tensor([1])), trainer, most)
    assert torch.equal(model.weight, before) and model.weight.grad is None
    return result


def test_the_largest_batch_is_doubled_until_memory_ends():
    assert measure(room=40, most=1000) == (32, 64)
    assert measure(room=40, most=40) == (40, None)


def test_a_device_without_room_for_two_samples_is_refused():
    with pytest.raises(InputError, match="not enough memory for two samples"):
        measure(room=1, most=1000)
