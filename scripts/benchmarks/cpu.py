"""Ratios of CPU time, which other processes disturb less than they do the clock on the wall."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap

MOST_S = 240.0  # of CPU time for a ratio: on a busy machine it may never get as narrow as it should


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of all cores."""
    start = time.process_time()
    call()
    return time.process_time() - start


def cpu_ratio(first: Callable[[], object], second: Callable[[], object], least: int) -> str:
    """CPU time of ``second`` over that of ``first``: the median of pairs, A B, B A, …, with its 95 % interval by the
    bootstrap; until that is narrower than a hundredth of the median or for ``MOST_S``, and ``least`` pairs."""
    first(), second()
    pairs, looked_at, spent = [], max(least, 10), 0.0
    while True:
        calls = [first, second] if len(pairs) % 2 == 0 else [second, first]
        times = {call: cpu_seconds(call) for call in calls}
        pairs.append(times[second] / times[first])
        spent += sum(times.values())
        if len(pairs) >= (least if spent > MOST_S else looked_at):
            found = bootstrap((pairs,), np.median, method="percentile", n_resamples=2000, rng=0).confidence_interval
            if found.high - found.low < 0.01 * np.median(pairs) or spent > MOST_S:
                return f"{np.median(pairs):.4f} ({found.low:.4f} to {found.high:.4f}, {len(pairs)} pairs)"
            looked_at += max(10, looked_at // 4)
