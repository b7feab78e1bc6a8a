"""What runs were like over the steps of their training, from the tables in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neutreno.errors import InputError
from neutreno.reports.comparison import Group
from neutreno.reports.layers import ALL
from neutreno.reports.reading import Run

MOST_POINTS = 200  # of a training curve; more cannot be told apart on a screen
LOSS = ("train/loss_step", "train/loss")  # of some steps, or of an epoch's


class Course(NamedTuple):
    """Means over the runs of a row: a layer-wise metric, (steps, layers), and the training loss with its spread."""

    steps: np.ndarray
    layers: np.ndarray
    loss_steps: np.ndarray
    loss: np.ndarray
    sd: np.ndarray


def course_of(group: Group, metric: str) -> Course:
    """What the runs of ``group`` were like at the steps that all of them measured.

    Raises:
        InputError: they measured the metric at no common step, or logged no loss at one.
    """
    values, losses = [], []
    for run in group.runs:
        measured = {at["step"]: at["layers"] for at in layers_over_steps(run).get(metric, {}).get(ALL, ())}
        known = training_curves(run.path / "metrics.csv")
        losses.append(dict(zip(*next((known[name] for name in LOSS if name in known), ([], [])), strict=True)))
        values.append(measured)
    steps, loss_steps = (sorted(set.intersection(*map(set, found))) for found in (values, losses))
    if not steps or not loss_steps:
        what = f"measured {metric}" if not steps else "logged a training loss"
        raise InputError(f"the runs of {group.label} {what} at no common step")
    loss_steps = _thinned(loss_steps, MOST_POINTS)
    loss = np.array([[found[step] for step in loss_steps] for found in losses])
    sd = loss.std(0, ddof=1) if len(loss) > 1 else np.full(len(loss_steps), np.nan)
    layers = np.array([[found[step] for step in steps] for found in values]).mean(0)
    return Course(np.array(steps), layers, np.array(loss_steps), loss.mean(0), sd)


Curves = dict[str, list[list[float]]]  # {metric: [steps, values]}


def training_curves(path: Path) -> Curves:
    """What ``metrics.csv`` holds; what cannot be read is absent."""
    try:
        table = pd.read_csv(path, on_bad_lines="skip").apply(pd.to_numeric, errors="coerce")
        table = table.dropna(subset="step")
    except (OSError, ValueError, KeyError):
        return {}
    curves = {}
    for name in table.columns:
        if name in ("step", "epoch", "train/lr") or name.startswith("oversmoothing/"):
            continue
        known = table[["step", name]].dropna().drop_duplicates("step", keep="last")
        if len(known):
            curves[name] = [known["step"].tolist(), [float(f"{v:.5g}") for v in known[name]]]
    return curves


def thinned_together(runs: Sequence[Curves]) -> list[Curves]:
    """The curves of runs that are averaged, each at the same steps, and at the last one of every run."""
    kept: dict[str, set[float]] = {}
    for name in {name for curves in runs for name in curves}:
        known = [curves[name][0] for curves in runs if name in curves]
        kept[name] = {*_thinned(sorted(set().union(*known)), MOST_POINTS), *(max(steps) for steps in known)}
    return [{name: _at(kept[name], *points) for name, points in curves.items()} for curves in runs]


def _at(kept: set[float], steps: list[float], values: list[float]) -> list[list[float]]:
    places = [place for place, step in enumerate(steps) if step in kept]
    return [[side[place] for place in places] for side in (steps, values)]


def _thinned(points: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the ends among them."""
    return [points[place] for place in np.linspace(0, len(points) - 1, min(most, len(points))).astype(int)]


def layers_over_steps(run: Run) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Layer-wise metrics of the first stack by token subset, each time: ``{metric: {subset: [{"step": …, "layers":
    […]}]}}``; where their table cannot be read, the first and last measurement that the record holds."""
    try:
        return _by_layer(pd.read_csv(run.path / "oversmoothing.csv", on_bad_lines="skip"))
    except (OSError, ValueError, KeyError, IndexError):
        return _by_layer(pd.DataFrame([{"step": 0, **row} for row in run.measured])) if run.measured else {}


def _by_layer(table: pd.DataFrame) -> dict[str, dict[str, list[dict[str, Any]]]]:
    table = table[table["stack"] == table["stack"].iloc[0]]
    table = table.astype({"step": int, "layer": int, "mean": float}).sort_values("layer")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (metric, subset, step), at in table.groupby(["metric", "subset", "step"]):
        measured = {"step": int(step), "layers": [float(f"{v:.4g}") for v in at["mean"]]}
        found.setdefault(str(metric), {}).setdefault(str(subset), []).append(measured)
    return found
