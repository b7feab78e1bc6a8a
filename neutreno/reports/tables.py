"""Tables of results: our rows over seeds, their difference to the baseline, and the paper's figures beside them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from neutreno.config.building import locate
from neutreno.errors import InputError, one_line
from neutreno.reports.comparison import (
    Difference,
    Group,
    baseline_of,
    beyond_axes,
    difference,
    group_runs,
    holm,
)
from neutreno.reports.escaping import LATEX, csv_text, in_markdown, markdown_table
from neutreno.reports.panels import stacks_in
from neutreno.reports.reading import Run, read_runs
from neutreno.reports.rows import Origins, labels_of
from neutreno.tablefiles import Table

FIGURES = ["test/{}", "val/{}", "best/test/{}", "ema/test/{}", "ema/val/{}"]  # of the main metric, shown where known
BEYOND = "†"  # marks a difference that may be due to more than the axes
BETWEEN = {"md": "\n{}\n", "latex": "% {}", "csv": ""}  # tables of several tasks
EVERY_RUN = Table.model_construct(name="", file=Path(), config_dirs=[], rows={})  # of no file, so unchecked


@dataclass(eq=False)
class Row:
    """A row of a table: what it is called, its runs, what they do otherwise than it says, the paper's figures, and
    words by their heading."""

    name: str
    group: Group
    departs: list[str]
    paper: dict[str, dict[str, Any]]
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Cell:
    """A figure as it is shown, and its numbers by name, which a CSV file gives a column each."""

    text: str
    numbers: dict[str, Any]


def print_tables(
    folders: Sequence[str | Path],
    of: Table | None = None,
    metrics: Sequence[str] | None = None,
    style: str = "md",
    paired: bool = False,
    baseline: str | None = None,
    columns: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> None:
    """Print a table for each task of the runs in ``folders``, or ``of`` those that belong to a table's file, in its
    order and with its metrics and columns unless others are given. Warnings go to stderr.

    ``baseline``: the row to compare all others with, or part of its name; default: that at the baseline of all axes.
    ``columns``: see :func:`table`. ``config_dirs``: where rows and experiments are looked up beside the project's.

    Raises:
        InputError: there is no finished run, none has a metric or column asked for, or no single row is the baseline.
    """
    runs, problems = read_runs(folders)
    for problem in problems:
        print(f"warning: {problem}; left out", file=sys.stderr)
    origins = Origins(config_dirs)
    rows, notes = rows_of(runs, origins) if of is None else rows_in(of, runs, origins)
    if not rows:
        raise InputError(f"no run is finished: {'; '.join(notes)}")
    trust = [*trust, *(origins.packages() if of is not None else ())]  # files of other packages named them
    of = of or EVERY_RUN
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.group.runs[0].task, []).append(row)
    known = _known(rows)
    if unknown := [metric for metric in metrics or () if metric not in known]:
        raise InputError(f"no run has the metric {', '.join(unknown)}; available: {', '.join(known)}")
    notes += _without_metrics(rows, of)
    fixed = None if baseline is None else _row_named(baseline, rows)
    check_columns(columns, measured := lambda name: any(row.group.curves(metric=name).size for row in rows))
    if not columns:
        columns = [name for name in of.columns if "." in name or name == "parameters" or measured(name)]
        notes += [f"{name}: no run has measured it" for name in of.columns if name not in columns]
    if of.title and style == "md":
        print(f"{of.title}\n")
    asked = {task: [m for m in metrics or _asked(own, of) if m in _known(own)] for task, own in tasks.items()}
    shown = [task for task in tasks if asked[task]]  # the metrics of the others are another task's
    for task in shown:
        if len(tasks) > 1 and (style != "csv" or task != shown[0]):
            print(BETWEEN[style].format(one_line(task)))
        against = fixed.group if fixed in tasks[task] else None
        frame = table(tasks[task], asked[task], paired, against, columns, trust)
        print(render(_with_absent(frame, of, asked[task][0]) if (style, task) == ("md", shown[0]) else frame, style))
    for label, why in of.absent.items() if style == "md" else ():
        print("\n" + in_markdown(f"–: {label}: {why}"))
    for row in rows if style == "md" else ():
        if row.departs:
            print("\n" + in_markdown(f"\\* {row.name.removesuffix(' *')} departs: {', '.join(row.departs)}"))
    for note in notes:
        print(f"not in the table: {one_line(note)}", file=sys.stdout if style == "md" else sys.stderr)


def _with_absent(frame: pd.DataFrame, of: Table, metric: str) -> pd.DataFrame:
    """A table and the rows that there cannot be."""
    rows = pd.DataFrame([{"runs": label, "seeds": "", metric: "–"} for label in of.absent], dtype=object)
    return pd.concat([frame.astype(object), rows], ignore_index=True) if len(rows) else frame


def rows_of(runs: Sequence[Run], origins: Origins) -> tuple[list[Row], list[str]]:
    """A row for each group of runs, called after the row or experiment that all of it was started for (``*``: it
    departs from that), else by the settings that tell it apart; and what was left out, and why."""
    groups, left_out = group_runs(runs)
    rows = []
    for group in groups:
        started = {run.origin for run in group.runs}
        own = started.pop() if len(started) == 1 else None
        run = group.runs[0]
        departs = origins.differing(run) if own else []
        rows.append(Row(own[1] if own else group.label, group, departs, run.config.get("paper") or {}))
    return _told_apart(rows), left_out


def rows_in(of: Table, runs: Sequence[Run], origins: Origins) -> tuple[list[Row], list[str]]:
    """The rows of a table's file in its order, for each data set that it leaves open; ``*`` marks runs that were
    started for a row and depart from it. And what was left out, and why.

    Raises:
        InputError: none of the runs belongs to the table.
    """
    belongs = {run.path: found for run in runs if (found := labels_of(run, of, origins))}
    for problem in origins.broken(of):
        print(f"warning: {problem}", file=sys.stderr)
    if not belongs:
        raise InputError(
            f"none of the {len(runs)} runs belongs to table {of.name}; neutreno reproduce {of.name} makes them"
        )
    groups, left_out = group_runs([run for run in runs if run.path in belongs])
    rows = [
        Row(
            label,
            group,
            departs,
            {**(group.runs[0].config.get("paper") or {}), **of.paper.get(label, {})},
            {heading: said[label] for heading, said in of.notes.items() if label in said},
        )
        for group in groups
        for label, departs in belongs[group.runs[0].path]
    ]
    labels = list(of.rows)

    def place(row: Row) -> tuple[str, int, bool]:
        data = str(row.group.settings["data"]) if origins.leaves_data_open(of.origin(row.name)) else ""
        return data, labels.index(row.name), bool(row.departs)

    if missing := [label for label in labels if label not in {row.name for row in rows}]:
        left_out.append(f"{', '.join(missing)}: no finished run")
    return _told_apart(sorted(rows, key=place)), left_out


def _told_apart(rows: list[Row]) -> list[Row]:
    """The same with ``*`` where they depart, and where rows still share a name, with the settings that differ."""
    names = [(row.name, bool(row.departs)) for row in rows]
    for row, name in zip(rows, names, strict=True):
        if names.count(name) > 1 and row.name != row.group.label:
            row.name = f"{row.name} ({row.group.label})"
        row.name += " *" if row.departs else ""
    return rows


def _known(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(m for row in rows for run in row.group.runs for m in (*run.metrics, *run.within)))


def _without_metrics(rows: Sequence[Row], of: Table) -> list[str]:
    """Metrics of the table's file that no run has; where an evaluation finds them, which runs lack them."""
    named, known = [metric for metric in (of.metric, *of.metrics) if metric], _known(rows)
    if not of.evaluate:
        absent = [metric for metric in named if metric not in known]
        return [f"{metric}: no run has this metric; available: {', '.join(known)}" for metric in absent]
    every = [run for row in rows for run in row.group.runs]
    runs = {run.path: [m for m in named if m not in {*run.metrics, *run.within}] for run in every}
    if not (lack := {path: metrics for path, metrics in runs.items() if metrics}):
        return []
    metrics = [metric for metric in named if any(metric in absent for absent in lack.values())]
    found = f"neutreno evaluate RUN {shlex.join(of.evaluate)} finds them"
    return [f"{', '.join(metrics)} of {', '.join(map(str, lack))}; {found}"]


