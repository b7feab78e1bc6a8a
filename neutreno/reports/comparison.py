"""Comparing runs: grouped over seeds, told apart by the settings in which they differ, measured against a baseline."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from neutreno.config.words import key_of
from neutreno.errors import InputError
from neutreno.records import is_number
from neutreno.reports.layers import curve
from neutreno.reports.reading import Run
from neutreno.variants import equation, model_words

FILES = ("experiment", "recipe")  # groups whose files set keys of others
# Settings that differ because what they follow from does: by what they begin with, the choices that settle them.
FOLLOWS = {"data": ["data"], "task": ["data"], "trainer": ["data"], "model": ["data", "model"]}
CHOICES = dict.fromkeys(name for names in FOLLOWS.values() for name in names)
DIGEST = " data"  # ends the names under which a row has the digests of splits


class Times(NamedTuple):
    """When an event came, and where it did not (censored), up to when it was looked for; and whether it came."""

    at: np.ndarray
    came: np.ndarray


@dataclass(eq=False)
class Group:
    """Finished runs that differ in nothing but their seed, in the order of their seeds."""

    label: str
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        return self.runs[0].settings

    def curves(self, *which: str, **of: str) -> np.ndarray:
        """A layer-wise metric, see :func:`neutreno.reports.layers.curve`: (seeds, layers); (0, 0) if a run lacks it."""
        curves = [curve(run.measured, *which, **of) for run in self.runs]
        return np.array(curves) if all(curves) and len({len(c) for c in curves}) == 1 else np.empty((0, 0))

    def values(self, metric: str) -> np.ndarray:
        """One value per seed; empty if a run lacks the metric."""
        found = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        return np.array(found if len(found) == len(self.runs) else [])

    def is_event(self, metric: str) -> bool:
        """Whether the metric is a time to an event."""
        return any(metric in run.within for run in self.runs)

    def times(self, metric: str) -> Times | None:
        """Times to an event, one per seed; None if it was not looked for in all runs, and for other metrics."""
        if not all(metric in run.within for run in self.runs):
            return None
        at = [run.metrics.get(metric, run.within[metric]) for run in self.runs]
        return Times(np.array(at), np.array([metric in run.metrics for run in self.runs]))


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Group the finished runs; the second value says which were left out and why."""
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    left_out = []
    for run in runs:
        if run.status != "finished":
            reason = run.result.get("reason")
            left_out.append(f"{run.path} is not finished ({run.status}{f': {reason}' if reason else ''})")
            continue
        first = found[row_key(run)].setdefault(run.seed, run)
        if first is not run:
            left_out.append(f"{run.path} is the same run as {first.path}")
    rows = [[run for _, run in sorted(by_seed.items())] for by_seed in found.values()]
    further = further_settings([members[0] for members in rows])
    ordered = sorted(zip(rows, further, strict=True), key=lambda row: _order(row[0][0], row[1]))
    return [Group(full_label(members[0], differing), members) for members, differing in ordered], left_out


def row_key(run: Run) -> str:
    """What runs of one row share."""
    return json.dumps(run.row, sort_keys=True)


def further_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of a run of each row, the settings in which rows differ and that its label does not say."""
    differing = differing_settings(runs)
    return [{key: run.row.get(key) for key in differing} for run in runs]


def full_label(run: Run, further: dict[str, Any]) -> str:
    return " ".join([run.label, *(f"{key}={value}" for key, value in further.items() if value is not None)])


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Settings in which rows differ and which no label says, nor follow from a choice that it says."""
    axes = {axis for run in runs for axis in run.result["axes"]}
    found = []
    for key in sorted(set().union(*(run.row for run in runs))):
        head = key.partition(".")[0]
        labelled = all(key in run.result["labels"] for run in runs if key in run.row)
        target = key.endswith("._target_") and head in axes
        if labelled or target or head == "recipe":  # what looks it up differs
            continue
        alike: dict[str, set[str]] = defaultdict(set)  # rows that differ in these choices compare it no further
        for run in runs:
            choices = [run.settings.get(name) for name in FOLLOWS.get(head, [head] if head in axes else [])]
            alike[str(choices)].add(str(run.row.get(key)))
        if any(len(values) > 1 for values in alike.values()):
            found.append(key)
    return found


def _order(run: Run, further: dict[str, Any]) -> tuple:
    """By data and model, at the baseline first, then by the axes, the last declared counting most, by numbers, and by
    further settings."""
    result, settings = run.result, run.settings
    axes = list(result["baseline"].items())
    return (
        str(settings["data"]),
        model_words(result),
        [settings[axis] != baseline for axis, baseline in reversed(axes)],
        [str(settings[axis]) for axis, _ in axes],
        [run.numbers.get(key, -np.inf) for key in result["labels"]],
        [(0, value, "") if is_number(value) else (1, 0, str(value)) for value in further.values()],
    )


