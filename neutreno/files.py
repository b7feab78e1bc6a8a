"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from neutreno.errors import InputError


def make_folder(path: Path, exist_ok: bool = True, remedy: str = "choose another output_dir=FOLDER") -> None:
    """
    Raises:
        FileExistsError: it is there and ``exist_ok`` is False.
        InputError: the operating system does not let us.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_dir():
            raise
        raise InputError(f"cannot make {path}: {error.strerror}; {remedy}") from error


UNFINISHED = ".unfinished"  # a killed write leaves NAME.unfinished, never a broken NAME


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write, which takes ``path``'s place at the end: written beside it, synced, then renamed.

    So a kill or a full disk never costs what was there before.

    Raises:
        InputError: the operating system failed the write (no space, no permission).
    """
    path = Path(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    if not path.parent.is_dir():
        raise InputError(f"could not write {path}: no folder {path.parent}")
    try:
        with open(unfinished, mode, **({} if "b" in mode else {"newline": "", "encoding": "utf-8"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        reason = _system_reason(error) if isinstance(error, Exception) else None
        if reason is None:
            raise
        raise InputError(f"could not write {path}: {reason}; what was there before is intact") from error


def _system_reason(error: BaseException) -> str | None:
    """What the operating system said, also where torch wrapped it into another error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen.strerror or str(seen)
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and ("write" in str(error) or "unexpected pos" in str(error)):
        return "the disk is full or the file too large"
    return None
