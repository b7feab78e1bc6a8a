"""The kit's pictures, of its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from kit.page import where
from kit.supervise import NAME
from neutreno.reports.drawing import GREY, STYLE, heading, save, subplots
from neutreno.reports.styles import styles_of

RATIO = "ratio of speeds (median and quartiles); above 1, the first is faster"
MEMORY = "MiB beyond what stood before the step"
STEPS = {"steps": ", eager", "compiled": ", compiled"}
PICTURES = {  # title, parts with what is said after their cases, keys of a row, label of the axis
    "steps": ("Speed of a training step, bf16", STEPS, ["softmax against timm", "NeuTRENO against softmax"], RATIO),
    "attention": (
        "Speed of attention alone, bf16, forward and backward", {"attention": ""}, ["NeuTRENO against SDPA"], RATIO,
    ),
    "memory": ("Peak memory of a training step, bf16", STEPS, ["timm", "softmax", "NeuTRENO"], MEMORY),
}  # fmt: skip


def draw(out: Path, work: Path) -> None:
    """Each picture for which something was measured, into ``out``."""
    state = json.loads((work / NAME).read_text())
    for name, (title, parts, keys, label) in PICTURES.items():
        found = {part: state["parts"][part] for part in parts if part in state["parts"]}
        rows = [(f"{case}{parts[part]}", row) for part in found for case, row in found[part]["rows"].items()]
        lines = [(case, values) for case, row in rows if (values := intervals(row, keys))]
        if lines:
            hardware = [where(part["environment"]).partition("; commit")[0] for part in found.values() if part["rows"]]
            below = f"{hardware[0]}{'; reduced sizes' if state['small'] else ''}"
            dots(lines, title, label, below, out / f"{name}.png")


def intervals(row: dict[str, Any], keys: list[str]) -> dict[str, tuple[float, float, float]]:
    """Lower quartile, median and upper quartile by key; a peak of memory has no spread."""
    found = {key: (row[key]["low"], row[key]["ratio"], row[key]["high"]) for key in keys if key in row}
    return found | {key: (value,) * 3 for key, value in row.get("peak MiB", {}).items() if key in keys}


def dots(lines: list, title: str, label: str, below: str, path: Path) -> None:
    """A line for each case, from top to bottom; a colour for each key."""
    with plt.rc_context(STYLE):
        figure, axes = subplots(figsize=(6.75, 1.2 + 0.28 * len(lines)))
        heading(figure, title)
        keys = list(dict.fromkeys(key for _, values in lines for key in values))
        for number, (key, style) in enumerate(zip(keys, styles_of(keys), strict=True)):
            shift = 0.15 * (number - (len(keys) - 1) / 2)
            found = [(y + shift, *values[key]) for y, (_, values) in enumerate(lines) if key in values]
            y, low, middle, high = map(np.array, zip(*found, strict=True))
            spread = middle - low, high - middle
            axes.errorbar(middle, y, xerr=spread, label=key, **style.drawn | {"linestyle": ""})
        axes.set_yticks(range(len(lines)), [case for case, _ in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(label)
        if label == RATIO:
            axes.axvline(1, color="black", linewidth=0.6)
        else:
            axes.set_xlim(left=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(keys))
        figure.supxlabel(below, fontsize=7, color=GREY)
        save(figure, path)
