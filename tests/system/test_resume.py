"""A run that was killed and resumed ends as one that was not: weights, optimizer, average, probe, metrics."""

import csv
import json
import math
import os
import random
import shutil
import signal

import pytest
import torch
from support import TINY, assert_one_line_error, result, run_forked, train
from support.same_run import BUSY, assert_same_run, dies_after, load, train_killed

from neutreno.data.loading import AugmentedDataset
from neutreno.tasks.classification import Classification


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(BUSY, tmp_path_factory.mktemp("whole"), name="whole")


def test_every_epoch_has_an_order_and_augmentation_of_its_own(tmp_path):
    def record():
        get, seen = AugmentedDataset._ready, open(tmp_path / "seen", "w", buffering=1)  # noqa: SIM115

        def recorded(self, key):
            if isinstance(key, tuple):
                print(*key, file=seen)
            return get(self, key)

        AugmentedDataset._ready = recorded

    train(BUSY, tmp_path, "trainer.max_epochs=3", setup=record)
    keys = [tuple(map(int, line.split())) for line in (tmp_path / "seen").read_text().splitlines()]
    epochs = [keys[i : i + 1200] for i in range(0, 3600, 1200)]  # 8 batches of 150
    assert len(keys) == 3600 and len({seed for _, seed in keys}) == 3600
    for epoch in epochs:
        assert len({index for index, _ in epoch}) == 1200
    assert len({tuple(index for index, _ in epoch) for epoch in epochs}) == 3