def lines_by(key: str, groups: Sequence[Group]) -> tuple[dict[str, dict[float, Group]], list[str]]:
    """Groups over a setting that is a number, as lines by their labels; and what was left out, and why.

    A line's groups are of the same data, model, axes and settings that were typed, but for this one; others may follow
    from it, as DGN's λ from the depth. The baseline of an axis stands, at the number that it equals (softmax at λ̃ = 0),
    in each line that differs from it in this axis alone.

    Raises:
        InputError: the setting is a number in no two groups, or two groups of a line have the same.
    """
    placed, left_out = [], []
    for group, kind in zip(groups, _kinds([group.runs[0] for group in groups], key), strict=True):
        own, equal = group.runs[0].row.get(key), group.runs[0].numbers.get(key)
        if is_number(own) or equal is not None:
            placed.append((not is_number(own), own if is_number(own) else equal, group, kind))
        else:
            left_out.append(f"{group.label} has no {key}")
    if len({number for _, number, *_ in placed}) < 2:
        raise InputError(f"{key} takes no two numbers among the {len(groups)} rows of these runs")
    lines: list[tuple[dict[str, Any], dict[float, Group]]] = []
    axis = key.partition(".")[0]
    for at_baseline, number, group, kind in sorted(placed, key=lambda place: place[0]):  # which joins the others' lines
        apart = _apart_from(axis, kind)
        joined = [line for k, line in lines if (_apart_from(axis, k) == apart if at_baseline else k == kind)]
        if not joined:
            joined = [{}]
            lines.append((kind, joined[0]))
        for line in joined:
            if line.setdefault(number, group) is not group:
                raise InputError(f"{group.label} and {line[number].label} stand at {key}={number:g}; give fewer runs")
    return dict(zip(_line_labels(lines), (dict(sorted(line.items())) for _, line in lines), strict=True)), left_out


def _kinds(runs: Sequence[Run], key: str) -> list[dict[str, Any]]:
    """By what lines over ``key`` are told apart: choices, typed settings, digests of data."""
    typed = {key_of(word) for run in runs for word in run.result["overrides"]} - {key}
    chosen = [{n: v for n, v in run.settings.items() if "." not in n and n != "seed"} for run in runs]
    groups = [{key_of(w): w.partition("=")[2] for w in run.result["overrides"] if key_of(w) in FILES} for run in runs]

    def tells(name: str) -> bool:
        of_data = name.endswith(DIGEST) and not key.startswith("data.")  # which that may change
        return name != key and (of_data or any(name == t or name.startswith(f"{t}.") for t in typed if "." in t))

    rows = [{name: value for name, value in run.row.items() if tells(name)} for run in runs]
    return [a | b | c for a, b, c in zip(chosen, groups, rows, strict=True)]


def _apart_from(axis: str, kind: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kind.items() if name.partition(".")[0] != axis}


