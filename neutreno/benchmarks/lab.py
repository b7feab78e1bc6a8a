"""Time of a training step of a run's model, relative to its baseline's."""

from __future__ import annotations

import torch

from neutreno.benchmarks import timing
from neutreno.benchmarks.timing import ratio, training_step
from neutreno.config.building import build_trusted
from neutreno.reports.comparison import Group


def step_of(group: Group):
    config = group.runs[0].config
    data = config["data"]
    torch.manual_seed(0)
    images = torch.randn(data["batch_size"], data["in_chans"], data["img_size"], data["img_size"])
    return training_step(build_trusted({**config["model"], "weights": None}), images)


def step_time(group: Group, baseline: Group | None, repeats: int = 21) -> str:
    """Time of a step of ``group``'s model over that of its baseline's, on random images: median (quartiles) of pairs.

    Nothing where the data says no size of images, or the model gives no classes of them.
    """
    config = group.runs[0].config
    sizes = {"batch_size", "in_chans", "img_size"} <= config["data"].keys()
    if baseline is None or not sizes or "label_smoothing" not in config["task"]:
        return ""
    timing.DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ratio(step_of(baseline), step_of(group), repeats).partition(", ")[0].replace("quartiles ", "") + ")"
