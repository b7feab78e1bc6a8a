"""Figures of over-smoothing, drawn from run folders."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from neutreno.errors import InputError
from neutreno.files import replacing
from neutreno.reports.layers import ALL, LAYERS, part_of, said_of, title_of

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
SIMILARITY = "cosine similarity between tokens"
LINES = ("-", ":", "--", "-.")  # of the token subsets, all of them first


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
    axes[0, 0].set_ylabel(SIMILARITY)
    for panel in axes[0]:
        panel.set_xlabel(xlabel)
    return figure, axes[0]


def _scale(axes, layers: int, metric: str = "cosine", ticks: int = 13) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    low, high = axes.get_ylim()
    axes.set(xlim=(0, max(layers - 1, 1)), ylim=(min(0.0, low), 1.0 if metric == "cosine" else high))
    axes.axhline(0, color="black", linewidth=0.6)


def save(figure, path: Path) -> None:
    """Write a figure, in the format of ``path``'s ending, and let go of it."""
    kind = path.suffix.removeprefix(".")
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"cannot draw {path}: name it .png, .pdf or .svg")
    with replacing(path, "wb") as file:
        figure.savefig(file, format=kind)
    plt.close(figure)


def plot_similarity(rows: list[dict], path: str | Path, title: str = "") -> None:
    """Similarity by layer of one run (rows of ``oversmoothing.csv``), initial against trained; band ± sd of samples."""
    data = pd.DataFrame([row for row in rows if row["metric"] == "cosine"])
    if "step" in data:
        steps = sorted(data.step.unique())
        shown = [(data[data.step == steps[0]], "at initialisation", GREY)]
        if len(steps) > 1:
            last = data[data.step == steps[-1]]
            shown.append((last, f"after {last.step.iloc[0]:,} steps", COLOURS[0]))
    else:
        shown = [(data, "trained", COLOURS[0])]
    stacks = data["stack"].unique()
    depths = [int(data[data["stack"] == stack].layer.max()) + 1 for stack in stacks]
    with plt.rc_context(STYLE):
        figure, axes = _axes(title, panels=[max(depth, 6) for depth in depths])
        for panel, stack, depth in zip(axes, stacks, depths, strict=True):
            for part, label, colour in shown:
                part = part[part["stack"] == stack]
                for line, subset in zip(LINES, part.subset.unique(), strict=False):
                    curve = part[part.subset == subset].sort_values("layer")
                    name = f"{label}, {said_of(subset)}"
                    panel.plot(curve.layer, curve["mean"], line, color=colour, marker="o", ms=3, label=name)
                    if subset == ALL:
                        low, high = curve["mean"] - curve.sd, curve["mean"] + curve.sd
                        panel.fill_between(curve.layer, low, high, color=colour, alpha=0.15, linewidth=0)
            if len(axes) > 1:
                panel.set_xlabel(f"{part_of(stack)} {LAYERS}".strip())
            _scale(panel, depth)
        axes[0].legend(loc="best", fontsize=8)  # holds for the other panels, too
        save(figure, Path(path))


