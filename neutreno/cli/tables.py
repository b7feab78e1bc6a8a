"""Tables of results: mean ± standard deviation over seeds, difference to the baseline, the paper's figures.

    neutreno tables lab      a table file: its rows, from all runs in outputs
    neutreno tables table1 outputs/imagenet-* --format latex > table1.tex
    neutreno tables outputs  every run of a folder
    neutreno tables outputs/digits-* --metric val/top1 --paired
    neutreno tables outputs/digits-* --column effective_rank --column parameters

Differences are to the baseline that the model declares (softmax attention, or λ̃ = 0) on the same data and model, with
Welch's 95 % interval, or the interval of paired differences between runs with the same seed; p-values are Holm's over
the rows of a table. Times to an event (escape_step/cosine) are counted and compared by a log-rank test. Unfinished runs
are listed but never averaged; each task has a separate table.
"""

import os
from collections.abc import Sequence

from neutreno.cli import add_config_dir, add_trust, command, parser_of
from neutreno.cli.hydra_main import split_config_dirs
from neutreno.config.words import close
from neutreno.errors import InputError
from neutreno.tablefiles import read_table, tables_in


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("tables", __doc__)
    said = "run folder, or a folder of them; or the name of a table, followed by folders (default: outputs)"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=said)
    parser.add_argument("--metric", action="append", metavar="NAME", help="column to show, e.g. test/top1 (repeatable)")
    parser.add_argument("--format", default="md", choices=["md", "latex", "csv"])
    parser.add_argument("--paired", action="store_true", help="pair runs with the same seed")
    parser.add_argument("--baseline", metavar="TEXT", help="the row to compare all others with, or part of its name")
    said = "further column: parameters, a metric of probe.metrics after the last layer, or a function's dotted path"
    parser.add_argument("--column", action="append", default=[], metavar="NAME", help=f"{said} (repeatable)")
    add_trust(parser)
    add_config_dir(parser)
    a = parser.parse_args(arguments)
    from neutreno.reports.tables import print_tables

    _, config_dirs = split_config_dirs([f"--config-dir={folder}" for folder in a.config_dir])
    table, folders, first, known = None, a.runs, a.runs[0], tables_in(config_dirs)
    if first in known:
        table, folders = read_table(first, config_dirs), a.runs[1:] or ["outputs"]
    elif "/" not in first and not os.path.exists(first):
        near, there = close(first, known, ""), ", ".join(known)
        raise InputError(f"{first}: no such folder or table{near}; tables: {there}")
    print_tables(folders, table, a.metric, a.format, a.paired, a.baseline, a.column, config_dirs, a.trust)
