"""Figures of over-smoothing, drawn from run folders."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neutreno.errors import one_line
from neutreno.files import replacing
from neutreno.records import ALL
from neutreno.reports.course import Course
from neutreno.reports.layers import LARGEST, LAYERS, part_of, said_of, title_of

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=COLOURS, marker="o" * len(COLOURS)),
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 3,
    "savefig.dpi": 160,
}
GREY = "#888888"
SIMILARITY = "cosine similarity between tokens"
LINES = ("-", "--", ":", "-.")  # of token subsets, all of them first, or of rows


def plain(text: str, most: int | None = None) -> str:
    """``text`` as it stands, no formula, and cut to ``most`` characters."""
    text = "\n".join(map(one_line, text.split("\n")))
    return (text if most is None or len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")


def heading(figure, title: str) -> None:
    """The title of a whole figure, on as many lines as its width asks for."""
    size = STYLE["font.size"] * 1.2
    lines = textwrap.wrap(title, max(20, int(figure.get_figwidth() * 72 / (0.6 * size))))
    figure.suptitle(plain("\n".join(lines)), fontsize=size)


def band(panel, layers, mean, sd, alpha: float = 0.15, **style) -> None:
    """A curve by layer with a band of ± ``sd``; none where that is NaN."""
    (line,) = panel.plot(layers, mean, **style)
    panel.fill_between(layers, mean - sd, mean + sd, color=line.get_color(), alpha=alpha, linewidth=0)


def subplots(*shape: int, figsize: tuple[float, float], **grid):
    """``plt.subplots`` of a figure that pyplot does not know: it opens no window, and a notebook keeps its backend."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(*shape, **grid)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, in the format of ``path``'s ending."""
    with replacing(path, "wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def plot_similarity(rows: list[dict], path: str | Path, title: str = "") -> None:
    """Similarity by layer of one run (rows of ``oversmoothing.csv``), initial against trained; band ± sd of samples."""
    table = pd.DataFrame([row for row in rows if row["metric"] == "cosine"])
    times = [(table, "trained", COLOURS[0])]
    if "step" in table:
        first, last = table.step.min(), table.step.max()
        times = [(table[table.step == first], "at initialisation", GREY)]
        if last > first:
            times.append((table[table.step == last], f"after {last:,} steps", COLOURS[0]))
    curves = [
        (part if subset == ALL else part.assign(sd=np.nan), f"{label}, {said_of(subset)}", {"color": c, "ls": line})
        for at, label, c in times
        for line, (subset, part) in zip(LINES, at.groupby("subset", sort=False), strict=False)
    ]
    with plt.rc_context(STYLE):
        save(by_layer(curves, title), Path(path))


def layers_figure(rows: list[dict], title: str = "") -> Figure:
    """All layer-wise metrics of one measurement by layer, a curve per token subset; band ± sd of samples."""
    parts = pd.DataFrame(rows).groupby("subset", sort=False)
    with plt.rc_context(STYLE):
        curves = [(part, said_of(subset), {"ls": LINES[i % len(LINES)]}) for i, (subset, part) in enumerate(parts)]
        return by_layer(curves, title)


def plot_profile(table: pd.DataFrame, path: str | Path, title: str = "") -> None:
    """What ``neutreno.profile`` gave of all tokens; band ± sd of samples.

    A column ``lam``, where there is one, sets curves apart (0: the model as it is).
    """
    table = table[table["subset"] == ALL]
    parts = list(table.groupby("lam")) if "lam" in table else [(None, table)]
    labels = [None if lam is None else f"λ̃ = {lam:g}" if lam else "as it is" for lam, _ in parts]
    curves = [(part, label, {}) for (_, part), label in zip(parts, labels, strict=True)]
    with plt.rc_context(STYLE):
        save(by_layer(curves, title), Path(path))


def by_layer(
    curves: Sequence[tuple[pd.DataFrame, str | None, dict[str, str]]],
    title: str = "",
    size: tuple[float, float] | None = None,
):
    """A figure of layer-wise metrics: a row of panels per stack, a column per metric; band ± sd of samples.

    Args:
        curves: rows of layer-wise metrics, one curve in each panel; what the legend says; what else ``plot`` takes.
    """
    table = pd.concat([part for part, *_ in curves])
    metrics, stacks = table["metric"].unique(), table["stack"].unique()
    size = size or (4 + 2.4 * len(metrics), 1.6 + 2 * len(stacks))
    figure, axes = subplots(len(stacks), len(metrics), figsize=size, sharey="col", squeeze=False)
    heading(figure, title)
    for panel, (stack, metric) in zip(axes.flat, product(stacks, metrics), strict=True):
        for part, label, style in curves:
            curve = part[(part["stack"] == stack) & (part["metric"] == metric)].sort_values("layer")
            band(panel, curve["layer"], curve["mean"], curve["sd"], label=label and plain(label, 60), **style)
        panel.set(xlabel=plain(f"{part_of(stack)} {LAYERS}".strip(), 60), ylabel=plain(title_of(metric)))
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    for panel, metric in zip(axes[0], metrics, strict=True):
        low, high = panel.get_ylim()  # of all that was drawn in the column
        panel.set_ylim(min(0.0, low), max(1.02 * LARGEST[metric], high) if metric in LARGEST else high)
    handles, labels = axes[0, 0].get_legend_handles_labels()  # hold for the other panels, too
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


PAPER = {  # ready to paste: a column of 3.25 in or a page of 6.75 in, fonts that stay text
    "font.size": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.titlesize": 8,
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "axes.prop_cycle": plt.cycler(
        color=COLOURS * 4, linestyle=LINES * 7, marker=[*("osD^vPX*" * 4)[:28]]
    ),  # 28 lines in all
    "lines.markersize": 2.5,
    "lines.linewidth": 1.1,
}


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


def plot_lines(
    panels: Sequence[tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]],
    prefix: str | Path,
    xlabel: str,
    title: str = "",
) -> list[Path]:
    """Lines over a setting, a panel per figure: means over seeds with a band of ± sd; one legend for all.

    Args:
        panels: what each shows, and its lines by label: numbers of the setting, means, standard deviations (points,).
    """
    with plt.rc_context({**STYLE, **PAPER}):
        figure, axes = subplots(ncols=len(panels), figsize=(6.75, 2.9), squeeze=False)
        if title:
            heading(figure, title)
        ticks = sorted({x for _, lines in panels for numbers, *_ in lines.values() for x in numbers})
        labels = list(dict.fromkeys(label for _, lines in panels for label in lines))
        cycle, shown = list(plt.rcParams["axes.prop_cycle"]), {}
        for panel, (what, lines) in zip(axes[0], panels, strict=True):
            for label, (numbers, mean, sd) in lines.items():
                style = cycle[labels.index(label) % len(cycle)]
                band(panel, numbers, mean, sd, 0.1, **style)
                shown[label] = panel.lines[-1]
            panel.set(xlabel=plain(xlabel), ylabel=plain(what))
            if what.startswith(title_of("cosine")):
                panel.set_ylim(top=1.0)  # which a band would pass
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        figure.legend([*shown.values()], [plain(label, 60) for label in shown], loc="outside right center")
        return save_both(figure, prefix)


