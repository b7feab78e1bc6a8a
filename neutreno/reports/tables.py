"""Tables of results: our rows over seeds, their difference to the baseline, and the paper's figures beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neutreno.config.building import locate
from neutreno.errors import InputError
from neutreno.reports.comparison import Group, baseline_of, difference, group_runs, number_compared, spread
from neutreno.reports.figures import Curves
from neutreno.reports.layers import part_of
from neutreno.reports.reading import Run, read_runs
from neutreno.reports.rows import Origins, labels_of
from neutreno.tablefiles import Table
from neutreno.variants import words

FIGURES = ["test/{}", "val/{}", "best/test/{}", "ema/test/{}", "ema/val/{}"]  # of the main metric, shown where known
BETWEEN = {"md": "\n{}\n", "latex": "% {}", "csv": ""}  # tables of several tasks


@dataclass
class Row:
    """A row of a table: what it is called, its runs, what they do otherwise than it says, and the paper's figures."""

    name: str
    group: Group
    departs: list[str] = field(default_factory=list)
    paper: dict[str, dict[str, Any]] = field(default_factory=dict)


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

    ``columns``: see :func:`table`. ``config_dirs``: where rows and experiments are looked up beside the project's.

    Raises:
        InputError: there is no finished run, or none has a metric or column asked for.
    """
    runs, problems = read_runs(folders)
    for problem in problems:
        print(f"warning: {problem}; left out", file=sys.stderr)
    origins = Origins(config_dirs)
    rows, notes = rows_of(runs, origins) if of is None else rows_in(of, runs, origins)
    if not rows:
        raise InputError(f"no run is finished: {'; '.join(notes)}")
    trust = [*trust, *(origins.packages() if of is not None else ())]  # files of other packages named them
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.group.runs[0].task, []).append(row)
    known = {task: _known_metrics(own) for task, own in tasks.items()}
    everywhere = list(dict.fromkeys(metric for own in known.values() for metric in own))
    if unknown := [metric for metric in metrics or () if metric not in everywhere]:
        raise InputError(f"no run has the metric {', '.join(unknown)}; available: {', '.join(everywhere)}")
    if of is not None:
        absent = [metric for metric in (of.metric, *of.metrics) if metric is not None and metric not in everywhere]
        notes += [f"{metric}: no run has this metric; available: {', '.join(everywhere)}" for metric in absent]
    if baseline is not None:
        _row_named(baseline, rows)
    columns = columns or (of.columns if of is not None else ())
    check_columns(columns, lambda name: any(row.group.curves(metric=name).size for row in rows))
    if of is not None and of.title and style == "md":
        print(f"{of.title}\n")
    printed = 0
    for task, own in tasks.items():
        asked = _asked(own, of, known[task]) if metrics is None else [m for m in metrics if m in known[task]]
        if not asked:
            continue  # the metrics are another task's
        if len(tasks) > 1 and (style != "csv" or printed):
            print(BETWEEN[style].format(task))
        named = baseline if baseline is not None and any(baseline in row.name for row in own) else None
        print(render(table(own, asked, paired, named, columns, trust), style))
        printed += 1
    if style == "md":
        for row in rows:
            if row.departs:
                print(f"\n\\* {row.name.removesuffix(' *')} departs: {', '.join(row.departs)}")
    for note in notes:
        print(f"not in the table: {note}", file=sys.stderr if style == "csv" else sys.stdout)


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
    rows, places, labels = [], [], list(of.rows)
    for group in groups:
        run = group.runs[0]
        for label, departs in belongs[run.path]:
            rows.append(Row(label, group, departs, {**(run.config.get("paper") or {}), **of.paper.get(label, {})}))
            data = str(run.settings["data"]) if origins.leaves_data_open(of.origin(label)) else ""
            places.append((data, labels.index(label), bool(departs), len(places)))
    if missing := [label for label in labels if label not in {row.name for row in rows}]:
        left_out.append(f"{', '.join(missing)}: no finished run")
    return _told_apart([row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]), left_out


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """The same with ``*`` where they depart, and where rows still share a name, with the settings that differ."""
    names = [f"{row.name} *" if row.departs else row.name for row in rows]
    for row, name in zip(rows, names, strict=True):
        if names.count(name) > 1 and row.name != row.group.label:
            row.name = f"{row.name} ({row.group.label})"
        row.name += " *" if row.departs else ""
    return list(rows)


def _known_metrics(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(m for row in rows for run in row.group.runs for m in run.metrics))


def _asked(rows: Sequence[Row], of: Table | None, known: Sequence[str]) -> list[str]:
    """The metrics shown where none are asked for: the table's main one, or the runs'; further ones of the table, and
    those of which the paper says a figure."""
    main = rows[0].group.runs[0].result["main_metric"].rpartition("/")[2]
    own = [figure.format(main) for figure in FIGURES]
    if of is not None and of.metric is not None and of.metric in known:
        own = [of.metric]
    more = [*(of.metrics if of is not None else ()), *(metric for row in rows for metric in row.paper)]
    return [metric for metric in dict.fromkeys([*own, *more]) if metric in known]


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
    matching = [row for row in rows if text in row.name]
    if len(matching) != 1:
        there = ", ".join(row.name for row in rows)
        raise InputError(f"--baseline {text} matches {len(matching)} rows; give a part of one of: {there}")
    return matching[0]


def table(
    rows: Sequence[Row],
    metrics: Sequence[str],
    paired: bool = False,
    baseline: str | None = None,
    columns: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> pd.DataFrame:
    """``rows`` of one task. Every figure is a dict, see :func:`render`.

    ``baseline``: part of the name of the row to compare all others with; default: that at the baseline of all axes.
    ``columns``: further ones: ``parameters``, a metric of the probe by its name (after the last layer, trained), or the
    dotted path of a function from a group, its baseline (None: it is one) and the packages to ``trust`` to text.

    Raises:
        InputError: no single row matches ``baseline``.
    """
    groups = [row.group for row in rows]
    fixed = _row_named(baseline, rows).group if baseline is not None else None
    measured_against = {id(g): baseline_of(g, groups) if fixed is None else fixed for g in groups}
    baselines = {id(b) for b in measured_against.values()}
    lines = []
    for row in rows:
        group = row.group
        against = measured_against[id(group)] if group is not fixed else None
        line: dict[str, Any] = {"runs": row.name, "seeds": len(group.runs)}
        for number, metric in enumerate(metrics):
            values = group.values(metric)
            line[metric] = _spread(values)
            if number == 0 and against is not None and len(values) and len(against.values(metric)):
                found = difference(group, against, metric, paired)
                line["difference"] = {"difference": found.mean, "low": found.low, "high": found.high}
            elif number == 0 and id(group) in baselines:
                line["difference"] = "baseline"
            if figure := row.paper.get(metric):
                line[f"paper's {metric}"] = {"paper": figure["value"], "provenance": figure["provenance"]}
        for stack, where in stacks_in([group]).items():
            for when, said in (("initial", "initial"), ("last", "trained")):
                if (curves := group.curves(when, stack=stack)).size:
                    line[f"similarity{where}, {said}"] = _spread(curves[:, -1])
        for column in columns:
            if "." in column:
                line[column.rpartition(".")[2].replace("_", " ")] = locate(column, "column")(group, against, trust)
            elif column == "parameters":
                line[column] = f"{group.runs[0].result.get('parameters', 0):,}"
            elif (curves := group.curves(metric=column)).size:
                line[f"{column.replace('_', ' ')}, trained"] = _spread(curves[:, -1])
        lines.append(line)
    order = ["runs", "seeds"]
    for number, metric in enumerate(metrics):
        order += [metric, *(["difference"] if number == 0 else []), f"paper's {metric}"]
    order += [f"similarity{where}, {said}" for where in stacks_in(groups).values() for said in ("initial", "trained")]
    frame = pd.DataFrame(lines)
    order += [c for c in frame if c not in order]
    frame = frame[[c for c in order if c in frame]]
    judged = groups[0].runs[0]
    same = metrics[0].rpartition("/")[2] == str(judged.result["main_metric"]).rpartition("/")[2]
    better = ", smaller is better" if judged.smaller_is_better and same else ""
    interval = f"difference, 95 % {'paired' if paired else 'Welch'}"
    return frame.rename(columns={"difference": f"{metrics[0]}: {interval}{better}"})


def _spread(values: np.ndarray) -> dict[str, Any] | None:
    if not len(values):
        return None
    return {"mean": values.mean(), "sd": values.std(ddof=1) if len(values) > 1 else np.nan, "values": values}


def _cell(content: Any, column: str) -> str:
    digits = 3 if column.startswith("similarity") else 2
    if not isinstance(content, dict):
        return "" if content is None or content != content else str(content)
    if "values" in content:
        return spread(content["values"], digits)
    if "paper" in content:
        return f"{content['paper']:.2f} ({content['provenance']})"
    said = f"{content['difference']:+.2f}"
    if np.isnan(content["low"]):
        return said
    return f"{said} ({content['low']:.2f} to {content['high']:.2f})"


def render(frame: pd.DataFrame, style: str = "md") -> str:
    """As Markdown, LaTeX (booktabs) or CSV, where every number has a separate column."""
    if style == "csv":
        flat = [
            {
                (key if part is None else f"{key} {part}"): value
                for key, content in row.items()
                for part, value in (
                    {k: v for k, v in content.items() if k != "values"}
                    if isinstance(content, dict)
                    else {None: content}
                ).items()
            }
            for row in frame.to_dict("records")
        ]
        return pd.DataFrame(flat).to_csv(index=False).rstrip("\n")
    texts = pd.DataFrame({c: [_cell(content, c) for content in frame[c]] for c in frame})
    if style == "md":
        return texts.to_markdown(index=False, disable_numparse=True)
    from tabulate import tabulate

    latex = tabulate(texts, list(texts), tablefmt="latex_booktabs", showindex=False, disable_numparse=True)
    return latex.replace("λ̃", r"$\tilde\lambda$").replace("±", r"$\pm$").replace("–", "--")


def stacks_in(groups: Sequence[Group]) -> dict[str, str]:
    """The stacks of layers of all runs, with what a heading says of each: nothing of a network's first."""
    found: dict[str, str] = {}
    for run in (run for group in groups for run in group.runs):
        for number, stack in enumerate(run.stacks):
            found.setdefault(stack, f", {part_of(stack)}" if number else "")
    return found


