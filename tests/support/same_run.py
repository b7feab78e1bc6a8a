import csv
import os
import signal

import torch

from support import TINY, deaf_to_nothing, result, run_forked

# Everything that draws random numbers or carries state: augmentation, mixup, dropout, drop path, EMA, both checkpoints.
BUSY = [
    *TINY,
    "trainer.max_epochs=4",
    "data.batch_size=150",
    "data.rotate=10",
    "task.mixup=0.5",
    "task.cutmix=0.5",
    "task.ema_decay=0.9",
    "recipe.drop_path=0.2",
    "model.proj_drop_rate=0.1",
    "model.attn_drop_rate=0.1",
    "checkpoint.every_n_steps=3",
    "probe.at_steps=[0,2,6,8,13]",
]


def load(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if "per_s" not in k and k != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(resumed, whole, *more):
    """Bit for bit: both checkpoints, of which ``more`` names further parts, metrics and probe."""
    for name in sorted(file.stem for file in (whole / "checkpoints").iterdir()):
        ours, theirs = load(resumed, name), load(whole, name)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", *more):
            assert_equal(ours[part], theirs[part], f"{name}: {part}")
    assert_equal(metrics(resumed), metrics(whole), "metrics.csv")
    assert_equal(result(resumed)["metrics"], result(whole)["metrics"], "result.json")
    measured = [(folder / "oversmoothing.csv").read_bytes() for folder in (resumed, whole)]
    assert measured[0] == measured[1], "oversmoothing.csv"
    assert not list(resumed.rglob("*.unfinished")), "an unfinished file"


def train_killed(words, cwd, *more, setup, name="x"):
    """The folder of a run that ``setup`` ends by SIGKILL."""
    died = run_forked("train.py", *words, *more, f"name={name}", cwd=cwd, setup=setup)
    assert died.returncode == -signal.SIGKILL, died.stderr
    return cwd / "outputs" / name


def dies_after(write=None, *, step=None, number=signal.SIGKILL):
    """Send a signal to the run right after its n-th checkpoint is in place or its n-th optimizer step is taken.

    The run does it to itself: a watcher beside it would meet the moment or not, as the machine pleases.
    """

    def setup():
        deaf_to_nothing()
        from torch.optim.optimizer import register_optimizer_step_post_hook

        replace, done = os.replace, []

        def stop_at(count):
            done.append(1)
            if len(done) == count:
                os.kill(os.getpid(), number)

        def replaced(source, target):
            replace(source, target)
            if str(target).endswith(".ckpt"):
                stop_at(write)

        if write:
            os.replace = replaced
        if step:
            register_optimizer_step_post_hook(lambda *_: stop_at(step))

    return setup
