"""Two things in one alternating run, and how much faster the first is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

DEVICE = torch.device("cpu")  # set by scripts/benchmark.py


def seconds(call: Callable[[], None]) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(first: Callable[[], None], second: Callable[[], None], repeats: int) -> str:
    """Speed of ``first`` relative to ``second``: median and quartiles of the paired ratios."""
    first(), second()
    pairs = []
    for i in range(repeats):
        calls = [first, second] if i % 2 == 0 else [second, first]
        times = [seconds(call) for call in calls]
        a, b = times if i % 2 == 0 else times[::-1]
        pairs.append(b / a)
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"{statistics.median(pairs):.3f} (quartiles {low:.3f}–{high:.3f}, {repeats} pairs)"


def training_step(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """A step under cross-entropy; the model scores classes, of a whole image or of its pixels."""
    model = model.to(DEVICE).train()
    images = images.to(DEVICE)
    with torch.no_grad():
        scores = model(images[:2])
    labels = torch.zeros(len(images), *scores.shape[2:], dtype=torch.long, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
