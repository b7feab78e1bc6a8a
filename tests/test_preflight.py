"""What a run will cost, said before it starts."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, assert_one_line_error, run_forked, run_ranks, run_script
from lightning import Trainer
from scipy import stats
from torch import nn

import neutreno.preflight
from neutreno.data.digits import Digits
from neutreno.errors import InputError
from neutreno.preflight import MicroBatch, largest_batch, seeds_needed
from neutreno.tasks.classification import Classification


def report_of(text):
    return dict(re.findall(r"^  ([a-z -]+?)  +(.+)$", text, re.MULTILINE))


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


def virtual_time(load, step, validate):
    """Each sample takes ``load`` seconds to read, each step ``step``, each validation batch ``validate``."""

    def setup():
        now = [0.0]

        def taking(seconds, call):
            def slow(*args):
                now[0] += seconds
                return call(*args)

            return slow

        neutreno.preflight.Clock._now = lambda self, trainer: now[0]
        arrays = neutreno.data.digits._Arrays
        arrays.__getitem__ = taking(load, arrays.__getitem__)
        Classification.training_step = taking(step, Classification.training_step)
        Classification.validation_step = taking(validate, Classification.validation_step)

    return setup


def test_preflight_reports_what_it_measured_and_leaves_nothing(tmp_path):
    setup = virtual_time(load=1, step=100, validate=30)  # 300 samples a step, 270 to validate
    expected = ["expected.difference=0.84", "expected.sd=0.42"]
    done = run_forked("train.py", *TINY, *expected, "preflight=true", cwd=tmp_path, setup=setup)
    assert done.returncode == 0 and not done.stderr, done.stderr
    report = report_of(done.stdout)
    assert report["parameters"] == "7,130" and "0.8 images/s with loading, 3.0 images/s the" in report["training"]
    assert report["bottleneck"].startswith("loading: 75 %") and "data.num_workers" in report["bottleneck"]
    assert report["validation"].startswith("300 s each")
    hours = (3 * 4 * 400 + 5 * 300) / 3600
    assert report["whole run"].startswith(f"{hours:.3g} hours for 3 epochs of 4 steps")
    assert "peak RSS" in report["memory per device"] and "not measured" in report["largest micro-batch"]
    assert report["seeds per row"].startswith(f"{seeds_needed(0.84, 0.42)} to find a difference of 0.84")
    assert f"{seeds_needed(0.84, 0.42) * hours:.3g} hours a row" in report["seeds per row"]
    assert not list(tmp_path.iterdir())


def test_preflight_says_when_computing_is_the_bottleneck_and_what_it_cannot_know(tmp_path):
    setup = virtual_time(load=0.01, step=100, validate=1)
    done = run_forked("train.py", *TINY, "data.micro_batch_size=100", "preflight=true", cwd=tmp_path, setup=setup)
    assert done.returncode == 0, done.stderr
    report = report_of(done.stdout)
    assert "micro-batches of 100 samples on each, 3 of them accumulated" in report["devices"]
    assert report["training"].startswith("1.0 images/s") and "301 s" not in done.stdout
    assert report["bottleneck"].startswith("computing: 1 %")
    assert "recipe expects no difference" in report["seeds per row"]


def test_preflight_of_imagenet_knows_how_many_seeds_the_papers_difference_needs(image_folders, tmp_path):
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.img_size=32", "data.num_workers=2"]
    arguments = [f"data.root={image_folders}", "data.num_classes=2", "data.batch_size=4", *small]
    done = run_forked("train.py", "data=imagenet", *arguments, "trainer.max_epochs=2", "preflight=true", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert report_of(done.stdout)["seeds per row"].startswith("6 to find a difference of 0.84 at a sd between seeds of")
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.slow
def test_preflight_of_two_processes_speaks_once(tmp_path):
    more = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
    done = run_ranks(2, *TINY, *more, "preflight=true", cwd=tmp_path)
    assert [d.returncode for d in done] == [0, 0] and not done[1].stdout and not list(tmp_path.iterdir())
    assert "2 x cpu on 1 machine(s), micro-batches of 150 samples" in report_of(done[0].stdout)["devices"]


def test_preflight_is_no_word(tmp_path):
    assert_one_line_error(run_forked("train.py", "preflight=maybe", cwd=tmp_path), "preflight=maybe")


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


@pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a GPU")
def test_a_gpu_is_filled_and_measured(tmp_path):
    gpu = [*TINY, "trainer=gpu", "data.micro_batch_size=auto", "name=x"]
    done = run_script("train.py", *gpu, "preflight=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = report_of(done.stdout)
    assert (
        "allocated at most" in report["memory per device"] and int(report["largest micro-batch"].split(";")[0]) >= 300
    )
    assert run_script("train.py", *gpu, cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "outputs/x/result.json").read_text())["devices"]["micro_batch_size"] == 300