def _line_labels(lines: Sequence[tuple[dict[str, Any], dict[float, Group]]]) -> list[str]:
    """The model and what tells a line from others of it; axes at their baseline go without saying."""
    kinds = [kind for kind, _ in lines]
    varying = {name for kind in kinds for name in kind if len({str(other.get(name)) for other in kinds}) > 1}

    def method(kind: dict[str, Any], baseline: dict[str, str]) -> list[str]:
        words = [str(kind["data"])] if "data" in varying else []
        return [*words, str(kind["model"]), *(str(kind[axis]) for axis in baseline if kind.get(axis) != baseline[axis])]

    def label(kind: dict[str, Any], run: Run, write: Callable[[str, str, Any], str]) -> str:
        labels, words = run.result["labels"], method(kind, run.result["baseline"])
        alike = [other for other, its in zip(kinds, methods, strict=True) if its == words]
        names = [name for name in kind if len({str(other.get(name)) for other in alike}) > 1]
        return " ".join(words + [write(name, labels.get(name) or name, kind[name]) for name in names])

    first = [next(iter(line.values())).runs[0] for _, line in lines]
    methods = [method(kind, run.result["baseline"]) for kind, run in zip(kinds, first, strict=True)]
    short = [label(kind, run, equation) for kind, run in zip(kinds, first, strict=True)]
    whole = [label(k, run, lambda key, name, value: f"{name}={value}") for k, run in zip(kinds, first, strict=True)]
    return [a if short.count(a) == 1 else b for a, b in zip(short, whole, strict=True)]


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The row that ``group`` is measured against: at the baseline of all axes (or what equals it) on the same data and
    model, and among several such rows the one whose other settings are nearest."""
    own = group.runs[0]

    def distance(other: Group) -> tuple[int, int, int]:
        run = other.runs[0]
        named = sum(run.settings[axis] != baseline for axis, baseline in run.result["baseline"].items())
        return len(beyond_axes(own, run)), named, len(_differing(own, run))

    candidates = [g for g in groups if g.runs[0].at_baseline and comparable(g.runs[0], own)]
    return None if group in candidates else min(candidates, key=distance, default=None)


def _differing(run: Run, other: Run) -> list[str]:
    return sorted(key for key in {*run.row, *other.row} if run.row.get(key) != other.row.get(key))


def beyond_axes(run: Run, other: Run) -> list[str]:
    """What ``other`` has in settings of no axis in which it differs, to which a difference may be due, too.

    Of other data or another model these are named, not what follows from them.
    """
    chosen = [name for name in CHOICES if run.settings.get(name) != other.settings.get(name)]
    follow = {head for head, names in FOLLOWS.items() if {*names} & {*chosen}}

    def counts(key: str) -> bool:
        head, of_data = key.partition(".")[0], key.endswith(DIGEST)
        if of_data and (chosen or None in (run.row.get(key), other.row.get(key))):
            return False  # as for :func:`comparable`
        return head not in {*run.result["axes"], *other.result["axes"], *follow, "recipe"}  # what looks it up differs

    named = [f"{name}={other.settings.get(name)}" for name in chosen]
    return named + [f"{key}={other.row.get(key)}" for key in _differing(run, other) if counts(key)]


def comparable(run: Run, other: Run) -> bool:
    """Whether two runs are of the same data (by its digest, where both have one) and model."""
    digests = [r.result.get("digests") or None for r in (run, other)]
    same_data = run.settings["data"] == other.settings["data"] and (None in digests or digests[0] == digests[1])
    return same_data and model_words(run.result) == model_words(other.result)


def number_compared(runs: Sequence[Run]) -> str | None:
    """The labelled setting of an axis that takes most different numbers among ``runs``: λ̃, in a sweep of it."""
    taken = pd.DataFrame([run.numbers for run in runs]).nunique()
    return taken.idxmax() if taken.max() > 1 else None


class Difference(NamedTuple):
    """Of means, the ends of its 95 % interval, and the p-value of there being none; NaN where it cannot be told."""

    mean: float
    low: float
    high: float
    p: float


def difference(group: Group, baseline: Group, metric: str, paired: bool = False) -> Difference:
    """``group`` − ``baseline``: Welch's test, of independent samples, or that of the seeds' differences; of times to an
    event :func:`logrank`, which knows no pairs.

    Paired, only seeds that both groups have count.
    """
    if group.is_event(metric) or baseline.is_event(metric):
        sides = group.times(metric), baseline.times(metric)
        return Difference(np.nan, np.nan, np.nan, np.nan if None in sides else logrank(*sides))
    by_seed = ({run.seed: run.metrics[metric] for run in g.runs if len(g.values(metric))} for g in (group, baseline))
    return welch(*(pd.Series(found, dtype=float) for found in by_seed), paired=paired)


def welch(a: pd.Series, b: pd.Series, paired: bool = False) -> Difference:
    """``a`` − ``b``, values by seed; fewer than two on a side, or such as do not vary, leave no interval: NaN."""
    if paired:
        a, b = a.align(b, join="inner")
    mean = float(a.mean() - b.mean())
    constant = (a - b).nunique() < 2 if paired else max(a.nunique(), b.nunique()) < 2
    if min(len(a), len(b)) < 2 or constant:
        return Difference(mean, np.nan, np.nan, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # seeds of one side that are equal
        test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue))


def logrank(a: Times, b: Times) -> float:
    """The p-value of the log-rank test by permutation of the runs: exact for few, of 5 against 5 at least 2/252.

    Censored times count as runs in which the event had not come by then; a mean of them would be of made-up numbers. 1
    if nothing tells the sides apart, as where it came in no run; NaN for a single run on a side.
    """
    if min(len(a.at), len(b.at)) < 2:
        return np.nan
    at, came = np.concatenate([a.at, b.at]), np.concatenate([a.came, b.came])

    def statistic(one: np.ndarray, other: np.ndarray) -> float:
        sides = (stats.CensoredData.right_censored(at[of], ~came[of]) for of in (one.astype(int), other.astype(int)))
        with np.errstate(invalid="ignore"):  # 0 / 0 where it came in no run, or in all at once
            return float(np.nan_to_num(stats.logrank(*sides).statistic))

    places = np.split(np.arange(len(at)), [len(a.at)])
    test = stats.permutation_test(places, statistic, vectorized=False, n_resamples=1999, rng=0)
    return float(test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, which bound the probability of any false finding among all of them; NaN stay NaN.

    (Holm, "A simple sequentially rejective multiple test procedure", 1979.)
    """
    known = sorted((value, place) for place, value in enumerate(p) if not np.isnan(value))
    found, least = [np.nan] * len(p), 0.0
    for number, (value, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - number) * value))
        found[place] = least
    return found
