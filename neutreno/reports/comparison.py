"""Comparing runs: grouped over seeds, told apart by the settings in which they differ, measured against a baseline."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from neutreno.reports.layers import ALL
from neutreno.reports.reading import Run
from neutreno.variants import model_words


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

    def curves(
        self, when: str = "last", subset: str = ALL, metric: str = "cosine", stack: str | None = None
    ) -> np.ndarray:
        """A layer-wise metric: (seeds, layers); empty if a run lacks it."""
        curves = [run.curve(when, subset, metric, stack) for run in self.runs]
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
    rows = list(found.values())
    differing = _differing([members[0] for members in rows])
    groups = []
    for members in rows:
        extra = [f"{key}={members[0].row.get(key)}" for key in differing]
        label = " ".join([members[0].label, *extra])
        groups.append(Group(label, sorted(members, key=lambda run: run.seed)))
    return sorted(groups, key=lambda g: _order(g.runs[0])), left_out


def _differing(runs: Sequence[Run]) -> list[str]:
    """Settings in which rows differ and which no label says, nor follow from a choice that it says."""

    def follows_from(key: str) -> tuple:
        """Rows that differ here compare this key no further."""
        head = key.partition(".")[0]
        if head in ("data", "task", "trainer"):
            return ("data",)
        if head == "model":
            return ("data", "model")
        return (head,) if any(head in run.result["axes"] for run in runs) else ()

    found = []
    for key in sorted(set().union(*(run.row for run in runs))):
        labelled = all(key in run.result["labels"] for run in runs if key in run.row)
        target = key.endswith("._target_") and any(key.partition(".")[0] in run.result["axes"] for run in runs)
        if labelled or target or key.startswith("recipe."):  # what looks it up differs
            continue
        alike: dict[str, set[str]] = {}
        for run in runs:
            choice = str([run.settings.get(name) for name in follows_from(key)])
            alike.setdefault(choice, set()).add(str(run.row.get(key)))
        if any(len(values) > 1 for values in alike.values()):
            found.append(key)
    return found


def _order(run: Run) -> tuple:
    """By data and model, at the baseline first, then by the axes, the last declared counting most, and by numbers."""
    result, settings = run.result, run.settings
    axes = list(result["baseline"].items())
    numbers = [run.number(key) for key in result["labels"] if key.partition(".")[0] in result["axes"]]
    return (
        str(settings["data"]),
        model_words(result),
        [settings[axis] != baseline for axis, baseline in reversed(axes)],
        [str(settings[axis]) for axis, _ in axes],
        [-float("inf") if number is None else number for number in numbers],
    )


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The row that ``group`` is measured against: at the baseline of all axes (or what equals it) on the same data and
    model, and among several such rows the one whose other settings are nearest."""
    own = group.runs[0]

    def distance(other: Group) -> tuple[int, int, int]:
        run = other.runs[0]
        differ = [key for key in {*own.row, *run.row} if own.row.get(key) != run.row.get(key)]
        beyond = sum(key.partition(".")[0] not in own.result["axes"] for key in differ)  # axes may differ
        named = sum(run.settings[axis] != baseline for axis, baseline in run.result["baseline"].items())
        return beyond, named, len(differ)

    candidates = [g for g in groups if g.runs[0].at_baseline and comparable(g.runs[0], own)]
    if not candidates or group in candidates:
        return None
    return min(candidates, key=distance)


def comparable(run: Run, other: Run) -> bool:
    """Whether two runs are of the same data (by its digest, where both have one) and model."""
    digests = [r.result.get("digests") or None for r in (run, other)]
    same_data = run.settings["data"] == other.settings["data"] and (None in digests or digests[0] == digests[1])
    return same_data and model_words(run.result) == model_words(other.result)


def number_compared(runs: Sequence[Run]) -> str | None:
    """The labelled setting of an axis that takes most different numbers among ``runs``: λ̃, in a sweep of it."""
    keys = [k for run in runs for k in run.result["labels"] if k.partition(".")[0] in run.result["axes"]]
    taken = {key: len({n for run in runs if (n := run.number(key)) is not None}) for key in dict.fromkeys(keys)}
    return max((key for key, count in taken.items() if count > 1), key=taken.get, default=None)


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
