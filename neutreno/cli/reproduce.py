"""Reproduce a table: every row × seed that is not finished yet, then the table itself.

    neutreno reproduce small                                        three tasks on embedded data, no download
    neutreno reproduce small --dry-run                              what there is to do
    neutreno reproduce lab launcher.at_once=2                       every cure of over-smoothing, on digits
    neutreno reproduce lab data=cifar10 data.root=CIFAR10 trainer=gpu
    neutreno reproduce table1 --seeds 3 data.root=IMAGENET trainer=ddp
    neutreno reproduce table3 data.root=WIKITEXT103 trainer=gpu launcher.at_once=8      a run on each GPU
    neutreno reproduce table2 data.root=ADE20K trainer=gpu launcher=slurm launcher.parameters.slurm_partition=P

Rows are the files of experiment/TABLE in the project's configs and in every --config-dir; `lab` shows effective rank,
parameters and the time of a step as well, relative to its baseline's and measured here once the runs are done.
Interrupted runs are continued: the same command goes on after a kill.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from neutreno.cli import add_config_dir, parser_of
from neutreno.cli.hydra_main import split_config_dirs
from neutreno.errors import InputError, report

if TYPE_CHECKING:
    from neutreno.config.composing import Composed


def tables_in(config_dirs: Sequence[str]) -> dict[str, list[str]]:
    """The rows of every table, ``TABLE/ROW``: files of ``experiment/TABLE``, the project's and those of a package's."""
    from neutreno.config.words import options_in

    found: dict[str, list[str]] = {}
    for name in options_in("experiment", config_dirs):
        if "/" in name:
            found.setdefault(name.partition("/")[0], []).append(name)
    return found


def composed_of(words: list[str], config_dirs: Sequence[str]) -> Composed:
    """
    Raises:
        InputError: all that is wrong with the words.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from neutreno.config.composing import compose
    from neutreno.config.words import check_choices, explained

    check_choices(words, config_dirs)
    try:
        return compose(words, config_dirs=config_dirs)
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, words, config_dirs=config_dirs) from error


def in_order(rows: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """Rows at the baseline first; rows that start from weights, which may be those of another row, last."""
    from neutreno.variants import at_baseline

    def place(row: str) -> tuple[bool, bool]:
        composed = composed_of([f"experiment={row}"], config_dirs)
        starts = any(composed.config.model.get(key) is not None for key in ("weights", "encoder_weights"))
        return starts, not at_baseline(composed)

    return sorted(rows, key=place)


def plan_runs(rows: Sequence[str], seeds: int, overrides: list[str], config_dirs: Sequence[str]):
    """The jobs, seed by seed; the config that says how to launch them; the packages that their models name.

    Raises:
        InputError: all that is wrong with ``overrides``.
    """
    from neutreno.launchers import plan
    from neutreno.runs import flat

    jobs, packages = [], set()
    rows = in_order(rows, config_dirs)
    for seed in range(seeds):
        for row in rows:
            composed = composed_of([f"experiment={row}", f"seed={seed}", *overrides], config_dirs)
            jobs.append(job := plan(composed))
            if job.state in ("to run", "to resume", "finished"):
                named = {v for k, v in flat(composed.settings["model"]).items() if k.endswith("_target_")}
                packages |= {path.partition(".")[0] for path in named}
    return jobs, composed.config, sorted(packages)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("reproduce", __doc__)
    parser.add_argument("table", metavar="TABLE", help=f"of {', '.join(tables_in([]))}, or of a package of yours")
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each row, with seeds 0, 1, …; default %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is left to do; run nothing")
    add_config_dir(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run, as after train.py")
    arguments = parser.parse_intermixed_args(arguments)
    try:
        _, config_dirs = split_config_dirs([f"--config-dir={folder}" for folder in arguments.config_dir])
        tables = tables_in(config_dirs)
        if arguments.table not in tables:
            raise InputError(f"no table {arguments.table}; there are {', '.join(tables)}")
        if arguments.seeds < 1:
            raise InputError(f"--seeds {arguments.seeds}: at least one")
        if fixed := [o for o in arguments.overrides if o.partition("=")[0] in ("seed", "name", "experiment")]:
            raise InputError(f"{' '.join(fixed)}: the table sets it for every run; leave it out")
        jobs, config, packages = plan_runs(tables[arguments.table], arguments.seeds, arguments.overrides, config_dirs)
        if arguments.dry_run:
            for job in jobs:
                print(f"{job.state:10} neutreno {shlex.join(job.command[3:])}")
            left = sum(job.state != "finished" for job in jobs)
            print(f"{len(jobs) - left} of {len(jobs)} runs finished, {left} left")
            return 0
        from neutreno.launchers import launch

        failed = launch(jobs, config)
        refused = [job for job, _ in failed]
        finished = [job.run.path for job in jobs if job not in refused and job.run.status == "finished"]
        if finished:
            from neutreno.reports.reading import read_runs
            from neutreno.reports.tables import print_tables

            columns = []
            if arguments.table == "lab":
                from neutreno.benchmarks.lab import step_time

                time = partial(step_time, trust=packages)  # these are our own runs
                columns = ["effective_rank", "parameters", ("step time / baseline (quartiles)", time)]
            runs, _ = read_runs(finished)
            for task in dict.fromkeys(run.task for run in runs):
                print(f"\n{task}\n")
                print_tables([run.path for run in runs if run.task == task], columns=columns, config_dirs=config_dirs)
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
