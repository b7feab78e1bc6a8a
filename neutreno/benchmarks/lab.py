"""Time of a training step of a run's model, relative to its baseline's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from neutreno.benchmarks import timing
from neutreno.benchmarks.timing import ratio, training_step
from neutreno.config.building import build_trusted
from neutreno.reports.comparison import Group


def step_of(group: Group, trust: Sequence[str]):
    config = group.runs[0].config
    data = config["data"]
    torch.manual_seed(0)
    images = torch.randn(data["batch_size"], data["in_chans"], data["img_size"], data["img_size"])
    return training_step(build_trusted({**config["model"], "weights": None}, trust), images)


def step_time(group: Group, baseline: Group | None, trust: Sequence[str] = (), repeats: int = 21) -> str:
    """A table's column: the time of a step of ``group``'s model, on random images, in units of its baseline's.

    Median × (quartiles) of pairs measured here, as ``1.100 × (1.069–1.136)``.

    Nothing where the data says no sizes of images (``in_chans``, ``img_size``). ``trust``: packages besides this one
    whose classes the runs may name.
    """
    if baseline is None or not {"in_chans", "img_size"} <= group.runs[0].config["data"].keys():
        return ""
    timing.DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    median, _, quartiles = ratio(step_of(baseline, trust), step_of(group, trust), repeats).partition(" (quartiles ")
    return f"{median} × ({quartiles.partition(', ')[0]})"
