"""Time of a training step as a ratio of two things in one alternating run: of a run's model and its baseline's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from neutreno.config.trust import build_trusted
from neutreno.reports.comparison import Group


def seconds(call: Callable[[], None]) -> float:
    """What a call takes, on a GPU with all that it has started there."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def paired(first: Callable[[], None], second: Callable[[], None], repeats: int) -> list[tuple[float, float]]:
    """Seconds of both calls in one alternating run, A B, B A, …; each runs once before."""
    first(), second()
    pairs = []
    for i in range(repeats):
        calls = [first, second] if i % 2 == 0 else [second, first]
        times = [seconds(call) for call in calls]
        pairs.append((times[i % 2], times[1 - i % 2]))
    return pairs


def ratio(first: Callable[[], None], second: Callable[[], None], repeats: int) -> str:
    """Speed of ``first`` relative to ``second``: median and quartiles of the paired ratios."""
    pairs = [b / a for a, b in paired(first, second, repeats)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"{statistics.median(pairs):.3f} (quartiles {low:.3f}–{high:.3f}, {repeats} pairs)"


def training_step(model: nn.Module, images: torch.Tensor, autocast: torch.dtype | None = None) -> Callable[[], None]:
    """A step under cross-entropy with a run's fused AdamW, where the images lie; the model scores classes, of a whole
    image or of its pixels.

    ``autocast``: the precision of the forward pass; None: that of the weights.
    """
    model = model.to(images.device).train()
    with torch.no_grad():
        scores = model(images[:2])
    labels = torch.zeros(len(images), *scores.shape[2:], dtype=torch.long, device=images.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def untrained(group: Group, trust: Sequence[str] = ()) -> tuple[nn.Module, torch.Tensor] | None:
    """The model of a group's runs with weights drawn anew, and a batch of random images of their data's size, on the
    GPU if there is one. None where the data says no sizes of images."""
    config = group.runs[0].config
    data = config["data"]
    if not {"in_chans", "img_size"} <= data.keys():
        return None
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(data["batch_size"], data["in_chans"], data["img_size"], data["img_size"], device=device)
    return build_trusted(config["model"], trust, "model"), images


def step_time(group: Group, baseline: Group | None, trust: Sequence[str] = (), repeats: int = 21) -> str:
    """A table's column: the time of a step of ``group``'s model, on random images, in units of its baseline's.

    Median × (quartiles) of pairs measured here, as ``1.100 × (1.069–1.136)``. Nothing where the data says no sizes of
    images (``in_chans``, ``img_size``). ``trust``: packages besides this one whose classes the runs may name.
    """
    if baseline is None or (own := untrained(group, trust)) is None:
        return ""
    steps = [training_step(*made) for made in (untrained(baseline, trust), own)]
    return ratio(*steps, repeats).replace(" (quartiles ", " × (").partition(", ")[0] + ")"
