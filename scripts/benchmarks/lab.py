"""Time of a training step of a run's model, relative to its baseline's."""

from __future__ import annotations

import torch

from benchmarks import timing
from benchmarks.timing import ratio, training_step
from neutreno.reports.comparison import Group
from neutreno.runs import build


def step_of(group: Group):
    config = group.runs[0].config
    data = config["data"]
    torch.manual_seed(0)
    images = torch.randn(data["batch_size"], data["in_chans"], data["img_size"], data["img_size"])
    return training_step(build({**config["model"], "weights": None}), images)


def step_time(group: Group, baseline: Group | None, repeats: int = 21) -> str:
    """Time of a step of ``group``'s image classifier over that of its baseline's: median (quartiles) of pairs."""
    if baseline is None or group.runs[0].task != "classification":
        return ""
    timing.DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ratio(step_of(baseline), step_of(group), repeats).partition(", ")[0].replace("quartiles ", "") + ")"
