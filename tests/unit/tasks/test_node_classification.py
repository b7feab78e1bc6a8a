"""The first best epoch's weights are kept, and what counts is the labelled nodes."""

import pytest
import torch
from lightning import Trainer
from torch import nn

from neutreno.errors import InputError
from neutreno.tasks.node_classification import UNLABELLED, NodeClassification

X = torch.eye(4)[None]
TRAIN = torch.tensor([[0, 1, UNLABELLED, UNLABELLED]])
VAL = torch.tensor([[UNLABELLED, UNLABELLED, 0, 1]])


class Fixed(nn.Module):
    """Logits are its weights, and node i answers ``answers[i]``."""

    output, num_classes = "nodes", 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2))

    def answer(self, *answers):
        self.weight.data = torch.nn.functional.one_hot(torch.tensor(answers), 2).float()

    def forward(self, x):
        return x @ self.weight


def step(task, number, *answers):
    """An epoch after which the network gives ``answers``."""
    task.model.answer(*answers)
    task.loss((X, TRAIN, VAL))
    type(task).global_step = number
    task._keep_best()


def in_training(precision="32-true"):
    task = NodeClassification(Fixed())
    task.trainer = Trainer(precision=precision, accelerator="cpu", logger=False, enable_checkpointing=False)
    return task


@pytest.fixture
def task(monkeypatch):
    monkeypatch.setattr(NodeClassification, "global_step", 0)
    return in_training()


def test_the_first_epoch_of_highest_validation_accuracy_is_kept(task):
    for number, answers in enumerate([(1, 0, 1, 0), (0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (1, 0, 0, 1)], 1):
        step(task, number, *answers)
    assert (task.best_step.item(), task.best_correct.item()) == (5, 2)
    assert task.best(X).argmax(-1).tolist() == [[0, 1, 0, 1]]
    assert task.model(X).argmax(-1).tolist() == [[1, 0, 0, 1]]


def test_the_kept_weights_are_part_of_a_checkpoint(task):
    step(task, 7, 0, 1, 0, 1)
    again = NodeClassification(Fixed())
    again.load_state_dict(task.state_dict())
    assert again.best_step.item() == 8 and torch.equal(again.best.weight, task.best.weight)


def test_only_labelled_nodes_count(task):
    task.model.answer(0, 1, 0, 0)
    for name, labels, right in (("train", TRAIN, 100.0), ("val", VAL, 50.0)):
        metric = task.metrics["val_"]["raw"]
        task._update(metric, task.model, (X, labels))
        found = task._figures(metric.compute())
        metric.reset()
        logits = task.model(X)[0][labels[0] != UNLABELLED]
        assert found["accuracy"] == right, name
        loss = nn.functional.cross_entropy(logits, labels[labels != UNLABELLED])
        assert found["loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("precision, right", [("32-true", 2), ("bf16-mixed", 1)])
def test_an_epoch_is_chosen_in_the_precision_in_which_it_is_validated(monkeypatch, precision, right):
    """Node 3 answers 1 by a margin that bfloat16 rounds away, and of equal logits the first is taken."""
    monkeypatch.setattr(NodeClassification, "global_step", 0)
    monkeypatch.setattr(Fixed, "answer", lambda self, *answers: self.weight.data.copy_(torch.tensor(answers)))
    task = in_training(precision)
    step(task, 1, *[[1.0, 0.0]] * 3, [1.0, 1.001])
    assert task.best_correct.item() == right
    metric = task.metrics["val_"]["raw"]
    with task.trainer.precision_plugin.val_step_context():
        task._update(metric, task.best, (X, VAL))
    assert task._figures(metric.compute())["accuracy"] == 50.0 * right


def test_dropout_is_on_again_after_an_epochs_validation(task):
    task.train()
    step(task, 1, 0, 0, 0, 0)
    assert task.model.training


def test_a_model_of_something_else_is_refused():
    model = Fixed()
    model.output = "classes"
    with pytest.raises(InputError, match="takes a model of nodes"):
        NodeClassification(model)


def test_the_layers_that_are_measured_are_those_of_the_reported_accuracy(task):
    step(task, 1, 0, 1, 0, 1)
    step(task, 2, 1, 0, 1, 0)
    assert task.measured(X).argmax(-1).tolist() == [[0, 1, 0, 1]]
