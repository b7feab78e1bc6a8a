"""Figures of over-smoothing, drawn from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from neutreno.errors import InputError
from neutreno.files import replacing

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 160,
}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito
GREY = "#888888"
LAYERS = "layer (0 = embedding)"


def _axes(title: str, xlabel: str = LAYERS):
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    title = title.replace("$", r"\$")  # no formula
    axes.set(xlabel=xlabel, ylabel="cosine similarity between tokens", title=title)
    return figure, axes


def _finish(figure, axes, layers: int, path: Path) -> None:
    axes.set_xticks(range(0, layers, max(1, (layers - 1) // 12)))
    low = axes.get_ylim()[0]
    axes.set(xlim=(0, layers - 1), ylim=(min(0.0, low), 1.0))
    axes.axhline(0, color="black", linewidth=0.6)
    kind = path.suffix.removeprefix(".")
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"cannot draw {path}: name it .png, .pdf or .svg")
    with replacing(path, "wb") as file:
        figure.savefig(file, format=kind)
    plt.close(figure)


def plot_similarity(rows: list[dict], path: str | Path, title: str = "", xlabel: str = LAYERS) -> None:
    """Similarity by layer of one run (rows of ``oversmoothing.csv``), initial against trained; band ± sd of samples."""
    data = pd.DataFrame(rows)
    if "step" in data:
        steps = sorted(data.step.unique())
        shown = [(data[data.step == steps[0]], "at initialisation", GREY)]
        if len(steps) > 1:
            last = data[data.step == steps[-1]]
            shown.append((last, f"after {last.epoch.iloc[0]} epochs", COLOURS[0]))
    else:
        shown = [(data, "trained", COLOURS[0])]
    with plt.rc_context(STYLE):
        figure, axes = _axes(title, xlabel)
        for part, label, colour in shown:
            for tokens, style, what in (("all", "-", "all tokens"), ("patch", ":", "without class token")):
                curve = part[part.tokens == tokens].sort_values("layer")
                axes.plot(curve.layer, curve["mean"], style, color=colour, marker="o", ms=3, label=f"{label}, {what}")
                if tokens == "all":
                    low, high = curve["mean"] - curve.sd, curve["mean"] + curve.sd
                    axes.fill_between(curve.layer, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.legend(loc="best", fontsize=8)
        _finish(figure, axes, int(data.layer.max()) + 1, Path(path))


def plot_comparison(groups: Sequence[tuple[str, np.ndarray]], path: str | Path, title: str = "") -> None:
    """Similarity by layer of several groups of runs: (label, curves (seeds, layers)); band = ± sd over seeds."""
    with plt.rc_context(STYLE):
        figure, axes = _axes(title)
        for i, (label, curves) in enumerate(groups):
            mean, layers = curves.mean(0), np.arange(curves.shape[1])
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}
            axes.plot(layers, mean, marker="o", ms=3, label=label.replace("$", r"\$"), **style)
            if len(curves) > 1:
                sd = curves.std(0, ddof=1)
                axes.fill_between(layers, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)
        axes.legend(loc="best", fontsize=8)
        _finish(figure, axes, max(c.shape[1] for _, c in groups), Path(path))
