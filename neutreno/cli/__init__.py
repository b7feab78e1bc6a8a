"""The command lines: a module with ``main(arguments)``, which returns the exit code, is a command of ``neutreno``."""

from __future__ import annotations

import argparse


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
