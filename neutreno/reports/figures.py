"""Figures of layers: of one run, of a profile, and over the steps of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neutreno.records import ALL
from neutreno.reports.course import Course
from neutreno.reports.drawing import (
    GREY,
    INK,
    PAGE,
    STYLE,
    band,
    columns_of,
    heading,
    keep_within,
    plain,
    save,
    save_both,
    subplots,
)
from neutreno.reports.layers import LARGEST, LAYERS, part_of, said_of, title_of
from neutreno.reports.styles import BASELINE, DASHES, NEUTRENO, style_of

LINES = [(0, dash) if dash else "-" for dash in DASHES]  # of token subsets, all of them first


def plot_similarity(rows: list[dict], path: str | Path, title: str = "") -> None:
    """Similarity by layer of one run (rows of ``oversmoothing.csv``), initial against trained; band ± sd of samples."""
    table = pd.DataFrame([row for row in rows if row["metric"] == "cosine"])
    times = [(table, "trained", INK)]
    if "step" in table:
        first, last = table.step.min(), table.step.max()
        times = [(table[table.step == first], "at initialisation", GREY)]
        if last > first:
            times.append((table[table.step == last], f"after {last:,} steps", INK))
    curves = [
        (
            part if subset == ALL else part.assign(sd=np.nan),
            f"{label}, {said_of(subset)}",
            {"color": c, "ls": line, "marker": "o"},
        )
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


def plot_profile(table: pd.DataFrame, prefix: str | Path, title: str = "") -> list[Path]:
    """What ``neutreno.profile`` gave of all tokens; band ± sd of samples. As PDF and PNG.

    A column ``lam``, where there is one, sets curves apart (0: the model as it is).
    """
    table = table[table["subset"] == ALL]
    if "lam" in table:
        curves = [
            (part, f"λ̃ = {lam:g}" if lam else "as it is", style_of(NEUTRENO if lam else BASELINE).drawn)
            for lam, part in table.groupby("lam")
        ]
    else:
        curves = [(table, None, {"color": INK, "marker": "o"})]
    with plt.rc_context(STYLE):
        return save_both(by_layer(curves, title), prefix)


def by_layer(
    curves: Sequence[tuple[pd.DataFrame, str | None, dict[str, object]]],
    title: str = "",
    size: tuple[float, float] | None = None,
):
    """A figure of layer-wise metrics: a row of panels per stack, a column per metric; band ± sd of samples.

    Args:
        curves: rows of layer-wise metrics, one curve in each panel; what the legend says; what else ``plot`` takes.
    """
    table = pd.concat([part for part, *_ in curves])
    metrics, stacks = table["metric"].unique(), table["stack"].unique()
    size = size or (max(4.5, 2.25 * len(metrics)), 0.8 + 1.7 * len(stacks))
    figure, axes = subplots(len(stacks), len(metrics), figsize=size, sharey="col", squeeze=False)
    if title:
        heading(figure, title)
    for panel, (stack, metric) in zip(axes.flat, product(stacks, metrics), strict=True):
        for part, label, style in curves:
            curve = part[(part["stack"] == stack) & (part["metric"] == metric)].sort_values("layer")
            band(panel, curve["layer"], curve["mean"], curve["sd"], label=label and plain(label, 60), **style)
        panel.set(xlabel=plain(f"{part_of(stack)} {LAYERS}".strip(), 60), ylabel=plain(title_of(metric)))
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    for panel, metric in zip(axes[0], metrics, strict=True):
        keep_within(panel, LARGEST.get(metric))
    handles, labels = axes[0, 0].get_legend_handles_labels()  # hold for the other panels, too
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns_of(labels, size[0]))
    return figure


def plot_courses(
    courses: Mapping[str, Course], prefix: str | Path, title: str = "", metric: str = "cosine"
) -> list[Path]:
    """A layer-wise metric over layers and steps, a heat map per row, with the training loss beside it.

    Writes ``prefix.pdf`` and ``prefix.png``, and returns their paths.

    Args:
        courses: of the rows by label, see :func:`neutreno.reports.course.course_of`.
    """
    with plt.rc_context(STYLE):
        size = {"figsize": (PAGE, 0.6 + 1.25 * len(courses)), "width_ratios": (3, 2)}
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
            band(loss, course.loss_steps, course.loss, course.sd, color=INK)
            loss.set(ylabel="training loss", ylim=(min(map(np.min, losses)) * 0.98, max(map(np.max, losses)) * 1.02))
        for panel in axes[-1]:
            panel.set_xscale("symlog", linthresh=max([1, *steps[1:2]]), linscale=0.3)  # what happens, happens early
            panel.set(xlabel="step", xlim=(0, steps[-1]))
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            panel.minorticks_off()
        figure.colorbar(drawn, ax=axes[:, 0], label=plain(title_of(metric)))
        return save_both(figure, prefix)