def panels_of(groups: Sequence[Group], when: str = "last", metric: str = "cosine") -> list[tuple[str, list[Curves]]]:
    """What :func:`~neutreno.reports.figures.plot_curves` draws: a panel per data set and part of the network."""
    panels: dict[str, list[Curves]] = {}
    key = number_compared([group.runs[0] for group in groups])
    for group in groups:
        run = group.runs[0]
        alike = [g.runs[0] for g in groups if g.settings["data"] == run.settings["data"]]
        label = " + ".join(words(run.result))
        if not label or [" + ".join(words(other.result)) for other in alike].count(label) > 1:
            label = group.label.removeprefix(f"{run.settings['data']} ")  # models or other settings differ too
        for stack, where in stacks_in([group]).items():
            if (curves := group.curves(when, metric=metric, stack=stack)).size:
                number = None if key is None else run.number(key)
                panels.setdefault(f"{run.settings['data']}{where}", []).append(Curves(label, number, curves))
    return list(panels.items())


def scale_of(groups: Sequence[Group]) -> str | None:
    """What a scale of colours over the rows' numbers is called, where rows at the baseline and of one other choice on
    every axis differ in that number: ``λ̃ (0: softmax)``."""
    runs = [group.runs[0] for group in groups]
    key = number_compared(runs)
    if key is None or any(run.number(key) is None for run in runs):
        return None
    if len({str([run.settings[axis] for axis in run.result["axes"]]) for run in runs if not run.at_baseline}) > 1:
        return None
    result = runs[0].result
    equal, label = result["baseline_values"].get(key), result["labels"].get(key) or key
    return label if equal is None else f"{label} ({equal:g}: {result['baseline'][key.partition('.')[0]]})"
