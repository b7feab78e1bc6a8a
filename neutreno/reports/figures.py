"""Figures of over-smoothing, drawn from run folders."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
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


KINDS = {  # of tokens: style of the line, what the legend says, part of the network
    "all": ("-", "all tokens", "encoder"),
    "patch": (":", "without class token", "encoder"),
    "decoder": ("-", "all tokens", "decoder"),
    "decoder_patch": (":", "without class embeddings", "decoder"),
}


def parts(kinds: Iterable[str]) -> dict[str, list[str]]:
    """The kinds of tokens that were measured, by the part of the network whose layers they belong to."""
    found: dict[str, list[str]] = {}
    for kind in kinds:
        found.setdefault(KINDS[kind][2], []).append(kind)
    return found


def plain(text: str, most: int | None = None) -> str:
    """``text`` as it stands, no formula, and cut to ``most`` characters."""
    return (text if most is None or len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")


def heading(figure, title: str) -> None:
    """The title of a whole figure, on as many lines as its width asks for."""
    size = STYLE["font.size"] * 1.2
    lines = textwrap.wrap(title, max(20, int(figure.get_figwidth() * 72 / (0.6 * size))), break_on_hyphens=True)
    figure.suptitle(plain("\n".join(lines)), fontsize=size)


def _axes(title: str, xlabel: str = LAYERS, panels: Sequence[int] = (1,)):
    """A figure of panels whose widths are in the ratio of ``panels``."""
    figure, axes = plt.subplots(
        ncols=len(panels),
        figsize=(6.4 + 2.4 * (len(panels) - 1), 4.0),
        sharey=True,
        squeeze=False,
        width_ratios=panels,
        layout="constrained",
    )
    heading(figure, title)
    axes[0, 0].set_ylabel("cosine similarity between tokens")
    for panel in axes[0]:
        panel.set_xlabel(xlabel)
    return figure, axes[0]


def _scale(axes, layers: int) -> None:
    axes.set_xticks(range(0, layers, max(1, (layers - 1) // 12)))
    low = axes.get_ylim()[0]
    axes.set(xlim=(0, max(layers - 1, 1)), ylim=(min(0.0, low), 1.0))
    axes.axhline(0, color="black", linewidth=0.6)


def save(figure, path: Path) -> None:
    """Write a figure, in the format of ``path``'s ending, and let go of it."""
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
            shown.append((last, f"after {last.step.iloc[0]:,} steps", COLOURS[0]))
    else:
        shown = [(data, "trained", COLOURS[0])]
    layers = parts(data.tokens.unique())
    depths = [int(data[data.tokens.isin(kinds)].layer.max()) + 1 for kinds in layers.values()]
    with plt.rc_context(STYLE):
        figure, axes = _axes(title, xlabel, [max(depth, 6) for depth in depths])
        for panel, (network, kinds), depth in zip(axes, layers.items(), depths, strict=True):
            for part, label, colour in shown:
                for tokens in kinds:
                    style, what, _ = KINDS[tokens]
                    curve = part[part.tokens == tokens].sort_values("layer")
                    name = f"{label}, {what}" if panel is axes[0] else what
                    panel.plot(curve.layer, curve["mean"], style, color=colour, marker="o", ms=3, label=name)
                    if tokens == kinds[0]:
                        low, high = curve["mean"] - curve.sd, curve["mean"] + curve.sd
                        panel.fill_between(curve.layer, low, high, color=colour, alpha=0.15, linewidth=0)
            if len(axes) > 1:
                panel.set_xlabel(f"{network} {xlabel}")
            panel.legend(loc="best", fontsize=8)
            _scale(panel, depth)
        save(figure, Path(path))


def plot_comparison(groups: Sequence[tuple[str, dict[str, np.ndarray]]], path: str | Path, title: str = "") -> None:
    """Similarity by layer of several groups of runs; band = ± sd over seeds.

    Args:
        groups: (label, curves (seeds, layers) by part of the network; a part that no group has is left out).
    """
    shown = [part for part in groups[0][1] if any(curves[part].size for _, curves in groups)]
    depths = {part: max(c[part].shape[1] for _, c in groups if c[part].size) for part in shown}
    with plt.rc_context(STYLE):
        figure, axes = _axes(title, panels=[max(depth, 6) for depth in depths.values()])
        for panel, part in zip(axes, shown, strict=True):
            for i, (label, by_part) in enumerate(groups):
                if not (curves := by_part[part]).size:
                    continue
                mean, layers = curves.mean(0), np.arange(curves.shape[1])
                style = {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}
                panel.plot(layers, mean, marker="o", ms=3, label=plain(label), **style)
                if len(curves) > 1:
                    sd = curves.std(0, ddof=1)
                    panel.fill_between(layers, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)
            if len(axes) > 1:
                panel.set_xlabel(f"{part} {LAYERS}")
            _scale(panel, depths[part])
        axes[0].legend(loc="best", fontsize=8)
        save(figure, Path(path))
