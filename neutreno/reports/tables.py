"""Tables of results: our rows over seeds, their difference to the baseline, and the paper's figures beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neutreno.errors import InputError
from neutreno.reports.comparison import Group, baseline_of, difference, group_runs, number_compared, spread
from neutreno.reports.figures import Curves
from neutreno.reports.layers import part_of
from neutreno.reports.reading import read_runs
from neutreno.runs import departures
from neutreno.variants import words

Column = tuple[str, Callable[[Group, Group | None], str]]
FIGURES = ["test/{}", "val/{}", "best/test/{}", "ema/test/{}", "ema/val/{}"]  # of the main metric, shown where known


def print_tables(
    folders: Sequence[str | Path],
    metrics: Sequence[str] | None = None,
    style: str = "md",
    paired: bool = False,
    baseline: str | None = None,
    columns: Sequence[str | Column] = (),
    config_dirs: Sequence[str] = (),
) -> None:
    """Print the table of the runs in ``folders``; warnings go to stderr. ``columns``: see :func:`table`.
    ``config_dirs``: where experiments are looked up beside the project's.

    Raises:
        InputError: there is no finished run, or none has a metric asked for.
    """
    groups, notes = load_groups(folders)
    print(render(table(groups, metrics, paired, baseline, columns, config_dirs), style))
    if style == "md":
        for line in footnotes(groups, config_dirs):
            print(f"\n{line}")
    for note in notes:
        print(f"not in the table: {note}", file=sys.stderr if style == "csv" else sys.stdout)


def load_groups(folders: Sequence[str | Path]) -> tuple[list[Group], list[str]]:
    """The finished runs among ``folders``, of one task, grouped over seeds; and what was left out, and why.

    Raises:
        InputError: no run is left.
    """
    runs, problems = read_runs(folders)
    for problem in problems:
        print(f"warning: {problem}; left out", file=sys.stderr)
    first = next((run for run in runs if run.finished), runs[0])
    for run in runs:
        if run.task != first.task:
            print(
                f"warning: {run.path} is {run.task}, not {first.task} as {first.path}; left out, give it another table",
                file=sys.stderr,
            )
    groups, left_out = group_runs([run for run in runs if run.task == first.task])
    if not groups:
        raise InputError(f"none of the runs is finished: {'; '.join(left_out)}")
    return groups, left_out


def table(
    groups: Sequence[Group],
    metrics: Sequence[str] | None = None,
    paired: bool = False,
    baseline: str | None = None,
    columns: Sequence[str | Column] = (),
    config_dirs: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per group. Every figure is a dict, see :func:`render`.

    ``baseline``: part of the name of the row to measure all others against; default: that at the baseline of all axes.
    ``columns``: further ones: layer-wise metrics of the probe by name (after the last layer, trained), ``parameters``,
    or a pair of a heading and a function from a group and its baseline to what stands there.

    Raises:
        InputError: no run has a metric or column asked for, or no single row matches ``baseline``.
    """
    known = list(dict.fromkeys(m for g in groups for run in g.runs for m in run.metrics))
    if metrics is None:
        asked = [m for g in groups for m in g.runs[0].config.get("paper") or {}]
        main = groups[0].runs[0].result["main_metric"].rpartition("/")[2]
        named = [figure.format(main) for figure in FIGURES]
        metrics = [m for m in dict.fromkeys([*named, *asked]) if any(len(g.values(m)) for g in groups)]
    for metric in metrics:
        if not any(len(g.values(metric)) for g in groups):
            raise InputError(f"no run has the metric {metric}; there are: {', '.join(known)}")
    fixed = None
    names = names_of(groups, config_dirs)
    if baseline is not None:
        matching = [g for g, name in zip(groups, names, strict=True) if baseline in name]
        if len(matching) != 1:
            there = ", ".join(names)
            raise InputError(f"--baseline {baseline} matches {len(matching)} rows; give a part of one of: {there}")
        fixed = matching[0]
    measured_against = {id(g): baseline_of(g, groups) if fixed is None else fixed for g in groups}
    baselines = {id(b) for b in measured_against.values()}
    rows = []
    for name, group in zip(names, groups, strict=True):
        against = measured_against[id(group)] if group is not fixed else None
        paper = group.runs[0].config.get("paper") or {}
        row: dict[str, Any] = {"runs": name, "seeds": len(group.runs)}
        for number, metric in enumerate(metrics):
            values = group.values(metric)
            row[metric] = _spread(values)
            if number == 0 and against is not None and len(values) and len(against.values(metric)):
                found = difference(group, against, metric, paired)
                row["difference"] = {"difference": found.mean, "low": found.low, "high": found.high}
            elif number == 0 and id(group) in baselines:
                row["difference"] = "baseline"
            if figure := paper.get(metric):
                row[f"paper's {metric}"] = {"paper": figure["value"], "provenance": figure["provenance"]}
        for stack, where in stacks_in([group]).items():
            for when, said in (("initial", "initial"), ("last", "trained")):
                if (curves := group.curves(when, stack=stack)).size:
                    row[f"similarity{where}, {said}"] = _spread(curves[:, -1])
        row |= further_columns(group, against, columns)
        rows.append(row)
    order = ["runs", "seeds"]
    for number, metric in enumerate(metrics):
        order += [metric, *(["difference"] if number == 0 else []), f"paper's {metric}"]
    order += [f"similarity{where}, {said}" for where in stacks_in(groups).values() for said in ("initial", "trained")]
    frame = pd.DataFrame(rows)
    order += [c for c in frame if c not in order]
    if missing := [c for c in columns if isinstance(c, str) and not any(c.replace("_", " ") in f for f in order)]:
        raise InputError(f"no run has measured {', '.join(missing)}; there are parameters and what probe.metrics names")
    frame = frame[[c for c in order if c in frame]]
    better = ", smaller is better" if groups[0].runs[0].smaller_is_better else ""
    interval = f"difference, 95 % {'paired' if paired else 'Welch'}"
    return frame.rename(columns={"difference": f"{metrics[0]}: {interval}{better}"})


