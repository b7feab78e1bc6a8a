"""Reproduce a table: run every row × seed that is not finished yet, then print the table.

    neutreno reproduce small            three tasks on embedded data
    neutreno reproduce small --dry-run  list what is left to do
    neutreno reproduce lab              every variant, on digits
    neutreno reproduce lab data=cifar10 data.root=CIFAR10 trainer=gpu
    neutreno reproduce table1 --seeds 3 data.root=IMAGENET trainer=ddp
    neutreno reproduce table3 data.root=WIKITEXT103 trainer=gpu
            launcher.max_parallel=8     one run per GPU
    neutreno reproduce table2 data.root=ADE20K trainer=gpu launcher=slurm
            launcher.parameters.slurm_partition=P

A table is a file, table/NAME.yaml in the project's configs and in every --config-dir; each of its rows is a line.
Interrupted runs are resumed: after a kill, repeat the command. `neutreno tables NAME` prints the table again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from neutreno import console
from neutreno.cli import add_config_dir, announce, command, parser_of
from neutreno.cli.hydra_main import split_config_dirs
from neutreno.config.words import key_of
from neutreno.errors import InputError
from neutreno.sweep import Job, launch, plan
from neutreno.tablefiles import OF_RUNS, Table, read_table, tables_in
from neutreno.variants import at_baseline

LINE_EVERY_S = 10.0


def plan_runs(table: Table, seeds: Sequence[int], overrides: Sequence[str]) -> tuple[list[Job], DictConfig]:
    """The jobs in the order in which they are started, and a config that says how to launch them.

    What others need comes first, seed by seed; of the free ones, rows at the baseline.

    Raises:
        InputError: a row or ``overrides`` cannot be used.
    """
    from neutreno.oversmoothing.metrics import named_metrics, probed
    from neutreno.reports.tables import check_columns

    first = {label: table.check(label, overrides) for label in table.rows}
    listed = (probed(composed.settings["probe"]["metrics"]) for composed in first.values())
    measured = {metric.name for metrics in listed for metric in named_metrics(metrics)}
    try:
        check_columns(table.columns if table.whole else (), measured.__contains__)
    except InputError as error:
        raise InputError(f"{table.file}: columns: {error}") from error
    labels = sorted(table.rows, key=lambda label: (table.level(label), not at_baseline(first[label])))
    jobs: dict[tuple[str, int], Job] = {}
    for label, seed in sorted(((label, s) for s in seeds for label in labels), key=lambda r: table.level(r[0])):
        jobs[label, seed] = job = plan(table.compose(label, seed, overrides) if seed else first[label])
        needed = table.needed(label, overrides).values()
        job.needs = [jobs[row, seed] for row in needed if row in table.rows]
    places: dict[Path, str] = {}
    for (label, _), job in jobs.items():
        if (other := places.setdefault(job.run.path, label)) != label:
            typed = f" with {' '.join(overrides)}" if overrides else ""
            said = f"{table.file}: the rows {other} and {label} are the same run{typed}"
            raise InputError(f"{said}; remove one, or the word that makes them alike")
    return list(jobs.values()), first[labels[0]].config


def unfinished_elsewhere(table: Table, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Other tables with rows that this one needs and that are not finished, and a line for each such row."""
    found: dict[str, list[str]] = {}
    needs = [(label, row) for label in table.rows for row in table.needed(label, overrides).values()]
    for label, needed in [(label, row) for label, row in needs if row not in table.rows]:
        runs = [table.run_of(needed, seed, overrides) for seed in seeds]
        if left := [run for run in runs if run.status != "finished"]:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            said = f"{label} needs {needed}, not finished in {left[0].path}{more}"
            found.setdefault(needed.partition("/")[0], []).append(said)
    return found


def seeds_of(text: str) -> range:
    """``5``: so many, from 0 on; ``5-9``: from the first to the last.

    Raises:
        InputError: it is neither, or there are none.
    """
    first, dash, last = text.partition("-")
    if not all(number.isdecimal() for number in (first, last or "0")) or (dash and not last):
        raise InputError(f"--seeds {text}: a number of seeds, such as 5, or the first and the last, such as 5-9")
    seeds = range(int(first), int(last) + 1) if dash else range(int(first))
    if not seeds:
        raise InputError(f"--seeds {text}: at least one")
    return seeds


@command
def main(arguments: Sequence[str]) -> int | None:
    parser = parser_of("reproduce", __doc__)
    parser.add_argument("table", metavar="TABLE", help=f"of {', '.join(tables_in())}, or one of your package")
    parser.add_argument("--seeds", default="3", help="runs of each row: 5, with seeds 0 … 4, or 5-9; default 3")
    parser.add_argument("--rows", metavar="PATTERN", default="*", help="only rows that match, such as 'cora *'")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is left to do, run nothing")
    add_config_dir(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run, as after train.py")
    a = parser.parse_intermixed_args(arguments)
    _, config_dirs = split_config_dirs([f"--config-dir={folder}" for folder in a.config_dir])
    table = read_table(a.table, config_dirs).only(a.rows)
    seeds = seeds_of(a.seeds)
    if fixed := [o for o in a.overrides if key_of(o) in (*OF_RUNS, "experiment")]:
        raise InputError(f"{' '.join(fixed)}: the table sets it for every run; leave it out")
    if not a.dry_run:
        announce(f"table {a.table}: checking {len(table.rows) * len(seeds)} runs")
    with nullcontext() if a.dry_run else console.heartbeat(LINE_EVERY_S):  # the plan's lines stand alone
        console.doing("checking the runs")
        jobs, config = plan_runs(table, seeds, a.overrides)
    first = unfinished_elsewhere(table, seeds, a.overrides)
    commands = {name: f"neutreno reproduce {name} --seeds {a.seeds}" for name in first}
    if a.dry_run:
        for name, said in first.items():
            print(f"first      {commands[name]}    ({'; '.join(said)})")
        for job in jobs:
            print(f"{job.reason or job.state:10} neutreno {shlex.join(job.command[3:])}")
        left = sum(job.state != "finished" for job in jobs)
        print(f"{len(jobs) - left} of {len(jobs)} runs finished, {left} left")
        return 0
    if first:
        said = "; ".join(line for lines in first.values() for line in lines)
        raise InputError(f"{said}; run first: {' and '.join(commands.values())}")
    from neutreno.reports.tables import print_tables

    return 2 if launch(jobs, config, lambda runs: print_tables(runs, table, config_dirs=config_dirs)) else 0