def test_the_probe_measures_at_given_steps_too_once_each_and_counts_epochs_that_are_finished(uninterrupted):
    with open(uninterrupted / "oversmoothing.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["metric"], r["subset"], r["layer"]) == ("cosine", "all", "2")]
    at = [(0, 0), (2, 0), (6, 0), (8, 1), (13, 1), (16, 2), (24, 3), (32, 4)]
    assert [(int(row["step"]), int(row["epoch"])) for row in rows] == at
    assert [row["when"] for row in rows] == ["initial", *["training"] * 6, "final"]
    record = result(uninterrupted)
    assert record["within"] == {"escape_step/cosine": 32} and "collapsed_share/cosine" in record["metrics"]


def test_the_same_command_twice_gives_the_same_run(uninterrupted, tmp_path):
    assert_same_run(train(BUSY, tmp_path), uninterrupted)


def test_loading_workers_change_nothing(uninterrupted, tmp_path):
    assert_same_run(train(BUSY, tmp_path, "data.num_workers=2"), uninterrupted)


def test_killed_at_random_moments(uninterrupted, tmp_path):
    """Three kills, after numbers of steps drawn anew each time the test runs; 8 steps make an epoch, 4 epochs a run."""
    for resume in ([], ["resume=true"], ["resume=true"]):
        steps = random.randint(1, 10)
        train_killed(BUSY, tmp_path, *resume, setup=dies_after(step=steps))
    assert_same_run(train(BUSY, tmp_path, "resume=true"), uninterrupted)


def killed_in_write(write):
    """SIGKILL in the middle of the n-th checkpoint's write, with half of the file on the disk."""

    def setup():
        sync, count = os.fsync, []

        def half(file):
            if os.readlink(f"/proc/self/fd/{file}").endswith(".ckpt.unfinished"):
                count.append(file)
            if len(count) == write:
                os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            sync(file)

        os.fsync = half

    return setup


@pytest.mark.parametrize("write", [1, 4, 7])
def test_killed_while_a_checkpoint_is_being_written(uninterrupted, tmp_path, write):
    folder = train_killed(BUSY, tmp_path, setup=killed_in_write(write))
    assert len(list((folder / "checkpoints").glob("*.unfinished"))) == 1
    for file in (folder / "checkpoints").glob("*.ckpt"):
        torch.load(file, weights_only=True)  # whole
    assert_same_run(train(BUSY, tmp_path, "resume=true"), uninterrupted)


def test_killed_in_the_middle_of_an_epoch_with_workers(uninterrupted, tmp_path):
    workers = "data.num_workers=2"
    killed = train_killed(BUSY, tmp_path, workers, setup=dies_after(step=14))
    assert load(killed)["global_step"] == 12  # of 8 steps per epoch
    assert_same_run(train(BUSY, tmp_path, workers, "resume=true"), uninterrupted)


@pytest.mark.parametrize("every_n_steps, write", [(4, 1), (4, 2), (4, 3), (8, 1), (8, 2)])  # 8 steps make an epoch
def test_killed_right_after_a_checkpoint_at_or_before_an_epochs_end(uninterrupted, tmp_path, every_n_steps, write):
    every = f"checkpoint.every_n_steps={every_n_steps}"
    train_killed(BUSY, tmp_path, every, setup=dies_after(write))
    resumed = train(BUSY, tmp_path, every, "resume=true")
    assert_same_run(resumed, uninterrupted)


def test_the_best_epoch_of_the_uninterrupted_run_is_not_the_last(uninterrupted):
    """Else the tests here could not tell a best checkpoint that was lost on resume."""
    assert load(uninterrupted, "best")["epoch"] < load(uninterrupted)["epoch"]


def test_a_moved_run_keeps_its_best_epoch(uninterrupted, tmp_path):
    killed = train_killed(BUSY, tmp_path, setup=dies_after(9))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(killed, tmp_path / "elsewhere/x")
    done = run_forked("train.py", *BUSY, "name=x", "resume=true", "output_dir=elsewhere", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "elsewhere/x", uninterrupted)


def test_the_schedule_per_epoch_resumes(tmp_path):
    per_epoch = ["task.lr_per=epoch", "task.warmup_epochs=1"]
    whole = train(BUSY, tmp_path, *per_epoch, name="whole")
    train_killed(BUSY, tmp_path, *per_epoch, setup=dies_after(6))
    assert_same_run(train(BUSY, tmp_path, *per_epoch, "resume=true"), whole)


def test_killed_between_the_end_of_training_and_the_result(uninterrupted, tmp_path):
    (tmp_path / "outputs").mkdir()
    shutil.copytree(uninterrupted, tmp_path / "outputs" / "whole")
    file = tmp_path / "outputs/whole/result.json"
    file.write_text(json.dumps(result(file.parent) | {"status": "running"}))
    resumed = train(BUSY, tmp_path, "resume=true", name="whole")
    assert_same_run(resumed, uninterrupted)
    for part in ("oversmoothing", "steps"):
        assert result(resumed)[part] == result(uninterrupted)[part]


@pytest.mark.parametrize("file", ["oversmoothing.csv", "oversmoothing.png"])
def test_what_a_finished_run_shows_is_there_before_its_record_says_so(tmp_path, file):
    """A run that is killed as it writes its last files is not taken for a finished one."""

    def dies_before_the_last():
        replace = os.replace

        def replaced(source, target):
            if str(target).endswith(file) and (tmp_path / "outputs/k/checkpoints/last.ckpt").exists():
                state = torch.load(tmp_path / "outputs/k/checkpoints/last.ckpt", weights_only=True)
                if state["global_step"] == 32:
                    os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = replaced

    assert result(train_killed(BUSY, tmp_path, name="k", setup=dies_before_the_last))["status"] == "running"


def test_accumulated_batches_do_not_share_masks_and_resume(tmp_path):
    accumulate = ["trainer.accumulate_grad_batches=2", "data.batch_size=300"]
    whole = train(BUSY, tmp_path, *accumulate, name="whole")
    train_killed(BUSY, tmp_path, *accumulate, setup=dies_after(1))
    assert_same_run(train(BUSY, tmp_path, *accumulate, "resume=true"), whole)


def test_a_killed_run_is_not_started_over_by_accident(tmp_path):
    train_killed(BUSY, tmp_path, setup=dies_after(step=1))
    assert_one_line_error(run_forked("train.py", *BUSY, "name=x", cwd=tmp_path), "exists already", "resume=true")


def test_weights_that_a_bad_gradient_spoils_do_not_take_the_place_of_the_last_good_ones(tmp_path):
    """In the last step of an epoch, so that no loss has seen them."""

    def spoils():
        def spoil(task):
            if task.global_step == 7:
                next(task.parameters()).grad.fill_(math.nan)

        Classification.on_after_backward = spoil

    words = [*TINY, "probe.every_n_epochs=10", "name=x"]
    done = run_forked("train.py", *words, cwd=tmp_path, setup=spoils)
    assert_one_line_error(done, "NaN or Inf after step 8", "task.lr")
    assert load(tmp_path / "outputs/x")["global_step"] == 4
    again = run_forked("train.py", *words, "resume=true", cwd=tmp_path)
    assert again.returncode == 0 and result(tmp_path / "outputs/x")["status"] == "finished", again.stderr
