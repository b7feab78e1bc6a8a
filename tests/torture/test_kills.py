"""Runs that are killed, once or several times in a row, and resumed: they end in the same bits as one that was not."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support import ROOT, TEXT, Forked, deaf_to_nothing, start_ranks
from support.graphs import ARM, GRAPH
from support.same_run import BUSY, assert_equal, assert_same_run, dies_after
from support.torture import (
    LIMIT_S,
    Announced,
    FileOperations,
    Hang,
    SilentlyWrong,
    assert_no_traceback,
    end_together,
)

IMAGES = [*BUSY, "trainer.max_epochs=3", "data.batch_size=200", "name=x"]
SCENES = [
    *("data=digit_scenes", "data.train_scenes=48", "data.val_scenes=8", "data.test_scenes=8", "data.batch_size=8"),
    *("model.depth=1", "model.decoder_depth=1", "model.embed_dim=16", "model.num_heads=2", "recipe.drop_path=0.2"),
    *("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1"),
    *("probe.every_n_epochs=1", "probe.num_samples=4", "task.ema_decay=0.9", "checkpoint.every_n_steps=4", "name=x"),
]
WORDS = [*TEXT, "model.drop_rate=0.2", "task.ema_decay=0.9", "checkpoint.every_n_steps=3", "trainer.max_steps=16"]
TWO = ["trainer=ddp", "trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.devices=2"]
RUNS = {
    "images": IMAGES,
    "graph": [*GRAPH, *ARM, "name=x"],
    "segmentation": SCENES,
    "text": WORDS,
    "images, accumulated": [*IMAGES, "trainer.accumulate_grad_batches=2", "checkpoint.every_n_steps=1"],
    "text, two processes": [*WORDS, *TWO],
    "images, loading workers": [*IMAGES, "data.num_workers=2"],
    "segmentation, micro-batches": [*SCENES, "data.micro_batch_size=4"],
    "images, two processes": [*IMAGES, *TWO],
}
PROCESSES = {name: 2 if name.endswith("two processes") else 1 for name in RUNS}
TO_WHOM = {  # by the number of processes: the signals, and to which of the processes each is sent
    1: {signal.SIGKILL: [[0]], signal.SIGTERM: [[0]], signal.SIGINT: [[0]]},
    2: {signal.SIGKILL: [[0], [1], [0, 1]], signal.SIGTERM: [[0], [0, 1]]},
}
WAYS = ("in the first seconds", "at any time", "after a step", "at a file operation", "within a write", "at the end")
LAST = 25  # file operations at the end of a run: the last checkpoints, tables, figures and the record
FEW_SYNCS = 4  # among as many at the start
TRIES = 5  # for a first kill that meets the run; one at any time may come when it has ended
INTERRUPTED = (130, 128 + signal.SIGTERM)  # the latter where another process was waited for
ANOTHER_ENDED = "another process of this run ended"
PLACES_AND_TIMES = {"started", "command", "overrides", "first_checkpoint", "wall_clock_s"}  # of a record


@pytest.fixture
def whole(once):
    """``whole(name)``: the uninterrupted run, the file operations that it made, and its seconds."""

    def get(name):
        def make(folder):
            began = time.monotonic()
            for done in end_together(start(name, folder, setup=FileOperations(folder / "outputs", folder / "made of"))):
                assert done.returncode == 0, done.stderr
            (folder / "seconds").write_text(f"{time.monotonic() - began}")

        folder = once(name, make)
        operations = (folder / "made of").read_text().splitlines()
        return folder / "outputs/x", operations, float((folder / "seconds").read_text())

    return get


def start(name, cwd, *words, setup=deaf_to_nothing):
    """The processes of a run."""
    if PROCESSES[name] == 1:
        return [Forked("train.py", *RUNS[name], *words, cwd=cwd, setup=setup)]
    return start_ranks(PROCESSES[name], *RUNS[name], *words, cwd=cwd, on_rank_zero=setup)


def killed(draw, name, way, cwd, words, whole):
    """Start a run and kill it in one of the ways; what it said, and what was done to it.

    A resumed run, of which little may be left, is met near its start.
    """
    run, operations, seconds = whole
    number = draw.choice([*TO_WHOM[PROCESSES[name]]])
    if way == "in the first seconds" and PROCESSES[name] == 1:
        return killed_while_it_imports(draw, name, cwd, words, number)
    if way in ("at any time", "in the first seconds"):
        after = draw.uniform(0, seconds if way == "at any time" and not words else 1)
        ranks, announced = draw.choice(TO_WHOM[PROCESSES[name]][number]), Announced()
        processes = start(name, cwd, *words, setup=announced)
        announced.wait(after)
        for rank in ranks:
            os.kill(processes[rank].pid, number)
        return end_together(processes), f"{number.name} to {ranks} after {after:.2f} s"
    if way == "after a step":
        step = draw.randint(1, 3 if words else record(run)["steps"])
        done = end_together(start(name, cwd, *words, setup=dies_after(step=step, number=number)))
        return done, f"{number.name} after {step} steps"
    half = way == "within a write"
    number = signal.SIGKILL if half else number
    count = sum(operation.startswith("fsync ") for operation in operations) if half else len(operations)
    last = FEW_SYNCS if half else LAST
    first = count - LAST + 1 if way == "at the end" and not words else 1
    point = draw.randint(first, last if words else count)
    setup = FileOperations(cwd / "outputs", cwd / "made of", point, number, half)
    done = end_together(start(name, cwd, *words, setup=setup))
    at = (cwd / "made of").read_text().splitlines()[-1]
    return done, f"{number.name} at {'sync' if half else 'file operation'} {point}: {at}"


def killed_while_it_imports(draw, name, cwd, words, number):
    """In a process of its own, which imports for seconds before it begins."""
    after = draw.uniform(0, 5 if words else 8)
    command = [sys.executable, str(ROOT / "train.py"), *RUNS[name], *words]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=deaf_to_nothing, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    time.sleep(after)
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Hang(f"{number.name} after {after:.2f} s of a process of its own") from None
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    return [done], f"{number.name} after {after:.2f} s of a process of its own"


def met_python_itself(done):
    """Whether Ctrl-C came before the first line of the command's own code, which would say so in a word."""
    return done.returncode == -signal.SIGINT and ", in main" not in done.stderr