def _asked(rows: Sequence[Row], of: Table) -> list[str]:
    """The metrics shown where none are asked for: the table's main one, or the runs'; further ones of the table, and
    those of which the paper says a figure."""
    main = rows[0].group.runs[0].result["main_metric"].rpartition("/")[2]
    own = [of.metric] if of.metric in _known(rows) else [figure.format(main) for figure in FIGURES]
    return list(dict.fromkeys([*own, *of.metrics, *(metric for row in rows for metric in row.paper)]))


def check_columns(columns: Sequence[str], measured: Callable[[str], bool]) -> None:
    """Refuse what is neither ``parameters``, nor ``measured`` by layer, nor the dotted path of a function.

    Raises:
        InputError: names it.
    """
    for column in columns:
        if "." in column:
            locate(column, "column")
        elif column != "parameters" and not measured(column):
            raise InputError(
                f"no run has measured {column}; columns are parameters, what probe.metrics names, or a function's "
                "dotted path"
            )


def _row_named(text: str, rows: Sequence[Row]) -> Row:
    matching = [row for row in rows if text == row.name] or [row for row in rows if text in row.name]
    if len(matching) != 1:
        there = ", ".join(row.name for row in rows)
        raise InputError(f"--baseline {text} matches {len(matching)} rows; give a part of one of: {there}")
    return matching[0]


