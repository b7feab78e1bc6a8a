"""What a case of torture may end in, and what its process may say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support import Forked, deaf_to_nothing
from support.same_run import BUSY

LIMIT_S = 90  # of one process; the slowest ends within 20 s on a busy machine
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}  # as Python's audit hooks call them

SHORT_RUN = [*BUSY, "trainer.max_epochs=2", "data.batch_size=300", "name=x"]  # of a second


class SilentlyWrong(AssertionError):
    """It said that all is well, and it is not."""


class Hang(AssertionError):
    """It did not end within its limit."""


def ended(process: Forked, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    """What a process said when it ended.

    Raises:
        Hang: it did not end within ``limit_s``; it is killed.
    """
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        raise Hang(f"{' '.join(process.args)}: still running after {limit_s} s; {process.finish().stderr}") from None
    return process.finish()


def end_together(processes: list[Forked]) -> list[subprocess.CompletedProcess[str]]:
    """What the processes of a run said; where one fails, the others are killed, as torchrun does it.

    Raises:
        Hang: they did not end within :data:`LIMIT_S`; all are killed.
    """
    until = time.monotonic() + LIMIT_S
    while not any(process.poll() for process in processes) and any(process.poll() is None for process in processes):
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    alive = [process for process in processes if process.poll() is None]
    hang = bool(alive) and time.monotonic() > until
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
    done = [process.finish() for process in processes]
    if hang:
        said = "; ".join(one.stderr for one in done)
        raise Hang(f"{' '.join(processes[0].args)}: {len(alive)} still running after {LIMIT_S} s; {said}")
    return done


def assert_no_traceback(done: subprocess.CompletedProcess[str]) -> None:
    assert "Traceback" not in done.stderr, done.stderr


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    """A line for each mistake and nothing else; a mistake that is taken is silently wrong."""
    assert_no_traceback(done)
    if done.returncode == 0:
        raise SilentlyWrong(f"taken: {done.args}; {done.stdout}")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines and all(line.startswith("error: ") for line in lines), done.stderr


class FileOperations:
    """A ``setup`` that counts what a run does to files below ``root``, and sends it a signal at one of these points.

    They are before a file is opened to write, renamed, removed or synced, before a folder is made, and after a sync or
    a rename.

    Args:
        log: takes a line for each point. point: from 1; 0 sends nothing.
        half: count only syncs, and cut the file that is being written to half of its length before.
    """

    def __init__(self, root: Path, log: Path, point: int = 0, number: int = signal.SIGKILL, half: bool = False) -> None:
        self.root, self.log, self.point, self.number, self.half = str(root), log, point, number, half

    def __call__(self) -> None:
        deaf_to_nothing()
        self.process, self.count, self.lines = os.getpid(), 0, os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.fsync, os.replace = self._around(os.fsync), self._around(os.replace)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self._reached(event, arguments[0])

    def _around(self, function: Callable) -> Callable:
        def around(first, *more):
            place = f"/proc/self/fd/{first}" if isinstance(first, int) else None
            name = os.readlink(place) if place else more[0]
            if place:
                self._reached("fsync", name, first)
            function(first, *more)
            self._reached(f"after {function.__name__}", name)

        return around

    def _reached(self, event: str, name: object, file: int | None = None) -> None:
        """Loading workers, which are forks, do not count."""
        if isinstance(name, int) or os.getpid() != self.process or not os.path.abspath(name).startswith(self.root):
            return
        os.write(self.lines, f"{event} {os.path.basename(name)}\n".encode())
        if self.half and file is None:
            return
        self.count += 1
        if self.count == self.point:
            if self.half:
                os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(self.process, self.number)


class Announced:
    """A ``setup`` that says when the run starts, so that a signal meets it and not the fork: see :meth:`wait`."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def __call__(self) -> None:
        deaf_to_nothing()
        os.write(self.writing, b".")

    def wait(self, seconds: float) -> None:
        """``seconds`` after the run started."""
        os.read(self.reading, 1)
        os.close(self.reading), os.close(self.writing)
        time.sleep(seconds)
