"""When tokens collapse in training, and when they are free again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neutreno.oversmoothing.tokens import Metric
from neutreno.reports.layers import ALL, stacks_of


def collapse(rows: Sequence[dict[str, Any]], metrics: Sequence[Metric]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each metric that says when tokens count as collapsed, over the course of training, after the last layer.

    ``collapsed_share/NAME``: the share of training, in steps, in which they are collapsed. Between two measurements
    that disagree, half of the steps count.
    ``escape_step/NAME``: the first measurement from which on they are not, up to the end; 0 if they never were. No
    network that is collapsed at the end has escaped, which does not say that it never would: the step is censored.

    Args:
        rows: of the probe, with their step; of several stacks the first counts.

    Returns:
        The metrics that could be told; and of every time to an event, told or not, up to which step it was looked for.
    """
    found: dict[str, float] = {}
    within: dict[str, float] = {}
    stack = next(iter(stacks_of(rows)), None)
    for metric in metrics:
        of = [r for r in rows if (r["stack"], r["subset"], r["metric"]) == (stack, ALL, metric.name)]
        last = max((row["layer"] for row in of), default=0)
        course = sorted((r["step"], r["mean"]) for r in of if r["layer"] == last and r["mean"] is not None)
        if metric.collapsed_at is None or not course:
            continue
        steps, values = map(np.array, zip(*course, strict=True))
        collapsed = values >= metric.collapsed_at
        within[escape := f"escape_step/{metric.name}"] = float(steps[-1])
        if steps[-1] > steps[0]:
            spent = np.diff(steps) @ (collapsed[1:].astype(float) + collapsed[:-1]) / 2
            found[f"collapsed_share/{metric.name}"] = float(spent / (steps[-1] - steps[0]))
        if not collapsed[-1]:
            found[escape] = float(steps[np.flatnonzero(collapsed)[-1] + 1]) if collapsed.any() else 0.0
    return found, within
