"""What figures draw of groups of runs: which panels there are, and which curves and lines in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neutreno.errors import InputError
from neutreno.reports.comparison import Group, lines_by, number_compared
from neutreno.reports.layers import LARGEST, LAYERS, part_of, stacks_of, title_of
from neutreno.reports.reading import Run
from neutreno.reports.styles import method_of
from neutreno.variants import model_words, words

SIMILARITY = "cosine similarity between tokens"


@dataclass
class Line:
    """A row's line in a panel: mean over seeds, NaN ``sd`` for a single one.

    Args:
        method: by which it is drawn, see :mod:`neutreno.reports.styles`.
        number: by which rows of one method are told apart.
    """

    label: str
    method: str
    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    number: float | None = None


@dataclass
class Panel:
    """What a panel shows; ``largest`` is what its metric can be at most, ``ticks`` where x has values alone."""

    lines: list[Line]
    xlabel: str
    ylabel: str
    title: str = ""
    largest: float | None = None
    ticks: Sequence[float] | None = None


def stacks_in(groups: Sequence[Group]) -> dict[str, str]:
    """The stacks of layers of all runs, with what a heading says of each: nothing of a network's first."""
    found: dict[str, str] = {}
    for run in (run for group in groups for run in group.runs):
        for number, stack in enumerate(stacks_of(run.measured)):
            found.setdefault(stack, f", {part_of(stack)}" if number else "")
    return found


def panels_of(groups: Sequence[Group], when: str = "last", metric: str = "cosine") -> list[Panel]:
    """A layer-wise metric by layer: a panel per data set and part of the network."""
    panels: dict[str, Panel] = {}
    key = number_compared([group.runs[0] for group in groups])
    ylabel = SIMILARITY if metric == "cosine" else title_of(metric)
    for group in groups:
        run, data = group.runs[0], group.settings["data"]
        label, others = " + ".join(words(run.result)), [g.runs[0] for g in groups if g.settings["data"] == data]
        models = [model_words(other.result) for other in others if words(other.result) == words(run.result)]
        if not label or len(models) > 1:  # models or other settings differ too
            without = [data, models[0]] if label and len(set(models)) == 1 else [data]
            label = group.label.removeprefix(" ".join([*without, ""]))
        for stack, where in stacks_in([group]).items():
            if (curves := group.curves(when, metric=metric, stack=stack)).size:
                title = f"{data}{where}"
                panel = panels.setdefault(title, Panel([], LAYERS, ylabel, title, LARGEST.get(metric)))
                x = np.arange(curves.shape[1])
                panel.lines.append(_line(label, run, x, list(curves.T), run.numbers.get(key)))
    return list(panels.values())


def _line(label: str, run: Run, x: np.ndarray, spreads: Sequence[np.ndarray], number: float | None = None) -> Line:
    """A line of the values of all seeds at each ``x``."""
    sds = [spread.std(ddof=1) if len(spread) > 1 else np.nan for spread in spreads]
    means = [spread.mean() for spread in spreads]
    return Line(label, method_of(run.result), x, np.array(means), np.array(sds), number)


def lines_of(groups: Sequence[Group], by: str, score: str | None, metric: str) -> tuple[list[Panel], list[str]]:
    """Over the setting ``by``, a panel each: the runs' ``score`` (None: what they are judged by), and a layer-wise
    metric after the last layer; and what was left out, and why.

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
    asked = [(score, score, None, scores, lambda group: group.values(score))]
    if measured:
        last, largest = f"{title_of(metric)}, last layer", LARGEST.get(metric)
        asked.append((metric, last, largest, measured, lambda group: group.curves(metric=metric)[:, -1:].ravel()))
    else:
        left_out.append("no run has measured its layers; their panel")
    panels, ticks = [], sorted({number for line in lines.values() for number in line})
    labels = {key: label for group in groups for key, label in group.runs[0].result["labels"].items()}
    xlabel = labels.get(by) or by.rpartition(".")[2].replace("_", " ")
    for name, ylabel, largest, known, values in asked:
        drawn = []
        for label, line in lines.items():
            spreads = {number: spread for number, group in line.items() if len(spread := values(group))}
            left_out += [f"{label} has no {name} at {by}={number:g}" for number in line if number not in spreads]
            if spreads:
                # of the last, since the baseline stands first, where it joins a line of another method
                drawn.append(_line(label, line[max(line)].runs[0], np.array([*spreads]), [*spreads.values()]))
        if not drawn:
            raise InputError(f"no run has the metric {name}; available: {', '.join(known)}")
        panels.append(Panel(drawn, xlabel, ylabel, largest=largest, ticks=ticks))
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