def plot_profile(table: pd.DataFrame, path: str | Path, title: str = "") -> None:
    """What ``neutreno.profile`` gave of all tokens: a panel per metric and stack; band ± sd of samples.

    A column ``lam``, where there is one, sets curves apart (0: the model as it is).
    """
    table = table[table["subset"] == ALL]
    metrics, stacks = table["metric"].unique(), table["stack"].unique()
    curves = list(table.groupby("lam")) if "lam" in table else [(None, table)]
    depths = [int(table[table["stack"] == stack]["layer"].max()) for stack in stacks]
    alone = len(stacks) == 1  # then the metrics stand side by side, else each has a row
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            *((1, len(metrics)) if alone else (len(metrics), len(stacks))),
            figsize=(1 + 3.2 * len(metrics), 3.2) if alone else (4 + 2.4 * min(len(stacks), 4), 1 + 2 * len(metrics)),
            sharey=False if alone else "row",
            squeeze=False,
            width_ratios=None if alone else [max(depth, max(depths) / 3) for depth in depths],
            layout="constrained",
        )
        heading(figure, title)
        axes = axes.reshape(len(metrics), len(stacks))
        for number, (row, metric) in enumerate(zip(axes, metrics, strict=True)):
            row[0].set_ylabel(title_of(metric))
            for panel, stack, depth in zip(row, stacks, depths, strict=True):
                for (lam, part), colour in zip(curves, COLOURS, strict=False):
                    curve = part[(part["stack"] == stack) & (part["metric"] == metric)]
                    label = None if lam is None else "as it is" if lam == 0 else f"λ̃ = {lam:g}"
                    panel.plot(curve["layer"], curve["mean"], color=colour, marker="o", ms=3, label=label)
                    low, high = curve["mean"] - curve["sd"], curve["mean"] + curve["sd"]
                    panel.fill_between(curve["layer"], low, high, color=colour, alpha=0.15, linewidth=0)
                panel.set_xticks(range(0, depth + 1, max(1, depth // 6)))
                panel.margins(x=0.03)
                if number == 0 or alone:
                    panel.set_title(plain(stack, 28), fontsize=9)
                if number == len(metrics) - 1 or alone:
                    panel.set_xlabel("layer (0 = input)")
            low, high = row[0].get_ylim()  # of all that was drawn in the row
            row[0].set_ylim(min(0.0, low), max(1.02, high) if metric in ("cosine", "residual") else high)
        if len(curves) > 1:
            axes[0, 0].legend(loc="best", fontsize=8)
        save(figure, Path(path))


PAPER = {  # ready to paste: a column of 3.25 in or a page of 6.75 in, fonts that stay text
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.titlesize": 8,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "savefig.dpi": 300,
}
MARKERS = "osD^vPX"


def number_scale(numbers: Iterable[float]) -> plt.cm.ScalarMappable:
    """One scale of colours for many numbers: ``to_rgba(number)`` is a curve's, and it draws its own colour bar."""
    colours = matplotlib.colors.ListedColormap(plt.cm.viridis(np.linspace(0, 0.9, 256)))
    return plt.cm.ScalarMappable(plt.Normalize(min(numbers), max(numbers)), colours)


def save_both(figure, prefix: str | Path) -> list[Path]:
    """Write ``prefix.pdf`` and ``prefix.png``, let go of the figure and return their paths."""
    paths = [Path(f"{prefix}.{kind}") for kind in ("pdf", "png")]
    for path in paths:
        save(figure, path)
    return paths


def plot_curves(
    panels: Sequence[tuple[str, Sequence[Curves]]],
    prefix: str | Path,
    title: str = "",
    metric: str = "cosine",
    numbers: str | None = None,
) -> list[Path]:
    """A layer-wise metric, a panel per task and part of a network, mean over seeds with a band of ± sd.

    More than six rows have their legend beside the panels. Writes ``prefix.pdf`` and ``prefix.png``, and returns their
    paths.

    Args:
        numbers: what the rows' numbers are; more than four of them share one scale of colours, which is called so.
    """
    with plt.rc_context({**STYLE, **PAPER}):
        found = {c.number for _, rows in panels for c in rows} if numbers else set()
        scale = number_scale(found) if len(found) > 4 else None
        many = scale is None and max(len(rows) for _, rows in panels) > 6
        width = 6.75 if many else min(6.75, max(3.25, 2.25 * len(panels)))
        figure, axes = plt.subplots(
            ncols=len(panels), figsize=(width, 3.4 if many else 2.5), sharey=True, squeeze=False, layout="constrained"
        )
        if title:
            figure.suptitle(plain(title), fontsize=PAPER["axes.titlesize"] + 1)
        axes[0, 0].set_ylabel(SIMILARITY if metric == "cosine" else title_of(metric))
        for panel, (heading_, rows) in zip(axes[0], panels, strict=True):
            for number, row in enumerate(rows):
                mean, layers = row.values.mean(0), np.arange(row.values.shape[1])
                colour = COLOURS[number % len(COLOURS)] if scale is None else scale.to_rgba(row.number)
                style = {"color": colour, "linestyle": ("-", "--", ":", "-.")[number % 4 if scale is None else 0]}
                marker = MARKERS[number % len(MARKERS)]
                panel.plot(layers, mean, marker=marker, ms=2.5, lw=1.1, label=plain(row.label), **style)
                if len(row.values) > 1:
                    sd = row.values.std(0, ddof=1)
                    alpha = 0.15 if scale is None and not many else 0.06
                    panel.fill_between(layers, mean - sd, mean + sd, color=colour, alpha=alpha, linewidth=0)
            panel.set(title=plain(heading_), xlabel=LAYERS)
            _scale(panel, max(row.values.shape[1] for row in rows), metric, 13 if len(panels) < 3 else 6)
        if many:
            named = {
                text: line for panel in axes[0] for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
            }
            figure.legend(named.values(), named.keys(), loc="outside right center")
        elif scale is None:
            said: list[str] = []
            for panel, (_, rows) in zip(axes[0], panels, strict=True):
                if (labels := [row.label for row in rows]) != said:  # a legend holds for what follows, too
                    panel.legend(loc="best")
                    said = labels
        else:
            figure.colorbar(scale, ax=axes[0, -1], label=numbers, ticks=sorted(found))
        return save_both(figure, prefix)


@dataclass
class Curves:
    """One row of a comparison: similarity by layer of its runs (seeds, layers)."""

    label: str
    number: float | None
    values: np.ndarray
