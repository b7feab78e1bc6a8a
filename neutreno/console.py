"""What a person sees of a run: a quiet terminal, everything else in ``train.log``."""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from neutreno.errors import is_first_process

# Said by libraries, most of it by Lightning of every run of ours, with nothing to be done about it.
_KNOWN = (
    "does not have many workers",
    "in eval mode at the start of training",
    "is smaller than the logging interval",
    "Checkpoint directory",
    "isinstance(treespec, LeafSpec)",
    "Consider setting `persistent_workers",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "was configured so `ckpt_path=",
    "to accumulate the metric across devices",  # the metrics have done so
    "Sparse CSR tensor support is in beta state",
    "Palette images with Transparency expressed in bytes",  # Pillow's, as the next two, of images that it reads well
    "Corrupt EXIF data",
    "Metadata Warning, tag",
    "FSDP2-wrapped module (FSDPBlock) returned a view tensor",  # V_0; nothing works in place on it
)
_LIGHTNINGS = ("lightning", "lightning.pytorch", "lightning.fabric")


def quiet(rank: int, wait: bool = False) -> None:
    """Send the libraries' words to the log; show warnings once, without the known ones; silence other processes.

    Args:
        wait: keep what is to be shown until :func:`begin`, so that a refusal stands alone.
    """
    for name in _LIGHTNINGS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("timm.scheduler").setLevel(logging.ERROR)  # warns of a run of one step
    for known in _KNOWN:
        warnings.filterwarnings("ignore", message=f"(?s).*{re.escape(known)}")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger()
    nothing = logging.CRITICAL + 1  # brings it to the terminal before
    waiting = logging.handlers.MemoryHandler(10**6, nothing)  # without a target, nor does the end of Python
    waiting.terminal = terminal
    waiting.setLevel(logging.WARNING)
    root.handlers = [waiting if wait else terminal] if rank == 0 else [logging.NullHandler()]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk is said once, not by every line that could not be logged
    warnings.formatwarning = lambda message, category, *rest, **more: " ".join(str(message).split())


def begin() -> None:
    """Show what has waited, and from now on all at once."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, logging.handlers.MemoryHandler):
            handler.setTarget(handler.terminal)
            handler.flush()
            root.handlers = [handler.terminal if one is handler else one for one in root.handlers]


def log_to(file: Path) -> None:
    """Append everything to ``file`` from now on, and show what has waited."""
    begin()
    handler = logging.FileHandler(file)
    handler.addFilter(lambda record: "Tip:" not in record.getMessage())  # Lightning advertises
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


class _Doing:
    """What this process does, since when, how far it is, and when something was last said of it."""

    what, since, of, said = "", 0.0, "", 0.0


_doing = _Doing()


def doing(what: str, of: str = "") -> None:
    """Note what goes on from now on, for :func:`heartbeat`; ``of``: how far it is."""
    now = time.monotonic()
    if what != _doing.what:
        _doing.what, _doing.since, _doing.said = what, now, now
    _doing.of = of


def said() -> None:
    """Note that something has just been said of it."""
    _doing.said = time.monotonic()


@contextmanager
def heartbeat(every_s: float) -> Iterator[None]:
    """Within it a line says what goes on, and for how long, wherever nothing else has said so for ``every_s`` seconds;
    in the first process alone."""
    if not is_first_process():
        yield
        return
    ended, every_s = threading.Event(), max(every_s, 1.0)

    def beat() -> None:
        while not ended.wait(every_s / 4):
            now = time.monotonic()
            if _doing.what and now - _doing.said >= every_s:
                how_long = f"{_doing.what} for {tqdm.format_interval(now - _doing.since)}"
                try:
                    with tqdm.external_write_mode():  # a bar makes room
                        print(", ".join(filter(None, [how_long, _doing.of])), flush=True)
                except (OSError, ValueError):  # nobody reads along, or no space: the run itself will say so
                    return
                said()

    _doing.what = ""
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def lent() -> Iterator[None]:
    """For what runs in somebody's process: at its end logging and warnings are as they were, and ``train.log`` is
    closed."""
    loggers = [logging.getLogger(), *map(logging.getLogger, (*_LIGHTNINGS, "timm.scheduler"))]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    raises, write = logging.raiseExceptions, warnings.formatwarning
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logging.captureWarnings(False)
            logging.raiseExceptions, warnings.formatwarning = raises, write
            for logger, handlers, level, propagate in before:
                for handler in {*logger.handlers} - {*handlers}:
                    handler.close()
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)