def plot_courses(
    courses: Mapping[str, Course], prefix: str | Path, title: str = "", metric: str = "cosine"
) -> list[Path]:
    """A layer-wise metric over layers and steps, a heat map per row, with the training loss beside it.

    Writes ``prefix.pdf`` and ``prefix.png``, and returns their paths.

    Args:
        courses: of the rows by label, see :func:`neutreno.reports.course.course_of`.
    """
    with plt.rc_context({**STYLE, **PAPER}):
        size = {"figsize": (6.75, 0.6 + 1.25 * len(courses)), "width_ratios": (3, 2)}
        figure, axes = subplots(len(courses), 2, **size, sharex=True, squeeze=False)
        if title:
            heading(figure, title)
        found = np.concatenate([course.layers.ravel() for course in courses.values()])
        limits = (min(0.0, np.nanmin(found)), LARGEST.get(metric, np.nanmax(found)))
        steps = sorted({0}.union(*(course.steps for course in courses.values())))
        ticks = [0]
        for step in steps:
            ticks += [step] if step >= 1.7 * ticks[-1] and step else []
        losses = [course.loss for course in courses.values()]
        for (map_, loss), (label, course) in zip(axes, courses.items(), strict=True):
            layers = np.arange(course.layers.shape[1])
            map_.grid(False)
            shades = {"shading": "nearest", "vmin": limits[0], "vmax": limits[1], "rasterized": True}
            drawn = map_.pcolormesh(course.steps, layers, course.layers.T, **shades)
            map_.set(ylabel="layer", title=plain(label, 80))
            map_.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            band(loss, course.loss_steps, course.loss, course.sd, marker="", color=COLOURS[0])
            loss.set(ylabel="training loss", ylim=(min(map(np.min, losses)) * 0.98, max(map(np.max, losses)) * 1.02))
        for panel in axes[-1]:
            panel.set_xscale("symlog", linthresh=max([1, *steps[1:2]]), linscale=0.3)  # what happens, happens early
            panel.set(xlabel="step", xlim=(0, steps[-1]))
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            panel.minorticks_off()
        figure.colorbar(drawn, ax=axes[:, 0], label=plain(title_of(metric)))
        return save_both(figure, prefix)


