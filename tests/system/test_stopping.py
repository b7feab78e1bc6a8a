"""Several processes end together, within seconds, and leave what a run can continue from."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, TINY, Forked, deaf_to_nothing, rank_one_is_a_fork, result, run_forked, train
from support.same_run import load

from neutreno import training
from neutreno.tasks.classification import Classification

PAIR = ["trainer=ddp", "trainer.precision=32-true", "trainer.accelerator=cpu", "trainer.devices=2", "name=x"]
WITHIN_S = 20  # of a busy machine; five on an idle one

# Where a loading worker of the process that ended holds its connection, rank 0 waits in C and is killed.
INTERRUPTED = [("interrupted", "SIGTERM"), ("running", None)]
LOST = [("failed", "another process of this run ended; see its output"), ("running", None)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def below(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [p for child in map(int, children) for p in (child, *below(child))]


@pytest.fixture
def pair(tmp_path):
    """A run on two processes that is training: the processes of rank 0 and 1, and all of both."""
    log, pid_file = tmp_path / "log", tmp_path / "rank_one"
    words = [*TINY, *PAIR, "trainer.max_epochs=3000", "data.num_workers=1"]
    run = Forked("train.py", *words, cwd=tmp_path, setup=lambda: rank_one_is_a_fork(log, pid_file), log=log)
    until = time.monotonic() + 200
    while not (tmp_path / "outputs/x/checkpoints/last.ckpt").exists():
        assert run.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    every = [run.pid, *below(run.pid)]
    yield run, int(pid_file.read_text()), every
    for pid in filter(alive, every):
        os.kill(pid, signal.SIGKILL)
    run.wait()


def assert_all_end(run, every):
    until = time.monotonic() + WITHIN_S
    while (left := [pid for pid in every if alive(pid)]) and time.monotonic() < until:
        run.poll()
        time.sleep(0.05)
    assert not left


@pytest.mark.parametrize(
    "number, of, outcome",
    [
        (signal.SIGTERM, "rank 0", INTERRUPTED),
        (signal.SIGTERM, "both", INTERRUPTED),
        (signal.SIGTERM, "rank 1", LOST),
        (signal.SIGKILL, "rank 0", [("running", None)]),
        (signal.SIGKILL, "rank 1", LOST),
    ],
)
def test_a_signal_to_one_or_to_all_ends_all(pair, tmp_path, number, of, outcome):
    run, rank_one, every = pair
    for pid in {"rank 0": [run.pid], "rank 1": [rank_one], "both": [run.pid, rank_one]}[of]:
        os.kill(pid, number)
    assert_all_end(run, every)
    log, record = (tmp_path / "log").read_text(), result(tmp_path / "outputs/x")
    assert run.wait() != 0
    if outcome is INTERRUPTED:  # a loading worker may complain of the pipe to its process, or to one that reads from it
        assert "Traceback" not in log or "multiprocessing/resource_sharer.py" in log, log
    assert (record["status"], record.get("reason")) in outcome
    assert load(tmp_path / "outputs/x")["global_step"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_a_group_with_loading_workers_is_an_interruption(tmp_path, number):
    """As ``timeout``, ``scancel`` and a terminal send it; the workers' end must not stand for the run's."""

    def alone_and_slow():
        os.setsid()
        deaf_to_nothing()
        record_error = training.record_error
        training.record_error = lambda *given: (time.sleep(0.5), record_error(*given))  # all workers' ends are known

    words = [*TINY, "trainer.max_epochs=3000", "data.num_workers=2", "trainer.accelerator=cpu", "name=x"]
    run = Forked("train.py", *words, cwd=tmp_path, setup=alone_and_slow)
    until = time.monotonic() + 200
    while not (tmp_path / "outputs/x/checkpoints/last.ckpt").exists():
        assert run.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.killpg(run.pid, number)
    time.sleep(0.02)
    os.kill(run.pid, number)  # once more, as ``timeout`` does
    run.wait(WITHIN_S)
    done, record = run.finish(), result(tmp_path / "outputs/x")
    assert (done.returncode, done.stderr) == (130, "interrupted; resume=true continues the run\n")
    assert (record["status"], record["reason"]) == ("interrupted", number.name)
    assert not list((tmp_path / "outputs").rglob("*.unfinished"))


def test_an_evaluation_that_is_interrupted_says_so(tmp_path):
    run = train(TINY, tmp_path)

    def stops_itself():
        step = Classification.validation_step

        def stepped(self, *arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        Classification.validation_step = stepped

    done = run_forked("evaluate.py", str(run), cwd=tmp_path, setup=stops_itself)
    assert (done.returncode, done.stderr) == (130, "interrupted; SIGTERM\n")


WAITING = """
import os, signal, threading
import neutreno.stopping as stopping

stopping.GRACE_S = 0.3
lock = threading.Lock()
lock.acquire()
with stopping.stopping(lambda number: print("to the others:", signal.Signals(number).name, flush=True)):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    signal.signal(signal.SIGTERM, lambda *_: None)  # what a handler does that no Python lets run
    lock.acquire()
"""


def test_a_process_that_waits_for_one_that_is_gone_ends_nevertheless():
    done = subprocess.run([sys.executable, "-c", WAITING], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM and done.stdout == "to the others: SIGKILL\n", done.stderr


def test_a_child_whose_parent_is_gone_before_it_asks_to_end_with_it_ends():
    done = subprocess.run(
        [sys.executable, "-c", "from neutreno.stopping import die_with; die_with(1 << 22); print('went on')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL and not done.stdout
