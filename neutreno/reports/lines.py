"""Rows as lines in panels: together, on one scale of colours, highlighted, or a small panel each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neutreno.errors import InputError, one_line
from neutreno.reports.drawing import (
    COLUMN,
    INK,
    PAGE,
    PALE,
    STYLE,
    band,
    columns_of,
    heading,
    keep_within,
    number_scale,
    plain,
    save_both,
    subplots,
    wrapped,
)
from neutreno.reports.panels import Line, Panel
from neutreno.reports.styles import BASELINE, Style, styles_of

FEW = 6  # lines that one panel shows


@dataclass
class Look:
    """How rows are drawn.

    Args:
        width: of the figure in inches; None: a column for one panel, a page for several.
        highlight: rows by name, drawn on all others in grey; (): all, in panels of their own where they are many.
        full: axes of a bounded metric from 0 to its end instead of fitting what is drawn.
        numbers: what the rows' numbers are called; more than three of them share one scale of colours.
    """

    title: str = ""
    width: float | None = None
    highlight: Sequence[str] = ()
    full: bool = False
    numbers: str | None = None
    styles: dict[str, Style] = field(default_factory=dict)  # by the rows' labels


def plot_panels(panels: Sequence[Panel], prefix: str | Path, look: Look | None = None) -> list[Path]:
    """Rows as lines in panels: means over seeds with a band of ± sd. As PDF and PNG; returns their paths.

    More than ``FEW`` rows are small multiples, a panel each.

    Raises:
        InputError: ``highlight`` names no row.
    """
    look = replace(look or Look(), styles=styled(panels))
    with plt.rc_context(STYLE):
        numbers = {line.number for panel in panels for line in panel.lines} if look.numbers else set()
        if look.highlight:
            return save_both(_highlighted(panels, look), prefix)
        if len(numbers) > 3:
            return save_both(_scaled(panels, look, sorted(numbers)), prefix)
        if max(len(panel.lines) for panel in panels) > FEW:
            return save_both(_multiples(panels, look), prefix)
        return save_both(_together(panels, look), prefix)


def styled(panels: Sequence[Panel]) -> dict[str, Style]:
    """A style for each label; of rows of one method in one panel, each its own."""
    found: dict[str, Style] = {}
    for panel in panels:
        styles = styles_of(line.method for line in panel.lines)
        found = {line.label: style for line, style in zip(panel.lines, styles, strict=True)} | found
    return found


def _laid_out(panels: Sequence[Panel], look: Look):
    """A figure with a row of the panels, and their axes."""
    width = look.width or (COLUMN if len(panels) == 1 else PAGE)
    across = min(len(panels), max(1, int(width / 1.5)))
    down = -(-len(panels) // across)
    share = len({panel.ylabel for panel in panels}) == 1
    figure, axes = subplots(down, across, figsize=(width, 0.55 + 1.75 * down), sharey=share, squeeze=False)
    if look.title:
        heading(figure, look.title)
    for spare in axes.flat[len(panels) :]:
        spare.remove()
    for number, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        axis.set(title=wrapped(panel.title, width / across, 8, 200), xlabel=plain(panel.xlabel))
        if not share or number % across == 0:
            axis.set_ylabel(wrapped(panel.ylabel, 1.75, 8))
    return figure, axes.flat[: len(panels)]


def _finish(drawn: Iterable[tuple[Axes, Panel]], look: Look, ticks: int = 7) -> None:
    """Limits and ticks, when all lines of all panels are drawn."""
    for axis, panel in drawn:
        if panel.ticks is not None:
            axis.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        else:
            axis.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
        keep_within(axis, panel.largest, look.full)
        low, high = axis.get_ylim()
        if low < 0 < high:
            axis.axhline(0, color=INK, linewidth=0.5, zorder=1)


def _legend(figure: Figure, entries: Mapping[str, object], look: Look) -> None:
    """Below the panels; labels of lines that are drawn alike stand together."""
    alike: dict[str, tuple[object, list[str]]] = {}
    for label, line in entries.items():
        alike.setdefault(str(look.styles.get(label, label)), (line, []))[1].append(label)
    labels = [", ".join(texts) for _, texts in alike.values()]
    columns = columns_of(labels, figure.get_figwidth())
    shown = [plain(label, 60) for label in labels]
    figure.legend([line for line, _ in alike.values()], shown, loc="outside lower center", ncols=columns)


def _together(panels: Sequence[Panel], look: Look) -> Figure:
    figure, axes = _laid_out(panels, look)
    entries: dict[str, object] = {}
    for axis, panel in zip(axes, panels, strict=True):
        for line in panel.lines:
            band(axis, line.x, line.mean, line.sd, 0.13, **look.styles[line.label].drawn)
            entries.setdefault(line.label, axis.lines[-1])
    _finish(zip(axes, panels, strict=True), look)
    _legend(figure, entries, look)
    return figure


def _scaled(panels: Sequence[Panel], look: Look, numbers: Sequence[float]) -> Figure:
    """A colour per number, with one bar for all."""
    figure, axes = _laid_out(panels, look)
    scale = number_scale(numbers)
    for axis, panel in zip(axes, panels, strict=True):
        for line in panel.lines:
            band(axis, line.x, line.mean, line.sd, 0.08, color=scale.to_rgba(line.number))
    _finish(zip(axes, panels, strict=True), look)
    figure.colorbar(scale, ax=[*axes], label=plain(look.numbers), ticks=numbers)
    return figure


def _highlighted(panels: Sequence[Panel], look: Look) -> Figure:
    """Those named and the baseline in their styles, on all others in grey."""
    lines = [line for panel in panels for line in panel.lines]
    chosen = {line.label for line in lines if line.method == BASELINE}
    for name in look.highlight:
        named = {line.label for line in lines if name in (line.label, line.method)}
        named = named or {line.label for line in lines if name == line.method.partition(" ")[0]}
        if not named:
            known = ", ".join(dict.fromkeys(line.label for line in lines))
            raise InputError(f"--highlight {one_line(name)}: no such row; rows: {one_line(known)}")
        chosen |= named
    figure, axes = _laid_out(panels, look)
    entries: dict[str, object] = {}
    for axis, panel in zip(axes, panels, strict=True):
        for line in panel.lines:
            if line.label not in chosen:
                axis.plot(line.x, line.mean, color=PALE, linewidth=0.8, zorder=1)
                other = axis.lines[-1]
        for line in (line for line in panel.lines if line.label in chosen):
            band(axis, line.x, line.mean, line.sd, 0.13, **look.styles[line.label].drawn)
            entries.setdefault(line.label, axis.lines[-1])
    _finish(zip(axes, panels, strict=True), look)
    if others := len({line.label for line in lines} - chosen):
        entries[f"{others} others"] = other
    _legend(figure, entries, look)
    return figure


def _multiples(panels: Sequence[Panel], look: Look) -> Figure:
    """A small panel for each row, on all others in grey; a single row at the baseline is in each of them instead."""
    width = look.width or PAGE
    across = min(5, max(2, int(width // 1.05)))
    shown = []  # of each panel, what has a panel of its own
    for panel in panels:
        base = [line for line in panel.lines if line.method == BASELINE]
        shown.append([line for line in panel.lines if len(base) != 1 or line is not base[0]])
    blocks = [-(-len(lines) // across) for lines in shown]
    size = (width, 0.75 + (width / across * 0.8 + 0.15) * sum(blocks))
    figure, axes = subplots(sum(blocks), across, figsize=size, squeeze=False)
    if look.title:
        heading(figure, look.title)
    entries: dict[str, object] = {}
    for start, panel, lines in zip(np.cumsum([0, *blocks]), panels, shown, strict=False):
        block = axes[start : start + -(-len(lines) // across)]
        for spare in block.flat[len(lines) :]:
            spare.remove()
        for number, (axis, line) in enumerate(zip(block.flat, lines, strict=False)):
            axis.sharey(block[0, 0]) if number else None
            entries |= _one_of(axis, panel, line, look, width / across)
            lowest = number + across >= len(lines)
            axis.tick_params(labelleft=number % across == 0, labelbottom=lowest)
            if lowest and start + number // across + 1 == sum(blocks):
                axis.set_xlabel(wrapped(panel.xlabel, width / across, 7), fontsize=7)
        _finish(((axis, panel) for axis in block.flat[: len(lines)]), look, 4)
        if len(panels) > 1:
            block[0, 0].set_ylabel(wrapped(panel.title or panel.ylabel, width / across * 0.8, 7), fontsize=7)
    if len({panel.ylabel for panel in panels}) == 1:
        figure.supylabel(plain(panels[0].ylabel), fontsize=8)
    _legend(figure, entries, look)
    return figure


def _one_of(axis, panel: Panel, line: Line, look: Look, width: float) -> dict[str, object]:
    """Draw a row on the others; the lines of those for the legend."""
    entries = {}
    for other in panel.lines:
        if other.method == BASELINE:
            style = {**look.styles[other.label].drawn, "marker": "", "linewidth": 1}
            entries[other.label] = axis.plot(other.x, other.mean, zorder=2, **style)[0]
        elif other is not line:
            entries["all others"] = axis.plot(other.x, other.mean, color=PALE, linewidth=0.5, zorder=1)[0]
    band(axis, line.x, line.mean, line.sd, 0.18, zorder=3, **{**look.styles[line.label].drawn, "markersize": 2})
    axis.set_title(wrapped(line.label, width, 7, 80), fontsize=7)
    return entries