def plot_curves(
    panels: Sequence[tuple[str, Sequence[tuple[str, float | None, np.ndarray]]]],
    prefix: str | Path,
    title: str = "",
    metric: str = "cosine",
    numbers: str | None = None,
) -> list[Path]:
    """A layer-wise metric, a panel per task and part of a network, mean over seeds with a band of ± sd.

    More than six rows have their legend beside the panels. Writes ``prefix.pdf`` and ``prefix.png``, and returns their
    paths.

    Args:
        panels: the heading of each and its rows: label, number, and the metric by layer of its runs (seeds, layers).
        numbers: what the rows' numbers are; more than four of them share one scale of colours, which is called so.
    """
    with plt.rc_context({**STYLE, **PAPER}):
        found = {number for _, rows in panels for _, number, _ in rows} if numbers else set()
        scale = number_scale(found) if len(found) > 4 else None
        many = scale is None and max(len(rows) for _, rows in panels) > 6
        width = 6.75 if many else min(6.75, max(3.25, 2.25 * len(panels)))
        size = (width, 3.4 if many else 2.5)
        figure, axes = subplots(ncols=len(panels), figsize=size, sharey=True, squeeze=False)
        if title:
            figure.suptitle(plain(title), fontsize=PAPER["axes.titlesize"] + 1)
        axes[0, 0].set_ylabel(SIMILARITY if metric == "cosine" else plain(title_of(metric)))
        said: list[str] = []
        for panel, (heading_, rows) in zip(axes[0], panels, strict=True):
            for label, number, values in rows:
                style = {} if scale is None else {"color": scale.to_rgba(number), "linestyle": "-"}
                sd = values.std(0, ddof=1) if len(values) > 1 else np.nan
                alpha = 0.15 if scale is None and not many else 0.06
                layers = np.arange(values.shape[1])
                band(panel, layers, values.mean(0), sd, alpha, label=plain(label, 200), **style)
            layers, (low, high) = max(values.shape[1] for *_, values in rows), panel.get_ylim()
            panel.set(title=plain(heading_, 200), xlabel=LAYERS, xlim=(0, max(layers - 1, 1)))
            panel.set_ylim(min(0.0, low), LARGEST.get(metric, high))
            panel.xaxis.set_major_locator(MaxNLocator(13 if len(panels) < 3 else 6, integer=True))
            panel.axhline(0, color="black", linewidth=0.6)
            labels = [label for label, *_ in rows]
            if scale is None and not many and labels != said:  # a legend holds for what follows, too
                panel.legend(loc="best")
                said = labels
        if many:
            given = [panel.get_legend_handles_labels() for panel in axes[0]]
            named = {text: line for lines, texts in given for line, text in zip(lines, texts, strict=True)}
            figure.legend(named.values(), named.keys(), loc="outside right center")
        if scale is not None:
            figure.colorbar(scale, ax=axes[0, -1], label=plain(numbers), ticks=sorted(found))
        return save_both(figure, prefix)
