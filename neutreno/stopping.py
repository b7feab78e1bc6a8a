"""How the processes of a run end together: on a signal, or because one of them died.

A process that waits for another in a collective operation runs no Python, so no handler of a signal either; Lightning's
own handler even begins another such operation. So a thread watches, to which the operating system tells each signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_S = 5.0  # how long a process may take to say what stopped it
STOPS = (signal.SIGTERM, signal.SIGINT)
STARTED_BY = "NEUTRENO_STARTED_BY"  # environment variable: the process that starts the other ranks of its run


def die_with(parent: int) -> None:
    """Have this process killed when ``parent``, which started it, ends in whatever way.

    Also if it ended before this was asked for. On Linux; elsewhere the run folder's lock keeps a second process out.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def die_with_rank_zero() -> None:
    """:func:`die_with` the process of rank 0 in those that it started; does nothing in others."""
    parent = os.environ.pop(STARTED_BY, None)
    if parent is not None and int(os.environ.get("LOCAL_RANK", 0)) and "TORCHELASTIC_RUN_ID" not in os.environ:
        die_with(int(parent))


class Stop:
    """The first signal that came to stop this process, if one did, as ``number``."""

    number: int | None = None
    since = 0.0
    of_children: Any = None  # the handler of SIGCHLD until then

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler. ``timeout`` and others send the signal twice: what was begun at the first is not cut short; nor
        by torch's handler of SIGCHLD, which raises an error for a loading worker that got the signal, too."""
        first = self.number is None
        if first or time.monotonic() - self.since > GRACE_S:
            self.number, self.since = number, time.monotonic()
            if first:
                self.of_children = signal.signal(signal.SIGCHLD, lambda *_: None)  # a pending one finds a handler
            raise self.interruption()

    def interruption(self) -> KeyboardInterrupt:
        return KeyboardInterrupt(signal.Signals(self.number).name)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Within it SIGINT does what it did, and is noted in the list it gives.

    A library may make another error of a ``KeyboardInterrupt``; while C code imports a module, Python forgets it, and
    the import fails as if the library were broken.
    """
    came: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job ignores it
    if not own or threading.current_thread() is not threading.main_thread():
        yield came
        return
    signal.signal(signal.SIGINT, take)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_stops: list[Stop] = []  # of this process


@contextmanager
def stopping(kill: Callable[[int], None] | None) -> Iterator[Stop]:
    """Within it, SIGTERM is an interruption like SIGINT, and it ends in ``KeyboardInterrupt``, whatever comes of it.

    Lightning makes a ``SystemExit`` of an interruption; a loading worker that gets the signal, too, makes it an error.

    Args:
        kill: for a run of several processes: sends a signal to those that this one started, which end at once; and
            this one ends after :data:`GRACE_S`, even if it waits for one that is gone. None: a single process.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPS}  # a shell has background jobs ignore SIGINT
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop.take)
    _stops.append(stop)
    disarm = _watch(kill) if kill is not None else lambda: None
    try:
        try:
            yield stop
        except BaseException as error:
            if stop.number is None or isinstance(error, KeyboardInterrupt):
                raise
            raise stop.interruption() from error
        if stop.number is not None:  # Python swallows what is raised while an object is deleted
            raise stop.interruption()
    finally:
        if stop.number is None:  # else the thread sees to it that this process ends
            disarm()
        _stops.remove(stop)
        if stop.number is not None:
            before[signal.SIGCHLD] = stop.of_children or signal.SIG_DFL
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(kill: Callable[[int], None]) -> Callable[[], None]:
    """Begin to watch the signals of this process; gives what ends that."""

    def watch() -> None:
        while said := os.read(read, 1):
            if said[0] in STOPS:
                kill(signal.SIGKILL)
                time.sleep(GRACE_S)
                os._exit(128 + said[0])
        os.close(read)

    def disarm() -> None:
        os.environ.pop(STARTED_BY, None)
        signal.set_wakeup_fd(before)
        os.close(write)

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    os.environ[STARTED_BY] = str(os.getpid())
    threading.Thread(target=watch, name="stopping", daemon=True).start()
    return disarm


def _alone() -> None:
    """In a forked process, such as a loading worker: its signals are its own."""
    if _stops:
        _stops.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_alone)
