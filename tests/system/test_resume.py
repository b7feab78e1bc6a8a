"""A run that was killed and resumed ends as one that was not: weights, optimizer, average, probe, metrics."""

import json
import os
import random
import shutil
import signal

import pytest
import torch
from support import assert_one_line_error, run_forked
from support.same_run import BUSY, assert_same_run, dies_after, load

from neutreno.data.loading import AugmentedDataset


def run(cwd, *arguments, **kwargs):
    done = run_forked("train.py", *BUSY, *arguments, cwd=cwd, **kwargs)
    assert done.returncode == 0, done.stderr
    return cwd / "outputs"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), "name=whole") / "whole"


def run_killed(cwd, *arguments, setup):
    died = run_forked("train.py", *BUSY, *arguments, cwd=cwd, setup=setup)
    assert died.returncode == -signal.SIGKILL, died.stderr


def test_every_epoch_has_an_order_and_augmentation_of_its_own(tmp_path):
    def record():
        get, seen = AugmentedDataset.__getitem__, open(tmp_path / "seen", "w", buffering=1)  # noqa: SIM115

        def recorded(self, key):
            if isinstance(key, tuple):
                print(*key, file=seen)
            return get(self, key)

        AugmentedDataset.__getitem__ = recorded

    run(tmp_path, "name=x", "trainer.max_epochs=3", setup=record)
    keys = [tuple(map(int, line.split())) for line in (tmp_path / "seen").read_text().splitlines()]
    epochs = [keys[i : i + 1200] for i in range(0, 3600, 1200)]  # 8 batches of 150
    assert len(keys) == 3600 and len({seed for _, seed in keys}) == 3600
    for epoch in epochs:
        assert len({index for index, _ in epoch}) == 1200
    assert len({tuple(index for index, _ in epoch) for epoch in epochs}) == 3


def test_the_same_command_twice_gives_the_same_run(uninterrupted, tmp_path):
    assert_same_run(run(tmp_path, "name=again") / "again", uninterrupted)


def test_loading_workers_change_nothing(uninterrupted, tmp_path):
    assert_same_run(run(tmp_path, "name=w", "data.num_workers=2") / "w", uninterrupted)


def test_killed_at_random_moments(uninterrupted, tmp_path):
    """Three kills, after numbers of steps drawn anew each time the test runs; 8 steps make an epoch, 4 epochs a run."""
    for resume in ([], ["resume=true"], ["resume=true"]):
        steps = random.randint(1, 10)
        run_killed(tmp_path, "name=k", *resume, setup=dies_after(step=steps))
    assert_same_run(run(tmp_path, "name=k", "resume=true") / "k", uninterrupted)


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
    folder = tmp_path / "outputs" / "k"
    run_killed(tmp_path, "name=k", setup=killed_in_write(write))
    assert len(list((folder / "checkpoints").glob("*.unfinished"))) == 1
    for file in (folder / "checkpoints").glob("*.ckpt"):
        torch.load(file, weights_only=True)  # whole
    assert_same_run(run(tmp_path, "name=k", "resume=true") / "k", uninterrupted)


def test_killed_in_the_middle_of_an_epoch_with_workers(uninterrupted, tmp_path):
    workers = ["name=k", "data.num_workers=2"]
    run_killed(tmp_path, *workers, setup=dies_after(step=14))
    assert load(tmp_path / "outputs" / "k")["global_step"] == 12  # of 8 steps per epoch
    assert_same_run(run(tmp_path, *workers, "resume=true") / "k", uninterrupted)


@pytest.mark.parametrize("every_n_steps, write", [(4, 1), (4, 2), (4, 3), (8, 1), (8, 2)])  # 8 steps make an epoch
def test_killed_right_after_a_checkpoint_at_or_before_an_epochs_end(uninterrupted, tmp_path, every_n_steps, write):
    every = f"checkpoint.every_n_steps={every_n_steps}"
    run_killed(tmp_path, every, "name=k", setup=dies_after(write))
    resumed = run(tmp_path, every, "name=k", "resume=true") / "k"
    assert_same_run(resumed, uninterrupted)
    results = [json.loads((f / "result.json").read_text())["metrics"] for f in (resumed, uninterrupted)]
    assert results[0] == results[1]


def test_the_best_epoch_of_the_uninterrupted_run_is_not_the_last(uninterrupted):
    """Else the tests here could not tell a best checkpoint that was lost on resume."""
    assert load(uninterrupted, "best")["epoch"] < load(uninterrupted)["epoch"]


def test_a_moved_run_keeps_its_best_epoch(uninterrupted, tmp_path):
    run_killed(tmp_path, "name=k", setup=dies_after(9))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "outputs" / "k", tmp_path / "elsewhere" / "k")
    run(tmp_path, "name=k", "resume=true", "output_dir=elsewhere")
    assert_same_run(tmp_path / "elsewhere" / "k", uninterrupted)


def test_the_schedule_per_epoch_resumes(tmp_path):
    per_epoch = ["task.lr_per=epoch", "task.warmup_epochs=1"]
    whole = run(tmp_path, *per_epoch, "name=whole") / "whole"
    run_killed(tmp_path, *per_epoch, "name=k", setup=dies_after(6))
    assert_same_run(run(tmp_path, *per_epoch, "name=k", "resume=true") / "k", whole)


def test_killed_between_the_end_of_training_and_the_result(uninterrupted, tmp_path):
    (tmp_path / "outputs").mkdir()
    shutil.copytree(uninterrupted, tmp_path / "outputs" / "whole")
    file = tmp_path / "outputs/whole/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "running"}))
    resumed = run(tmp_path, "name=whole", "resume=true") / "whole"
    assert_same_run(resumed, uninterrupted)
    results = [json.loads((f / "result.json").read_text()) for f in (resumed, uninterrupted)]
    for part in ("metrics", "oversmoothing", "steps"):
        assert results[0][part] == results[1][part]


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

    run_killed(tmp_path, "name=k", setup=dies_before_the_last)
    assert json.loads((tmp_path / "outputs/k/result.json").read_text())["status"] == "running"


def test_accumulated_batches_do_not_share_masks_and_resume(tmp_path):
    accumulate = ["trainer.accumulate_grad_batches=2", "data.batch_size=300"]
    whole = run(tmp_path, *accumulate, "name=whole") / "whole"
    run_killed(tmp_path, *accumulate, "name=k", setup=dies_after(1))
    assert_same_run(run(tmp_path, *accumulate, "name=k", "resume=true") / "k", whole)


def test_a_killed_run_is_not_started_over_by_accident(tmp_path):
    run_killed(tmp_path, "name=k", setup=dies_after(step=1))
    assert_one_line_error(run_forked("train.py", *BUSY, "name=k", cwd=tmp_path), "exists already", "resume=true")
