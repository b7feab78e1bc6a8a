"""docs/data: collected from runs, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import studies
from neutreno.errors import InputError
from neutreno.files import replacing
from neutreno.records import ALL
from neutreno.reports.comparison import Times
from neutreno.reports.course import LOSS, layers_over_steps, training_curves
from neutreno.reports.reading import Run, read_runs
from neutreno.tablefiles import read_table
from studies import LOST


def collect(name: str, folders: Sequence[str]) -> int:
    """How many finished runs that were started for a row of the table were added to docs/data/NAME.csv.

    What is there already of a row and seed stays, so that a study is collected as its runs are made. Each time, a line
    at the file's head says what the runs added were made with.

    Raises:
        InputError: there are none.
    """
    table = read_table(name)
    file = studies.DOCS / "data" / f"{name}.csv"
    origins = {table.origin(label) for label in table.rows}
    runs = [run for run in read_runs(folders)[0] if run.origin in origins and run.status == "finished"]
    if not runs:
        raise InputError(f"no finished run of {name} in {', '.join(folders)}")
    head, frame = [table.file.read_text().partition("\n")[0]], pd.DataFrame([], columns=COLUMNS)
    if file.exists():
        head = [line for line in file.read_text().splitlines() if line.startswith("#")]
        frame = read(file)
    there = {*zip(frame["row"], frame["seed"], strict=True)}
    found: dict[tuple[str, int | None], Run] = {}
    for run in runs:
        found.setdefault((row_of(run), run.seed), run)
    runs = [run for key, run in found.items() if key not in there]
    if runs:
        hours = sum(run.result["wall_clock_s"] for run in runs) / 3600
        known = {key: sorted({str(of(run.result)) for run in runs}) for key, of in PROVENANCE.items()}
        said = [f"{key} {', '.join(values)}" for key, values in known.items()]
        head.append(f"# {len(runs)} runs, {hours:.1f} hours in all; {'; '.join(said)}")
    lines = [
        (row_of(run), run.seed, step, metric, "" if value is None or value != value else f"{value:.6g}")
        for run in runs
        for step, metric, value in of_run(run)
    ]
    frame = pd.concat([frame, pd.DataFrame(lines, columns=COLUMNS)])
    rows = dict.fromkeys([*table.rows, *frame["row"]])  # what the table no longer has stands behind
    frame = frame.assign(row=pd.Categorical(frame["row"], [*rows])).sort_values(["row", "seed"], kind="stable")
    with replacing(file, "w") as stream:
        stream.writelines(f"{line}\n" for line in head)
        frame.to_csv(stream, index=False, lineterminator="\n")
    return len(runs)


def read(file: Path) -> pd.DataFrame:
    """The lines of a study, their values as they are written.

    Raises:
        InputError: it has other columns.
    """
    try:
        frame = pd.read_csv(file, comment="#", dtype={"value": str}, keep_default_na=False)
    except pd.errors.EmptyDataError:
        frame = pd.DataFrame()
    if [*frame.columns] != COLUMNS:
        raise InputError(f"{file} has not the columns {', '.join(COLUMNS)}; restore it, or delete it to collect anew")
    return frame


def row_of(run: Run) -> str:
    return run.origin[1].partition("/")[2]


COLUMNS = ["row", "seed", "step", "metric", "value"]


def commit_of(result: dict[str, Any]) -> str:
    commit = result["git_commit"] or "unknown"
    return commit[:7] + commit[40:]  # with -dirty


def hardware_of(result: dict[str, Any]) -> str:
    """The kinds of GPU, where a run could take one."""
    gpus = [] if "trainer.accelerator=cpu" in result["overrides"] else result["hardware"].get("gpu", [])
    return ", ".join(dict.fromkeys(gpus)) or result["hardware"]["cpu"]


PROVENANCE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "commit": commit_of,
    "hardware": hardware_of,
    "threads": lambda result: result["hardware"]["threads"],
    "torch": lambda result: result["versions"]["torch"],
}


def of_run(run: Run) -> Iterator[tuple[int, str, float | None]]:
    """Step, metric and value: courses of layer-wise metrics and of the training loss, and the metrics at the end."""
    for metric, by_subset in layers_over_steps(run).items():
        yield from ((at["step"], metric, at["layers"][-1]) for at in by_subset.get(ALL, ()))
    curves = training_curves(run.path / "metrics.csv")
    course = pd.Series(*next((curves[name][::-1] for name in LOSS if name in curves), ([], [])), dtype=float)
    some = course.iloc[:: max(1, -(-len(course) // 16))]  # the same steps in all runs of a length
    yield from ((int(step), LOST, loss) for step, loss in some.items())
    last = run.result["steps"]
    yield from ((last, metric, value) for metric, value in run.metrics.items() if "loss" not in metric)
    yield from ((last, event, None) for event in run.within if event not in run.metrics)


@dataclass
class Study:
    """A file of docs/data: its lines, and one value per row, seed and metric, of the last step."""

    name: str
    lines: pd.DataFrame
    final: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        last = self.lines.groupby(["row", "seed", "metric"], sort=False).last()["value"]
        self.final = last.unstack("metric")

    @classmethod
    def read(cls, name: str) -> Study:
        """
        Raises:
            InputError: it has not been collected, or has other columns.
        """
        file = studies.DOCS / "data" / f"{name}.csv"
        if not file.exists():
            raise InputError(f"{file} is missing: python scripts/findings.py --collect {name} FOLDER")
        lines = read(file)
        return cls(name, lines.assign(value=pd.to_numeric(lines["value"])))

    def values(self, row: str, metric: str) -> pd.Series:
        """By seed; without what is missing.

        Raises:
            InputError: there is no run of the row.
        """
        if row not in self.final.index:
            raise InputError(f"{self.name}: no run of {row} has been collected: python scripts/findings.py --collect")
        return self.final.loc[row, metric].dropna()

    def times(self, row: str, metric: str) -> Times:
        """To an event, one per seed; where it did not come, the last step."""
        known = self.final.loc[row, metric]
        last = self.lines[self.lines["row"] == row].groupby("seed")["step"].max()
        return Times(known.fillna(last).to_numpy(), known.notna().to_numpy())

    def course(self, row: str, metric: str) -> pd.DataFrame:
        """(steps, seeds)"""
        chosen = self.lines[(self.lines["row"] == row) & (self.lines["metric"] == metric)]
        return chosen.pivot_table(index="step", columns="seed", values="value")
