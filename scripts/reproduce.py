"""Reproduce a table: every row × seed that is not finished yet, then the table itself.

    python scripts/reproduce.py small                                        three tasks on embedded data, no download
    python scripts/reproduce.py small --dry-run                              what there is to do
    python scripts/reproduce.py lab launcher.at_once=2                       every cure of over-smoothing, on digits
    python scripts/reproduce.py lab data=cifar10 data.root=CIFAR10 trainer=gpu
    python scripts/reproduce.py table1 --seeds 3 data.root=IMAGENET trainer=ddp
    python scripts/reproduce.py table3 data.root=WIKITEXT103 trainer=gpu launcher.at_once=8      a run on each GPU
    python scripts/reproduce.py table2 data.root=ADE20K trainer=gpu launcher=slurm launcher.parameters.slurm_partition=P

Rows are the files of configs/experiment/TABLE; `lab` shows effective rank, parameters and the time of a step as well,
relative to softmax and measured here once the runs are done. Interrupted runs are continued: the same command goes on
after a kill.
"""

import argparse
import shlex
import sys
from pathlib import Path

from neutreno.errors import InputError, report

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def experiments(table: str) -> list[str]:
    """The rows of a table: plain softmax first, what starts from its weights last."""
    files = sorted((CONFIGS / "experiment" / table).glob("*.yaml"))
    names = [f"{table}/{file.stem}" for file in files]
    return sorted(names, key=lambda name: (not name.endswith("softmax"), "adaptation" in name))


def plan_runs(table: str, seeds: int, overrides: list[str]):
    """The jobs, seed by seed, and the config that says how to launch them."""
    from hydra import compose, initialize_config_dir

    from neutreno.launchers import plan

    jobs = []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for seed in range(seeds):
            for experiment in experiments(table):
                given = [f"experiment={experiment}", f"seed={seed}", *overrides]
                config = compose("train", overrides=given, return_hydra_config=True)
                choices = dict(config.hydra.runtime.choices)
                config = compose("train", overrides=given)
                jobs.append(plan(config, choices, given))
    return jobs, config


def main() -> int:
    tables = sorted(p.name for p in (CONFIGS / "experiment").iterdir() if p.is_dir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help=f"of {', '.join(tables)}")
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs of each row, with seeds 0, 1, …; default %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and what is left to do; run nothing")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run, as after train.py")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.table not in tables:
            raise InputError(f"no table {arguments.table}; there are {', '.join(tables)}")
        if arguments.seeds < 1:
            raise InputError(f"--seeds {arguments.seeds}: at least one")
        if fixed := [o for o in arguments.overrides if o.partition("=")[0] in ("seed", "name", "experiment")]:
            raise InputError(f"{' '.join(fixed)}: the table sets it for every run; leave it out")
        jobs, config = plan_runs(arguments.table, arguments.seeds, arguments.overrides)
        if arguments.dry_run:
            for job in jobs:
                print(f"{job.state:10} python train.py {shlex.join(job.overrides)}")
            left = sum(job.state != "finished" for job in jobs)
            print(f"{len(jobs) - left} of {len(jobs)} runs finished, {left} left")
            return 0
        from neutreno.launchers import launch

        failed = launch(jobs, config)
        finished = [job.run.path for job in jobs if job.run.status == "finished"]
        if finished:
            from neutreno.reports.reading import read_runs
            from neutreno.reports.tables import print_tables

            columns = []
            if arguments.table == "lab":
                from benchmarks.lab import step_time

                columns = ["effective_rank", "parameters", ("step time / softmax (quartiles)", step_time)]
            runs, _ = read_runs(finished)
            for task in dict.fromkeys(run.task for run in runs):
                print(f"\n{task}\n")
                print_tables([run.path for run in runs if run.task == task], columns=columns)
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