def table(
    rows: Sequence[Row],
    metrics: Sequence[str],
    paired: bool = False,
    baseline: Group | None = None,
    columns: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> pd.DataFrame:
    """``rows`` of one task; figures are :class:`Cell`.

    ``baseline``: to compare all others with; default: that at the baseline of all axes, nearest in all else. Where it
    differs in other settings than those of the axes, too, a † marks what is compared, and a column says in which.
    ``columns``: further ones: ``parameters``, a metric of the probe by its name (after the last layer, trained), or the
    dotted path of a function from a group, its baseline (None: it is one) and the packages to ``trust`` to text.
    """
    groups = [row.group for row in rows]
    against = {group: baseline or baseline_of(group, groups) for group in groups}
    baselines = set(against.values())
    against |= {baseline: None}
    judged, metric = groups[0].runs[0], metrics[0]
    own, judged_by = (name.rpartition("/")[2] for name in (metric, judged.result["main_metric"]))
    same = own == judged_by or own.startswith(f"{judged_by}_")  # ppl_stride1 is as ppl
    better = ", smaller is better" if judged.result["main_metric_mode"] == "min" and same else ""
    compared = f"{metric}: difference, 95 % {'paired' if paired else 'Welch'}{better}"
    differences = [_compared(row.group, against[row.group], metric, paired) for row in rows]
    family = [np.nan if d is None else d.p for d in differences]
    of_events = any(group.is_event(metric) for group in groups)
    tested = f"{metric}: p, log-rank" if of_events else "p"
    tested += f", Holm over {n}" if (n := np.isfinite(family).sum()) > 1 else ""
    lines = []
    for row, found, p in zip(rows, differences, holm(family), strict=True):
        group, other = row.group, against[row.group]
        line: dict[str, Any] = {"runs": row.name, "seeds": len(group.runs)}
        for metric in metrics:
            line[metric] = _events(group, metric) if group.is_event(metric) else _spread(group.values(metric))
            if metric == metrics[0]:
                is_one = "baseline" if group in baselines else None
                is_compared = found is not None and not np.isnan([found.mean, found.p]).all()
                beyond = beyond_axes(group.runs[0], other.runs[0]) if is_compared else []
                mark = BEYOND if beyond else ""
                line[compared] = _difference(found, mark) or (None if of_events else is_one)
                line[tested] = _p_value(p, mark if of_events else "") or (is_one if of_events else None)
                line[f"{BEYOND} baseline differs in"] = ", ".join(beyond) or None
            line[f"paper's {metric}"] = _paper(**row.paper[metric]) if metric in row.paper else None
        for stack, where in stacks_in(groups).items():
            for when, said in (("initial", "initial"), ("last", "trained")):
                title, curves = f"similarity{where}, {said}", group.curves(when, stack=stack)
                line[title] = _spread(curves[:, -1:].ravel(), 3) or line.get(title)
        line |= dict(_further(column, group, other, trust) for column in columns)
        if taken := line.keys() & row.notes:
            raise InputError(f"the heading {min(taken)} of notes is a column of the table; rename it")
        lines.append(line | row.notes)
    return pd.DataFrame(lines).dropna(axis="columns", how="all")


def _further(column: str, group: Group, other: Group | None, trust: Sequence[str]) -> tuple[str, Any]:
    """The heading of one of ``columns``, and what stands below it."""
    if "." in column:
        return column.rpartition(".")[2].replace("_", " "), locate(column, "column")(group, other, trust)
    if column == "parameters":
        return column, f"{group.runs[0].result.get('parameters', 0):,}"
    return f"{column.replace('_', ' ')}, trained", _spread(group.curves(metric=column)[:, -1:].ravel())


def _spread(values: np.ndarray, digits: int = 2) -> Cell | None:
    """``mean ± sd`` (n − 1); the bare value of a single run."""
    if not len(values):
        return None
    mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
    text = f"{mean:.{digits}f}" if np.isnan(sd) else f"{mean:.{digits}f} ± {sd:.{digits}f}"
    return Cell(text, {"mean": mean, "sd": sd})


def _events(group: Group, metric: str) -> Cell:
    """In how many of the runs the event came, and its median time, if it came in more than half of them."""
    if (times := group.times(metric)) is None:
        looked = sum(metric in run.within for run in group.runs)
        return Cell(f"looked for in {looked} of {len(group.runs)}", {})
    came, runs = int(times.came.sum()), len(times.at)
    median = float(np.median(np.where(times.came, times.at, np.inf)))
    text = f", median {median:,.10g}" if np.isfinite(median) else f", by {max(times.at):,.10g}"
    return Cell(f"{came} of {runs}{text}", {"came": came, "runs": runs, "median": median})


def _compared(group: Group, other: Group | None, metric: str, paired: bool) -> Difference | None:
    sides = [s for s in (group, other) if s is not None and (s.is_event(metric) or len(s.values(metric)))]
    return difference(*sides, metric, paired) if len(sides) == 2 else None


def _difference(found: Difference | None, mark: str) -> Cell | None:
    if found is None or np.isnan(found.mean):
        return None
    mean, low, high, _ = found
    text = f"{mean:+.2f}" if np.isnan(low) else f"{mean:+.2f} ({low:.2f} to {high:.2f})"
    return Cell(f"{text} {mark}".strip(), {"difference": mean, "low": low, "high": high})


def _p_value(p: float, mark: str) -> Cell | None:
    return None if np.isnan(p) else Cell(f"{f'{p:.3f}' if p >= 0.001 else '< 0.001'} {mark}".strip(), {"": p})


def _paper(value: float, provenance: str) -> Cell:
    return Cell(f"{value:.2f} ({provenance})", {"paper": value, "provenance": provenance})


def render(frame: pd.DataFrame, style: str = "md") -> str:
    """As Markdown, LaTeX (booktabs) or CSV, where every number has a separate column."""
    if style == "csv":
        numbers = [
            {f"{column} {name}".strip(): number
             for column, cell in line.items()
             for name, number in (cell.numbers if isinstance(cell, Cell) else {"": cell}).items()}
            for line in frame.to_dict("records")
        ]  # fmt: skip
        return csv_text(pd.DataFrame(numbers)).rstrip("\n")
    frame = frame.fillna("").map(lambda cell: cell.text if isinstance(cell, Cell) else str(cell))
    if style == "md":
        return markdown_table(frame.values.tolist(), list(frame))
    frame = frame.map(one_line).rename(columns=one_line)
    latex = tabulate(frame, list(frame), tablefmt="latex_booktabs", showindex=False, disable_numparse=True)
    for sign, written in LATEX.items():
        latex = latex.replace(sign, written)
    return latex
