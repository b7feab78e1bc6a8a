"""Figures of over-smoothing, drawn from run folders; all of one style."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neutreno.errors import InputError, one_line
from neutreno.files import replacing
from neutreno.records import ALL
from neutreno.reports.course import Course
from neutreno.reports.layers import LARGEST, LAYERS, part_of, said_of, title_of
from neutreno.reports.styles import BASELINE, DASHES, NEUTRENO, Style, style_of, styles_of

INK, GREY, PALE = "#22272e", "#8a8f98", "#c9cdd3"  # of what is no method: one run, what is beside it, all others
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "pdf.fonttype": 42,  # fonts that stay text
    "savefig.dpi": 300,
}
COLUMN, PAGE = 3.25, 6.75  # widths of a paper, in inches
FEW = 6  # lines that one panel shows
SIMILARITY = "cosine similarity between tokens"
LINES = [(0, dash) if dash else "-" for dash in DASHES]  # of token subsets, all of them first
SIGNS = {"λ̃": r"$\tilde{\lambda}$"}  # whose tilde many fonts have not, or put elsewhere


def plain(text: str, most: int | None = None) -> str:
    """``text`` as it stands, no formula but ``SIGNS``, and cut to ``most`` characters."""
    text = "\n".join(map(one_line, text.split("\n")))
    text = (text if most is None or len(text) <= most else f"{text[: most - 1]}…").replace("$", r"\$")
    for sign, formula in SIGNS.items():
        text = text.replace(sign, formula)
    return text


def wrapped(text: str, width: float, size: float, most: int | None = None) -> str:
    """``plain`` text on as many lines as ``width`` inches ask for at a font's ``size``."""
    text = text if most is None or len(text) <= most else f"{text[: most - 1]}…"
    return plain("\n".join(textwrap.wrap(text, max(8, int(width * 72 / (0.56 * size))))))


def heading(figure: Figure, title: str) -> None:
    """The title of a whole figure."""
    size = STYLE["font.size"] + 1
    figure.suptitle(wrapped(title, figure.get_figwidth(), size), fontsize=size)


@contextmanager
def in_font(name: str | None) -> Iterator[None]:
    """What is drawn within has this font: ``serif`` or ``sans-serif``, which are always there, or one installed.

    Raises:
        InputError: it is not installed.
    """
    serif = {"font.family": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix"}  # as Times, with all signs
    known = {None: {}, "serif": serif, "sans-serif": {"font.family": ["DejaVu Sans"]}}
    if name not in known:
        installed = font_manager.get_font_names()
        if name not in installed:
            near = difflib.get_close_matches(name, installed, 3)
            said = f"did you mean {' or '.join(near)}?" if near else "take serif, sans-serif or an installed one"
            raise InputError(f"--font {one_line(name)}: no such font is installed; {said}")
        known[name] = {"font.family": [name, "DejaVu Sans"], "mathtext.fontset": "custom", "mathtext.rm": name}
        known[name] |= {"mathtext.it": f"{name}:italic"}
    with plt.rc_context(known[name]):
        yield


def band(panel, x, mean, sd, alpha: float = 0.15, **style) -> None:
    """A curve with a band of ± ``sd``, which has no edge; none where that is NaN."""
    (line,) = panel.plot(x, mean, **style)
    panel.fill_between(x, mean - sd, mean + sd, color=line.get_color(), alpha=alpha, linewidth=0, edgecolor="none")


def subplots(*shape: int, figsize: tuple[float, float], **grid):
    """``plt.subplots`` of a figure that pyplot does not know: it opens no window, and a notebook keeps its backend."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(*shape, **grid)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, in the format of ``path``'s ending; drawn again, it is the same to the bit."""
    kind = path.suffix.removeprefix(".")
    with replacing(path, "wb") as file:
        figure.savefig(file, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)


def save_both(figure: Figure, prefix: str | Path) -> list[Path]:
    """Write ``prefix.pdf`` and ``prefix.png``, and return their paths."""
    paths = [Path(f"{prefix}.{kind}") for kind in ("pdf", "png")]
    for path in paths:
        save(figure, path)
    return paths


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


def keep_within(panel, largest: float | None, full: bool = False) -> None:
    """The axis of a metric fits what is drawn, but does not pass what the metric can reach. To be called when all
    panels that share the axis are drawn, since it fits nothing further from then on.

    Args:
        largest: that the metric can be; None where there is no such number.
        full: from 0, or what is below it, to the largest.
    """
    low, high = panel.get_ylim()
    if largest is not None:
        high = largest if full else min(high, 1.02 * largest)
    panel.set_ylim(min(0.0, low) if full else low, high)


def columns_of(labels: Sequence[str], width: float) -> int:
    """Of a legend, as many as ``width`` inches hold."""
    longest = max(map(len, labels), default=0)
    return max(1, min(len(labels), int(width / (0.55 + longest * 0.55 * STYLE["legend.fontsize"] / 72))))


def number_scale(numbers: Iterable[float]) -> plt.cm.ScalarMappable:
    """One scale of colours for many numbers: ``to_rgba(number)`` is a curve's, and it draws its own colour bar."""
    colours = matplotlib.colors.ListedColormap(plt.cm.viridis(np.linspace(0, 0.85, 256)))
    return plt.cm.ScalarMappable(plt.Normalize(min(numbers), max(numbers)), colours)


@dataclass
class Line:
    """A row's line in a panel: mean over seeds, NaN ``sd`` for a single one.

    Args:
        method: by which it is drawn, see :mod:`neutreno.reports.styles`.
        number: by which rows of one method are told apart.
    """

    label: str
    method: str
    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    number: float | None = None


@dataclass
class Panel:
    """What a panel shows; ``largest`` is what its metric can be at most, ``ticks`` where x has values alone."""

    lines: list[Line]
    xlabel: str
    ylabel: str
    title: str = ""
    largest: float | None = None
    ticks: Sequence[float] | None = None


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
