"""An evaluation as a page of Markdown that reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neutreno.reports.escaping import in_markdown, markdown_table


@dataclass
class Table:
    """A table of the page, its cells as they are shown; the first column's name says what the table is."""

    columns: list[str]
    rows: list[list[str]]


def first_table(metrics: dict[str, float], further: Sequence[tuple[str, str]], percent: tuple[str, ...]) -> Table:
    """All metrics, losses last, and ``further`` rows below them.

    Args:
        percent: how the names of metrics end that are given in percent.
    """
    named = sorted(metrics.items(), key=lambda item: item[0].endswith("loss"))
    rows = [[name, _number(value, name.endswith(percent), name.endswith("loss"))] for name, value in named]
    return Table(["figure", "value"], [*rows, *map(list, further)])


def _number(value: float, is_percent: bool, is_loss: bool) -> str:
    if is_percent:
        return f"{value:.2f} %"
    return f"{value:.4f}" if is_loss or abs(value) < 1 else f"{value:.2f}"


def render(evaluation: dict[str, Any]) -> str:
    """``evaluation.json`` for people: where the weights are from, and every table that the evaluators left."""
    page = [in_markdown(f"# {evaluation['name']}"), in_markdown(f"Weights: {evaluation['weights']}")]
    for table in evaluation["tables"]:
        aligned = ["left"] + ["right"] * (len(table["columns"]) - 1)
        page.append(markdown_table(table["rows"], table["columns"], colalign=aligned))
    return "\n\n".join(page) + "\n"