def record(run):
    return {k: v for k, v in json.loads((run / "result.json").read_text()).items() if k not in PLACES_AND_TIMES}


def files(run):
    return sorted(str(file.relative_to(run)) for file in run.rglob("*"))


def pair(number):
    """The run and the way of a kill: each run meets each way."""
    return [*RUNS][number % len(RUNS)], WAYS[sum(divmod(number, len(RUNS))) % len(WAYS)]


def test_every_run_is_killed_in_every_way():
    assert {*map(pair, range(len(RUNS) * len(WAYS)))} == {*itertools.product(RUNS, WAYS)}


def check_end(all_said):
    for done in all_said:
        if not met_python_itself(done):
            assert_no_traceback(done)
        alone = ANOTHER_ENDED in done.stderr and len(all_said) > 1
        assert done.returncode <= 0 or done.returncode in INTERRUPTED or alone, done.stderr


def kill_it(draw, name, way, cwd, whole, kills):
    """Kill and resume a run several times in a row; ``kills`` takes what was done, and whether it met the run.

    The first does: where the run had ended before, it is drawn again.
    """
    wanted, tries = draw.choice([1, 1, 2, 3]), 0
    while len(kills) < wanted:
        all_said, what = killed(draw, name, way, cwd, ["resume=true"] * bool(kills), whole)
        kills.append({"what": what, "landed": any(done.returncode for done in all_said)})
        check_end(all_said)
        if not kills[0]["landed"]:
            tries += 1
            assert tries < TRIES, f"no kill met the run; the last was {what}"
            kills.clear()
            shutil.rmtree(cwd / "outputs")


def test_a_run_that_is_killed_and_resumed_is_the_same_run(kill, whole, tmp_path):
    name, way = pair(kill.number)
    uninterrupted, run, kills = whole(name), tmp_path / "outputs/x", []
    kill.told |= {"way": way, "run": name, "kills": kills}
    kill_it(kill, name, way, tmp_path, uninterrupted, kills)
    found = record(run) if (run / "result.json").exists() else {}
    lost = found.get("status") == "failed" and PROCESSES[name] > 1 and found["reason"].startswith(ANOTHER_ENDED)
    assert found.get("status") in (None, "running", "interrupted", "finished") or lost, found
    at_work = (run / "checkpoints/last.ckpt").exists() and found.get("status") != "finished"
    log = run / "train.log"
    before = log.stat().st_size if at_work else 0
    for done in end_together(start(name, tmp_path, "resume=true")):
        assert done.returncode == 0, done.stderr
    assert not at_work or "Restored all states" in log.read_text()[before:], "started over: work was lost"
    try:
        assert_same_run(run, uninterrupted[0])
        assert_equal(record(run), record(uninterrupted[0]), "result.json")
        assert_equal(files(run), files(uninterrupted[0]), "files")
    except AssertionError as error:
        raise SilentlyWrong(f"not the same run: {error}") from error
