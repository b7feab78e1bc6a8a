"""A user's mistake, told in one line; a bug, in its traceback."""

import math
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_BROKEN = re.compile("Broken pipe|Connection reset|got 0 bytes")  # between processes that had begun to talk


class InputError(ValueError):
    """What the user gave cannot be used: says what, where, and what to do, in one line (for several problems, in
    several).

    The command lines print each as ``error: …`` and exit with 2; library users may catch it as a ``ValueError``. Every
    other exception is a bug, ours or that of a class a config names, and keeps its traceback.
    """


class Together:
    """Collects what several steps refuse, so that it is told at once: ``with together: STEP`` keeps the lines of an
    :class:`InputError` in ``problems``, and goes on behind it."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, InputError):
            self.problems += str(error).splitlines()
        return isinstance(error, InputError)

    def refuse(self) -> None:
        """
        Raises:
            InputError: a line for each problem, where there are any.
        """
        if self.problems:
            raise InputError("\n".join(dict.fromkeys(self.problems)))


@contextmanager
def needing(what: str, library: str, extra: str) -> Iterator[None]:
    """Around what uses a ``library`` that is installed only with an ``extra`` of this package.

    Raises:
        InputError: it is not there; says what needs it, and how to install it.
    """
    try:
        yield
    except ImportError as error:
        why = f" ({one_line(error)})" if error.name else ""  # Lightning's gives another advice
        raise InputError(f"{what} needs {library}{why}: pip install 'neutreno[{extra}]'") from error


def check_number(name: str, value: object, least: float = 0, most: float = math.inf, integer: bool = False) -> None:
    """Refuse what is no finite (or whole) number between ``least`` and ``most``.

    Raises:
        InputError: names the setting and what it should be.
    """
    kind = int if integer else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most or abs(value) == math.inf:
        limit = f"≥ {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InputError(f"{name}={value!r} is not a {'whole' if integer else 'finite'} number {limit}")


def one_line(text: object) -> str:
    """``text`` of anybody's as one line that any terminal and file takes: what is not printable, bytes that are not
    UTF-8 among it, is spelled out; a line break is a space."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else ascii(c)[1:-1] for c in str(text))


def explain(error: BaseException) -> str | None:
    """What an :class:`InputError` says, or the loss of another process means; None for every other exception."""
    if not isinstance(error, InputError):
        lost = _talking() and re.search(r"gloo.* by peer", str(error))
        lost = lost or (isinstance(error, _torch("DistNetworkError", ())) and _BROKEN.search(str(error)))
        return "another process of this run ended; see its output" if lost else None
    text = str(error).strip()
    if "Original Traceback" in text:  # a loading worker hands its error over as text that ends with the original line
        return text.splitlines()[-1].removeprefix("neutreno.errors.InputError: ")
    return text


def _talking() -> bool:
    """Whether the processes of a run share out work by now."""
    return _torch("is_initialized", bool)()


def _torch(name: str, default: Any) -> Any:
    """What ``torch.distributed`` has under a name, if it has been imported."""
    return getattr(sys.modules.get("torch.distributed"), name, default)


def is_first_process() -> bool:
    """Whether this process is the first of its run, or the only one, by what started it."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return ranks[:1] in ([], ["0"])


def report(error: BaseException) -> int:
    """Say ``error`` on stderr, in a line each where it is a user's mistake, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print(f"interrupted; {error}" if str(error) else "interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):  # who read along, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    said = explain(error)
    if said is None:
        traceback.print_exception(error)
        return 1
    alike = isinstance(error, InputError) and not _talking()  # before they share out work, all say the same
    if is_first_process() or not alike:
        for line in said.splitlines():
            print(f"error: {line}", file=sys.stderr)
    return 2
