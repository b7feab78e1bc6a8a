"""Names are anybody's: as text that Markdown, LaTeX and a spreadsheet show and do nothing else with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import tabulate

from neutreno.errors import one_line

MARKDOWN = {"|": "&#124;", "<": "&lt;", "](": "]&#40;", "`": "&#96;"}  # a cell's end, a tag, a link, code
# What LaTeX has other signs for, beside what tabulate escapes.
LATEX = {"λ̃": r"$\tilde\lambda$", "±": r"$\pm$", "–": "--", "†": r"$\dagger$"}


def in_markdown(text: str) -> str:
    """What a cell, a heading or a line of Markdown holds of a name."""
    text = one_line(text)
    for sign, escaped in MARKDOWN.items():
        text = text.replace(sign, escaped)
    return text


def markdown_table(rows: Sequence[Sequence[str]], columns: Sequence[str], **how: Any) -> str:
    """A table of text as Markdown."""
    cells = [[in_markdown(cell) for cell in row] for row in rows]
    padding, tabulate.MIN_PADDING = tabulate.MIN_PADDING, 0  # of it a column would be wider than its header
    try:
        return tabulate.tabulate(cells, list(map(in_markdown, columns)), "pipe", disable_numparse=True, **how)
    finally:
        tabulate.MIN_PADDING = padding


def in_csv(value: Any) -> Any:
    """What a CSV file holds of a value: text that a spreadsheet would take for a formula begins with ``'``."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV, names of columns included."""
    table = table.map(in_csv).rename(columns=in_csv)
    return table.to_csv(index=False, lineterminator="\n")
