"""What figures draw of groups of runs: which panels there are, and which curves and lines in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neutreno.errors import InputError
from neutreno.reports.comparison import Group, lines_by, number_compared
from neutreno.reports.layers import part_of, stacks_of, title_of
from neutreno.variants import words


def stacks_in(groups: Sequence[Group]) -> dict[str, str]:
    """The stacks of layers of all runs, with what a heading says of each: nothing of a network's first."""
    found: dict[str, str] = {}
    for run in (run for group in groups for run in group.runs):
        for number, stack in enumerate(stacks_of(run.measured)):
            found.setdefault(stack, f", {part_of(stack)}" if number else "")
    return found


def panels_of(groups: Sequence[Group], when: str = "last", metric: str = "cosine") -> list[tuple[str, list]]:
    """What :func:`~neutreno.reports.figures.plot_curves` draws: a panel per data set and part of the network."""
    panels: dict[str, list] = {}
    key = number_compared([group.runs[0] for group in groups])
    for group in groups:
        run, data = group.runs[0], group.settings["data"]
        label = " + ".join(words(run.result))
        alike = [g for g in groups if g.settings["data"] == data and words(g.runs[0].result) == words(run.result)]
        if not label or len(alike) > 1:
            label = group.label.removeprefix(f"{data} ")  # models or other settings differ too
        for stack, where in stacks_in([group]).items():
            if (curves := group.curves(when, metric=metric, stack=stack)).size:
                panels.setdefault(f"{data}{where}", []).append((label, run.numbers.get(key), curves))
    return list(panels.items())


def lines_of(
    groups: Sequence[Group], by: str, score: str | None, metric: str
) -> tuple[list[tuple[str, dict[str, tuple[np.ndarray, ...]]]], list[str]]:
    """What :func:`~neutreno.reports.figures.plot_lines` draws over the setting ``by``: the runs' ``score`` (None: what
    they are judged by), and a layer-wise metric after the last layer; and what was left out, and why.

    Raises:
        InputError: there are no lines, or no run has the score or the metric.
    """
    lines, left_out = lines_by(by, groups)
    judged = [group.runs[0].main_metric for line in lines.values() for group in line.values()]
    score = score or next(filter(None, judged), "that it is judged by")
    if any(group.is_event(score) for group in groups):
        raise InputError(
            f"{score} is a time to an event, which has no mean; tables --metric {score} counts and compares it"
        )
    measured = {row["metric"]: None for group in groups for row in group.runs[0].measured}
    scores = list(dict.fromkeys(metric for group in groups for run in group.runs for metric in run.metrics))
    asked = [(score, score, scores, lambda group: group.values(score))]
    if measured:
        last = f"{title_of(metric)}, last layer"
        asked.append((metric, last, measured, lambda group: group.curves(metric=metric)[:, -1:].ravel()))
    else:
        left_out.append("no run has measured its layers; their panel")
    panels = []
    for name, title, known, values in asked:
        drawn = {}
        for label, line in lines.items():
            spreads = {number: spread for number, group in line.items() if len(spread := values(group))}
            left_out += [f"{label} has no {name} at {by}={number:g}" for number in line if number not in spreads]
            sds = [spread.std(ddof=1) if len(spread) > 1 else np.nan for spread in spreads.values()]
            if spreads:
                drawn[label] = np.array([*spreads]), np.array([x.mean() for x in spreads.values()]), np.array(sds)
        if not drawn:
            raise InputError(f"no run has the metric {name}; available: {', '.join(known)}")
        panels.append((title, drawn))
    return panels, left_out


def scale_of(groups: Sequence[Group]) -> str | None:
    """What a scale of colours over the rows' numbers is called, where rows at the baseline and of one other choice on
    every axis differ in that number: ``λ̃ (0: softmax)``."""
    runs = [group.runs[0] for group in groups]
    key = number_compared(runs)
    if key is None or any(key not in run.numbers for run in runs):
        return None
    if len({str([run.settings[axis] for axis in run.result["axes"]]) for run in runs if not run.at_baseline}) > 1:
        return None
    result = runs[0].result
    equal, label = result["baseline_values"].get(key), result["labels"].get(key) or key
    return label if equal is None else f"{label} ({equal:g}: {result['baseline'][key.partition('.')[0]]})"
