"""How a method is drawn: its colour, marker and dash are its own in every figure, and on the page in either theme.

A style follows from the method's name alone, never from what is drawn beside it. Six hues, of which one is NeuTRENO's,
and a grey for the baseline; shades differ by theme so that each has a contrast of 3 : 1 or more (WCAG 2.2, 1.4.11).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2s
from typing import Any

from neutreno.records import is_number
from neutreno.variants import equation, words

GROUNDS = {"light": "#ffffff", "dark": "#14171b"}  # what is drawn on
GREY = {"light": "#6b7078", "dark": "#a3a9b1"}
OWN = {"light": "#d55e00", "dark": "#ff8f45"}
HUES = (  # of all other methods
    {"light": "#0072b2", "dark": "#56b4e9"},
    {"light": "#00855f", "dark": "#2fc79a"},
    {"light": "#c2508f", "dark": "#ee96c6"},
    {"light": "#9c7400", "dark": "#e3b63c"},
    {"light": "#7a4fc0", "dark": "#b9a0f2"},
)
MARKERS = {  # matplotlib's, and what Plotly calls them
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
}
DASHES = ((), (5, 1.6), (1.2, 1.4), (6, 1.5, 1.2, 1.5))  # lengths of line and gap, in widths of the line
BASELINE, NEUTRENO = "baseline", "neutreno λ̃"
SALT = b"3559"  # by which no two rows of a table are alike; where a test finds that some are, take another


@dataclass(frozen=True)
class Style:
    """Of a curve: ``colour`` by theme, one of ``MARKERS``, one of ``DASHES``."""

    colour: dict[str, str]
    marker: str = "o"
    dash: tuple[float, ...] = ()

    @property
    def drawn(self) -> dict[str, Any]:
        """As matplotlib's ``plot`` takes it, on white."""
        return {
            "color": self.colour["light"],
            "marker": self.marker,
            "linestyle": (0, self.dash) if self.dash else "-",
        }


FIXED = {BASELINE: Style(GREY), NEUTRENO: Style(OWN, "s")}


def method_of(described: dict[str, Any]) -> str:
    """The method of a run, of its record or of :func:`neutreno.variants.describe`: what is chosen on its axes, with the
    labels of numbers but not their values, so that NeuTRENO is one method at any λ̃.

    Where nothing is chosen, softmax attention or plain propagation is ``BASELINE``; a network that has no such axis,
    as GCNII, is a method itself.
    """
    chosen = words(described, write=_without_number)
    if chosen == ["none"]:
        return described["settings"]["model"]
    return BASELINE if all(axis["baseline"] for axis in described["axes"].values()) else " + ".join(chosen)


def _without_number(key: str, label: str, value: Any) -> str:
    return label if is_number(value) else equation(key, label, value)


def style_of(method: str) -> Style:
    """The style of a method, by its name: fixed for the baseline and NeuTRENO, else by a hash, since an order would
    change whenever a method is added."""
    if method in FIXED:
        return FIXED[method]
    number = int.from_bytes(blake2s(method.encode(errors="replace"), salt=SALT).digest())
    number, hue = divmod(number, len(HUES))
    number, marker = divmod(number, len(MARKERS))
    return Style(HUES[hue], [*MARKERS][marker], DASHES[number % len(DASHES)])


def styles_of(methods: Iterable[str]) -> list[Style]:
    """The styles of rows that are drawn together: those of one method, which differ in a number, differ in dash and
    marker at once, so that points are told apart as lines are."""
    found: list[Style] = []
    markers = [*MARKERS]
    for style in map(style_of, methods):
        dash, marker = DASHES.index(style.dash), markers.index(style.marker)
        others = (
            replace(style, dash=DASHES[(dash + m + k) % len(DASHES)], marker=markers[(marker + m) % len(markers)])
            for k in range(len(DASHES))
            for m in range(len(markers))
        )
        found.append(next((other for other in others if other not in found), style))
    return found
