"""What a run will cost, said before it starts."""

import json
import re

import pytest
import torch
from support import TINY, assert_one_line_error, run_forked, run_ranks, run_script

import neutreno.preflight
from neutreno.preflight import seeds_needed
from neutreno.tasks.classification import Classification


def report_of(text):
    return dict(re.findall(r"^  ([a-z -]+?)  +(.+)$", text, re.MULTILINE))


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


def test_preflight_of_two_processes_speaks_once(tmp_path):
    more = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
    done = run_ranks(2, *TINY, *more, "preflight=true", cwd=tmp_path)
    assert [d.returncode for d in done] == [0, 0] and not done[1].stdout and not list(tmp_path.iterdir())
    assert "2 x cpu on 1 machine(s), micro-batches of 150 samples" in report_of(done[0].stdout)["devices"]


def test_preflight_is_no_word(tmp_path):
    assert_one_line_error(run_forked("train.py", "preflight=maybe", cwd=tmp_path), "preflight=maybe")


@pytest.mark.gpu
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
