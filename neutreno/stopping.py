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

GRACE_S = 5.0  # how long a process may take to say what stopped it
STOPS = (signal.SIGTERM, signal.SIGINT)
STARTED_BY = "NEUTRENO_STARTED_BY"  # environment variable: the process that started this one as a rank of its run
_watched: set[int] = set()  # this process, if a thread watches its signals


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
    if "LOCAL_RANK" in os.environ and (parent := os.environ.get(STARTED_BY)):
        die_with(int(parent))


@contextmanager
def stopping(kill: Callable[[int], None] | None) -> Iterator[None]:
    """Within it, SIGTERM is an interruption like SIGINT: it raises ``KeyboardInterrupt``.

    Args:
        kill: for a run of several processes: sends a signal to those that this one started, which end at once; and
            this one ends after :data:`GRACE_S`, even if it waits for one that is gone. None: a single process.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup and shells in the background ask for
            signal.signal(number, interrupt)
    if kill is not None:
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(read, kill), name="stopping", daemon=True).start()
        _watched.add(os.getpid())
    try:
        yield
        if kill is not None:  # else the thread sees to it that this process ends
            signal.set_wakeup_fd(-1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(signals: int, kill: Callable[[int], None]) -> None:
    while (number := os.read(signals, 1)[0]) not in STOPS:
        pass
    kill(signal.SIGKILL)
    time.sleep(GRACE_S)
    os._exit(128 + number)


def _alone() -> None:
    """In a forked process, such as a loading worker: its signals are its own."""
    if _watched:
        _watched.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_alone)
