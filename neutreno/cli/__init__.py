"""The command lines: a module with ``main(arguments)``, which returns the exit code, is a command of ``neutreno``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from neutreno.tasks.base import Task


def parser_of(command: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows ``description`` as it is written."""
    return argparse.ArgumentParser(
        f"neutreno {command}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="config files of your own package (repeatable)",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="a package besides neutreno whose classes the runs may name (repeatable)",
    )  # fmt: skip


def write_report(task: Task, folder: Path, prefix: str = "") -> list[Path]:
    """The files of what a task's last evaluation leaves to look at beside its metrics."""
    from neutreno.config.building import locate

    left = task.left() if task.writer is not None else None
    return [] if left is None else locate(task.writer)(left, folder, prefix)
