"""What the lines of a run say."""

import math
import time
from types import SimpleNamespace

import pytest
import torch

from neutreno import console
from neutreno.callbacks.progress import RunProgress, batch_of
from neutreno.tasks.classification import Classification


@pytest.fixture
def trainer():
    return SimpleNamespace(
        accumulate_grad_batches=4,
        callback_metrics={},
        current_epoch=0,
        datamodule=SimpleNamespace(planned_steps=8),
        global_step=1,
        is_global_zero=True,
        max_epochs=2,
    )


@pytest.fixture
def step(trainer, capsys):
    """Ends a batch with what Lightning hands over of it, and gives the line."""
    progress = RunProgress(line_every_s=-1)
    progress.on_train_start(trainer, Classification)

    def end(outputs):
        progress.on_train_batch_end(trainer, Classification, outputs, None, 0)
        return capsys.readouterr().out

    return end


@pytest.fixture(autouse=True)
def in_a_log_file(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)


def test_the_loss_is_of_a_batch_where_gradients_are_accumulated(step):
    assert "loss 2.400," in step({"loss": torch.tensor(0.6)})


@pytest.mark.parametrize("outputs", [{}, None])
def test_a_batch_that_the_task_left_out_has_no_loss(step, outputs):
    assert step(outputs).startswith("epoch 1/2, step 1/8, 0")


def test_nothing_else_is_said_between_two_lines_while_steps_go_on(trainer, capsys):
    progress = RunProgress(line_every_s=60)
    with console.heartbeat(1):
        progress.on_train_start(trainer, Classification)
        for _ in range(30):
            time.sleep(0.05)
            progress.on_train_batch_end(trainer, Classification, {}, None, 0)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("batches", "said"), [(7, "batch 3 of 7"), (math.inf, "batch 3")])
def test_a_stream_has_no_last_batch(batches, said):
    assert batch_of(2, batches) == said
