"""The figures of docs/findings.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from neutreno.reports.drawing import GREY, INK, PAGE, plain, subplots
from neutreno.reports.styles import BASELINE, NEUTRENO, style_of
from studies import COSINE, LOST
from studies.data import Study
from studies.tables import Table


def draw_collapse(read: Callable[[str], Study]) -> Figure:
    """The two collapses, with and without the term: text over the steps of training, a graph over depth."""
    text = read("collapse")
    figure, axes = subplots(1, 4, figsize=(PAGE, 2.1))
    drawn = {
        BASELINE: "softmax attention, plain GCN",
        NEUTRENO: "with the fidelity term (text: λ̃ = 0.4, graph: λ̃ = 0.6)",
    }
    draw_courses(axes[:2], text, "{}", "text: {}")
    depth, fidelity = read("graph_depth"), read("graph_fidelity")
    arms = {BASELINE: ("none", "plain"), NEUTRENO: ("neutreno", "neutreno")}
    panels = {"group_distance_ratio": "graph: distance ratio", "best/test/accuracy": "graph: accuracy, %"}
    for panel, (metric, title) in zip(axes[2:], panels.items(), strict=True):
        for method, (row, other) in arms.items():
            found = {layers: (depth, f"{layers} {row}") for layers in (2, 8, 32)}
            found |= {layers: (fidelity, f"{layers} {other}") for layers in (15, 30)}
            found = {k: study.values(name, metric) for k, (study, name) in found.items() if name in study.final.index}
            draw_means(panel, dict(sorted(found.items())), method)
        panel.set(xlabel="layers", title=title, ylim=(0, None))
    say_methods(figure, drawn)
    return figure


def draw_wikitext(read: Callable[[str], Study]) -> Figure:
    """WikiText over the steps of training, at both learning rates, with and without the term."""
    figure, axes = subplots(1, 4, figsize=(PAGE, 2.1))
    for panels, rate in ((axes[:2], "1e-3"), (axes[2:], "3e-3")):
        draw_courses(panels, read("collapse_wikitext"), f"{{}} {rate}", f"{{}}, {rate}")
    say_methods(figure, {BASELINE: "softmax attention", NEUTRENO: "with the fidelity term, λ̃ = 0.4"})
    return figure


def draw_courses(panels: Sequence[Axes], study: Study, row: str, title: str) -> None:
    """Cosine and loss over the steps of the two rows, which are called as ``row`` says."""
    for panel, (metric, said) in zip(panels, {COSINE: "cosine of tokens", LOST: "training loss"}.items(), strict=True):
        for name, method in {"softmax": BASELINE, "neutreno": NEUTRENO}.items():
            draw_course(panel, study.course(row.format(name), metric), method)
        panel.set(xlabel="optimizer step", title=title.format(said))


def say_methods(figure: Figure, said: dict[str, str]) -> None:
    lines = [Line2D([], [], **style_of(method).drawn) for method in said]
    figure.legend(lines, [plain(words) for words in said.values()], loc="outside lower center", ncols=2)


def draw_course(panel, values: pd.DataFrame, method: str) -> None:
    """Each seed as a thin line, their mean as a thick one."""
    style = style_of(method).drawn | {"marker": ""}
    panel.plot(values.index, values, alpha=0.35, lw=0.6, **style)
    panel.plot(values.index, values.mean(axis=1), lw=1.6, **style)


def draw_means(panel, values: dict[int, pd.Series], method: str) -> None:
    """Each seed as a dot, and their means joined."""
    style = style_of(method).drawn
    for at, found in values.items():
        panel.plot(np.full(len(found), at), found, alpha=0.35, **style | {"markersize": 2, "linestyle": ""})
    panel.plot([*values], [found.mean() for found in values.values()], lw=1.6, **style)


def draw_arms(study: Study, tables: dict[str, Table], columns: dict[str, str]) -> Figure:
    """A line per row of each table and a panel per metric: every seed, and the mean."""
    rows = [(title, label, row) for title, table in tables.items() for label, row in table.rows.items()]
    places = [number + 0.8 * [*tables].index(title) for number, (title, *_) in enumerate(rows)]
    size = (PAGE, 0.5 + 0.16 * places[-1])
    figure, axes = subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    for panel, (metric, title) in zip(axes[0], columns.items(), strict=True):
        for place, (*_, row) in zip(places, rows, strict=True):
            values = study.values(row, metric)
            panel.plot(values, np.full(len(values), place), "o", ms=2.5, color=GREY, alpha=0.6)
            panel.plot(values.mean(), place, "|", ms=8, mew=1.8, color=INK)
        panel.set_title(title)
    axes[0, 0].set_yticks(places, labels=[plain(f"{title}{label}") for title, label, _ in rows])
    axes[0, 0].invert_yaxis()
    return figure


def draw_graph_arms(read: Callable[[str], Study], tables: dict[str, Table]) -> Figure:
    """Of the graph study's ``tables``, by what is said before their rows."""
    columns = {
        "best/test/accuracy": "test accuracy, %",
        COSINE: "cosine, last layer",
        "group_distance_ratio": "group distance ratio",
    }
    return draw_arms(read("graph_fidelity"), tables, columns)


def draw_text_arms(read: Callable[[str], Study], tables: dict[str, Table]) -> Figure:
    """Of the text study's ``tables``, by what is said before their rows."""
    columns = {
        "best/test/ppl": "test perplexity",
        "collapsed_share/cosine": "share of training collapsed",
        COSINE: "cosine, last layer",
    }
    return draw_arms(read("collapse"), tables, columns)
