"""The command lines: a module with ``main(arguments)``, which returns the exit code, is a command of ``neutreno``."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence

from neutreno.errors import explain, report
from neutreno.stopping import interruptible


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


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows ``description`` as it is written."""
    as_written = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"neutreno {name}", description=description, formatter_class=as_written)


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