def further_columns(group: Group, against: Group | None, columns: Sequence[str | Column]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in columns:
        if column == "parameters":
            row[column] = f"{group.runs[0].result.get('parameters', 0):,}"
        elif isinstance(column, str):
            if (curves := group.curves(metric=column)).size:
                row[f"{column.replace('_', ' ')}, trained"] = _spread(curves[:, -1])
        else:
            heading, value = column
            row[heading] = value(group, against)
    return row


def _spread(values: np.ndarray) -> dict[str, Any] | None:
    if not len(values):
        return None
    return {"mean": values.mean(), "sd": values.std(ddof=1) if len(values) > 1 else np.nan, "values": values}


def names_of(groups: Sequence[Group], config_dirs: Sequence[str] = ()) -> list[str]:
    """The experiment that all runs of a row were started with (``*``: it departs from it), else the settings that tell
    it apart; both, where rows share an experiment."""
    started = [{run.experiment for run in group.runs} for group in groups]
    experiments = [names.pop() if len(names) == 1 else None for names in started]
    found = []
    for group, experiment in zip(groups, experiments, strict=True):
        name = experiment or group.label
        if experiment and experiments.count(experiment) > 1:
            name = f"{experiment} ({group.label})"
        found.append(f"{name} *" if experiment and departures_of(group, config_dirs) else name)
    return found


def departures_of(group: Group, config_dirs: Sequence[str] = ()) -> list[str]:
    run = group.runs[0]
    if not run.experiment:
        return []
    return departures(run.config, run.result["execution"], run.experiment, run.result["overrides"], config_dirs)


def footnotes(groups: Sequence[Group], config_dirs: Sequence[str] = ()) -> list[str]:
    """What the rows marked ``*`` do otherwise than their experiment."""
    named = zip(names_of(groups, config_dirs), groups, strict=True)
    found = {name.removesuffix(" *"): departures_of(g, config_dirs) for name, g in named if name.endswith(" *")}
    return [f"\\* {name} departs: {', '.join(how)}" for name, how in found.items()]


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
    """As Markdown, LaTeX (booktabs) or CSV, where every number has a column of its own."""
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
