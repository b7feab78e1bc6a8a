"""An evaluation as a page of Markdown that reads well in a terminal too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neutreno.reports.escaping import in_markdown, markdown_table


@dataclass
class Table:
    """A table of the page, its cells as they are shown; the first column's name says what the table is."""

    columns: list[str]
    rows: list[list[str]]


def metric_tables(
    metrics: dict[str, float], further: Sequence[tuple[str, str]], percent: tuple[str, ...]
) -> list[Table]:
    """All metrics, a table each for those in percent, for others and for losses, so that a column has one unit and as
    many decimals; and one of ``further`` rows.

    Args:
        percent: how the names of metrics end that are given in percent.
    """
    kinds: dict[str, list[list[str]]] = {"metric": [], "other metric": [], "loss": [], "figure": [*map(list, further)]}
    for name, value in metrics.items():
        kind = "metric" if name.endswith(percent) else "loss" if name.endswith("loss") else "other metric"
        kinds[kind].append([name, f"{value:.4f}" if kind == "loss" else metric_value(value, kind == "metric")])
    if not kinds["metric"]:
        kinds["metric"] = kinds.pop("other metric")
    return [Table([kind, "value"], rows) for kind, rows in kinds.items() if rows]


def metric_value(value: float, is_percent: bool) -> str:
    return f"{value:.2f} %" if is_percent else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def metric_title(name: str, titles: dict[str, str]) -> str:
    """``val top-1`` of ``val/top1``, where ``titles`` says what people call a metric whose name ends in that way."""
    end = next((end for end in titles if re.search(rf"(^|[/_]){re.escape(end)}$", name)), None)
    if end is None:
        return re.sub("[/_]", " ", name)
    return f"{re.sub('[/_]', ' ', name.removesuffix(end))}{titles[end]}"


def render(evaluation: dict[str, Any]) -> str:
    """``evaluation.json`` for people: where the weights are from, and every table that the evaluators left."""
    page = [in_markdown(f"# {evaluation['name']}"), in_markdown(f"Weights: {evaluation['weights']}")]
    for table in evaluation["tables"]:
        aligned = ["left"] + ["right"] * (len(table["columns"]) - 1)
        page.append(markdown_table(table["rows"], table["columns"], colalign=aligned))
    return "\n\n".join(page) + "\n"
