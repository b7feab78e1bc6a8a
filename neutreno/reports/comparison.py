"""Comparing runs: grouped over seeds, told apart by the settings in which they differ, measured against a baseline."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from neutreno.reports.reading import Run


@dataclass
class Group:
    """Finished runs that differ in nothing but their seed, in the order of their seeds."""

    label: str
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        return self.runs[0].settings

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def curves(self, when: str = "last", tokens: str = "all", measure: str = "cosine") -> np.ndarray:
        """A measure of tokens by layer: (seeds, layers); empty if a run lacks it."""
        curves = [run.curve(when, tokens, measure) for run in self.runs]
        return np.array(curves if all(curves) and len({len(c) for c in curves}) == 1 else [])

    def values(self, metric: str) -> np.ndarray:
        """One value per seed; empty if a run lacks the metric."""
        found = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        return np.array(found if len(found) == len(self.runs) else [])


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group the finished runs; the second value says which were left out and why."""
    found: dict[str, list[Run]] = {}
    left_out = []
    for run in runs:
        if not run.finished:
            reason = run.result.get("reason")
            left_out.append(f"{run.path} is not finished ({run.status}{f': {reason}' if reason else ''})")
            continue
        row = found.setdefault(json.dumps(run.row, sort_keys=True), [])
        if twin := next((other for other in row if other.seed == run.seed), None):
            left_out.append(f"{run.path} is the same run as {twin.path}")
        else:
            row.append(run)
    rows = [members[0].row for members in found.values()]
    shown = {"attention.lam", "recipe.lam"}  # λ̃ stands in the base label
    shown |= {"attention._target_", "block._target_", "model.size", "data._target_", *_consequences(rows)}
    differing = [k for k in sorted(set().union(*rows)) if len({str(row.get(k)) for row in rows}) > 1]
    groups = []
    for members in found.values():
        extra = [f"{k}={members[0].row.get(k)}" for k in differing if k not in shown]
        label = " ".join([base_label(members[0].settings), *extra])
        groups.append(Group(label, sorted(members, key=lambda run: run.seed)))
    return sorted(groups, key=lambda g: _order(g.settings)), left_out


def _consequences(rows: list[dict[str, Any]]) -> set[str]:
    """Keys that differ only because the data set does: the label already names it."""
    if len({row["data._target_"] for row in rows}) <= 1:
        return set()
    return {k for row in rows for k in row if k.startswith(("data.", "recipe.", "task.", "trainer."))}


def base_label(s: dict[str, Any]) -> str:
    """``digits deit-mini neutreno λ̃=0.6 + featscale``."""
    lam = "" if s["lam"] is None else f" λ̃={s['lam']:g}"
    block = "" if s["block"] == "plain" else f" + {s['block']}"
    return f"{s['data']} {s['model']}-{s['size']} {s['attention']}{lam}{block}"


def _order(s: dict[str, Any]) -> tuple:
    block = s["block"] != "plain"
    return (s["data"], s["model"], str(s["size"]), block, s["attention"] != "softmax", s["attention"], s["lam"] or 0.0)


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The row that ``group`` is measured against: softmax attention (λ̃ = 0 is the same) in a plain block on the same
    data, network and size, and among several such rows the one whose other settings are nearest."""
    own = group.settings

    def distance(other: Group) -> tuple[int, bool]:
        here, there = group.runs[0].row, other.runs[0].row
        return sum(here.get(k) != there.get(k) for k in {*here, *there}), other.settings["attention"] != "softmax"

    def is_plain(s: dict[str, Any]) -> bool:
        return s["block"] == "plain" and (s["attention"] == "softmax" or (s["attention"], s["lam"]) == ("neutreno", 0))

    alike = [g for g in groups if all(g.settings[k] == own[k] for k in ("data", "model", "size"))]
    candidates = [g for g in alike if is_plain(g.settings)]
    if not candidates or group in candidates:
        return None
    return min(candidates, key=distance)


@dataclass
class Difference:
    """Mean difference of a metric between two groups and its confidence interval; NaN bounds if it has none."""

    mean: float
    low: float
    high: float


def difference(group: Group, baseline: Group, metric: str, paired: bool = False, level: float = 0.95) -> Difference:
    """``group`` − ``baseline``: Welch's interval of independent samples, or the interval of the seeds' differences.

    Paired, only seeds that both groups have count. Fewer than two runs on a side leave no interval.
    """
    if paired:
        common = sorted(set(group.seeds) & set(baseline.seeds))
        a, b = (
            np.array([dict(zip(g.seeds, g.values(metric), strict=True))[s] for s in common]) for g in (group, baseline)
        )
    else:
        a, b = group.values(metric), baseline.values(metric)
    mean = float(a.mean() - b.mean()) if len(a) and len(b) else float("nan")
    if min(len(a), len(b)) < 2 or (np.ptp(a - b) if paired else np.ptp(a) + np.ptp(b)) == 0:
        return Difference(mean, float("nan"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # seeds of one side that are equal
        test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(level)
    return Difference(mean, float(interval.low), float(interval.high))


def spread(values: np.ndarray, digits: int) -> str:
    """``mean ± sd`` (n − 1); the bare value of a single run; ``–`` if there is none."""
    if len(values) == 0:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"
