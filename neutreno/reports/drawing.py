"""How all figures look and are written: one style, text as it stands, fonts, bands, axes, legends, PDF and PNG."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from neutreno.errors import InputError, one_line
from neutreno.files import replacing

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
