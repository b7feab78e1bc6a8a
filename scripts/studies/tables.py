"""What the tables of docs/findings.md are made of: rows against one of them, differences, and a metric by two names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from neutreno.errors import InputError
from neutreno.reports.comparison import Difference, holm, logrank, welch
from neutreno.reports.escaping import markdown_table
from studies import COSINE
from studies.data import Study

SCORES = {
    "best/test/ppl": "test perplexity",
    "test/ppl": "test perplexity",
    "best/test/accuracy": "test accuracy, %",
    "test/top1": "test top-1, %",
    COSINE: "cosine, last layer",
}


Row = tuple[str, str]  # of docs/data: a study and a row of it


@dataclass(frozen=True)
class Table:
    """Rows of a study against one of them.

    Args:
        score: what the rows are judged by.
        rows: by what they are called there; the first is what the others are compared with.
    """

    study: str
    score: str
    rows: dict[str, str]
    columns: dict[str, str]
    digits: int = 1

    def text(self, read: Callable[[str], Study]) -> str:
        study = read(self.study)
        (base, *others), missing = self.rows.values(), set(self.rows.values()) - {row for row, _ in study.final.index}
        if missing:
            raise InputError(f"docs/data/{self.study}.csv has no row {', '.join(sorted(missing))}")
        tests = {row: welch(study.values(row, self.score), study.values(base, self.score)) for row in others}
        adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
        lines = []
        for label, row in self.rows.items():
            cells = [label, str(len(study.final.loc[row])), spread(study.values(row, self.score), self.digits)]
            if row in tests:
                cells += [interval(tests[row], self.digits), probability(adjusted[row])]
            else:
                cells += ["", ""]
            lines.append([*cells, *(self.further(study, row, metric) for metric in self.columns.values())])
        head = ["", "n", SCORES[self.score], "difference (95 %)", "Holm's p", *self.columns]
        return markdown_table(minus(lines), head)

    def further(self, study: Study, row: str, metric: str) -> str:
        """A metric's mean; of times to an event how often it came and when, with log-rank's p against the first row."""
        if not metric.startswith("escape_step/"):
            return spread(study.values(row, metric), 2)
        own, first = study.times(row, metric), next(iter(self.rows.values()))
        at = own.at[own.came]
        when = f", at {' to '.join(dict.fromkeys([f'{at.min():g}', f'{at.max():g}']))}" if len(at) else ""
        p = f" (p = {logrank(own, study.times(first, metric)):.3f})" if row != first else ""
        return f"{len(at)} of {len(own.at)}{when}{p}"


@dataclass(frozen=True)
class Contrasts:
    """Differences between two rows each; one whose interval holds zero is undecided.

    Args:
        pairs: a score, and study and row of the one and of the other, by what is said of them.
    """

    pairs: dict[str, tuple[str, Row, Row]]
    digits: int = 1

    def text(self, read: Callable[[str], Study]) -> str:
        lines = []
        for said, (score, *pair) in self.pairs.items():
            sides = [read(study).values(row, score) for study, row in pair]
            d = welch(*sides)
            verdict = "shown" if d.low > 0 or d.high < 0 else "undecided"
            n = " and ".join(str(len(side)) for side in sides)
            lines.append([said, SCORES[score], interval(d, self.digits), n, verdict])
        return markdown_table(minus(lines), ["", "of", "difference (95 %)", "n", ""])


@dataclass(frozen=True)
class Grid:
    """A metric, with a second one in brackets, by row and column.

    Args:
        columns: by what they are called.
        rows: study and row for each of the columns, by what a line is called.
    """

    score: str
    further: str
    columns: Sequence[str]
    rows: dict[str, Sequence[Row]]

    def text(self, read: Callable[[str], Study]) -> str:
        def cell(name: str, row: str) -> str:
            study = read(name)
            if row not in study.final.index:
                return "–"  # not run
            return f"{spread(study.values(row, self.score), 1)} ({spread(study.values(row, self.further), 2)})"

        lines = [[label, *(cell(*row) for row in rows)] for label, rows in self.rows.items()]
        return markdown_table(minus(lines), ["", *self.columns])


def minus(lines: list[list[str]]) -> list[list[str]]:
    """With the sign of that name before numbers."""
    return [[re.sub(r"(?<!\w)-(?=\d)", "−", cell) for cell in line] for line in lines]


def interval(d: Difference, digits: int) -> str:
    ends = f" ({d.low:.{digits}f} to {d.high:.{digits}f})" if d.low == d.low else ""
    return f"{d.mean:+.{digits}f}{ends}"


def spread(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def probability(p: float) -> str:
    return "" if p != p else f"{p:.3f}" if p >= 0.001 else "≤ 0.001"
