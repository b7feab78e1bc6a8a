"""The command lines: a module with ``main(arguments)``, which returns the exit code, is a command of ``neutreno``."""

from __future__ import annotations

import argparse
import functools
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from neutreno.errors import explain, is_first_process, report
from neutreno.files import make_folder
from neutreno.stopping import interruptible

OUTPUTS = Path("outputs")  # that of runs
WIDTH = 80  # columns of a terminal


def command(function: Callable[[Sequence[str]], int | None]) -> Callable[[Sequence[str] | None], int]:
    """Decorates a ``main``: it gets the words that were typed, and an error is reported and gives the exit code."""

    @functools.wraps(function)
    def main(arguments: Sequence[str] | None = None) -> int:
        with interruptible() as interrupted:
            try:
                return function(sys.argv[1:] if arguments is None else arguments) or 0
            except KeyboardInterrupt as error:
                return report(error)
            except Exception as error:
                return report(KeyboardInterrupt() if interrupted and explain(error) is None else error)

    return main


def announce(what: str) -> None:
    """Say at once what was begun; libraries take seconds to import."""
    if is_first_process():
        print(what, flush=True)


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help fills the paragraphs of ``description``, and shows indented lines as they are written."""
    parts = [part if part.startswith(" ") else textwrap.fill(part, WIDTH) for part in description.split("\n\n")]
    as_written = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"neutreno {name}", description="\n\n".join(parts), formatter_class=as_written)


def add_output(parser: argparse.ArgumentParser, name: str, metavar: str) -> None:
    """``--output``; :func:`output_of` says where that is."""
    parser.add_argument("--output", default=str(OUTPUTS / name), metavar=metavar, help="default: %(default)s")


def output_of(arguments: argparse.Namespace) -> str:
    """Where to write; makes the folder of the default, so that nothing lands where the command was typed."""
    if Path(arguments.output).parent == OUTPUTS:
        make_folder(OUTPUTS)
    return arguments.output


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    said = "config files of your own package (repeatable)"
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=said)


def add_trust(parser: argparse.ArgumentParser) -> None:
    said = "a package besides neutreno whose classes the runs may name (repeatable)"
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=said)


def add_trust_readers(parser: argparse.ArgumentParser) -> None:
    said = "read data as the runs say, by their data.reader and data.reader_args, which may run code"
    parser.add_argument("--trust-readers", action="store_true", help=said)


def add_font(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--font", metavar="NAME", help="of the figure: serif, sans-serif or an installed one")
