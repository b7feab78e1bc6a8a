"""The tables and figures of docs/findings.md, from data committed beside it; half a minute.

    python scripts/findings.py                              write every table and draw every figure anew
    python scripts/findings.py --collect collapse outputs   first: docs/data/collapse.csv, from the runs of a table

The files of docs/data are CSV in long form: row, seed, step, metric, value. Layer-wise metrics are those after the last
layer; a time to an event without a value did not come. Their first lines say which command made them, and its hours.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from neutreno.errors import InputError, report
from neutreno.files import replacing
from neutreno.reports.comparison import Difference, Times, holm, logrank, welch
from neutreno.reports.course import LOSS, layers_over_steps, training_curves
from neutreno.reports.escaping import markdown_table
from neutreno.reports.figures import GREY, INK, PAGE, STYLE, plain, save_both, subplots
from neutreno.reports.layers import ALL
from neutreno.reports.reading import Run, read_runs
from neutreno.reports.styles import BASELINE, NEUTRENO, style_of
from neutreno.tablefiles import read_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
COSINE, LOST = "cosine", "train/loss"


def collect(name: str, folders: Sequence[str]) -> None:
    """docs/data/NAME.csv of the finished runs that were started for a row of the table.

    Raises:
        InputError: there are none.
    """
    table = read_table(name)
    place = {table.origin(label): number for number, label in enumerate(table.rows)}
    runs = [run for run in read_runs(folders)[0] if run.origin in place and run.status == "finished"]
    if not runs:
        raise InputError(f"no finished run of {name} in {', '.join(folders)}")
    runs.sort(key=lambda run: (place[run.origin], run.seed))
    lines = [
        (run.origin[1].partition("/")[2], run.seed, step, metric, value)
        for run in runs
        for step, metric, value in of_run(run)
    ]
    command = table.file.read_text().partition("\n")[0].removeprefix("# ")
    hours = sum(run.result["wall_clock_s"] for run in runs) / 3600
    known = {key: sorted({str(of(run.result)) for run in runs}) for key, of in PROVENANCE.items()}
    said = [f"{key} {', '.join(values)}" for key, values in known.items()]
    frame = pd.DataFrame(lines, columns=["row", "seed", "step", "metric", "value"])
    with replacing(DOCS / "data" / f"{name}.csv", "w") as file:
        file.write(f"# {command}\n# {len(runs)} runs, {hours:.1f} hours in all; {'; '.join(said)}\n")
        frame.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


PROVENANCE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "commit": lambda result: (result["git_commit"] or "unknown")[:7],
    "hardware": lambda result: result["hardware"]["cpu"],
    "threads": lambda result: result["hardware"]["threads"],
    "torch": lambda result: result["versions"]["torch"],
}


def of_run(run: Run) -> Iterator[tuple[int, str, float | None]]:
    """Step, metric and value: courses of layer-wise metrics and of the training loss, and the metrics at the end."""
    for metric, by_subset in layers_over_steps(run).items():
        yield from ((at["step"], metric, at["layers"][-1]) for at in by_subset.get(ALL, ()))
    curves = training_curves(run.path / "metrics.csv")
    course = pd.Series(*next((curves[name][::-1] for name in LOSS if name in curves), ([], [])), dtype=float)
    some = course.iloc[np.linspace(0, len(course) - 1, min(31, len(course))).astype(int)]
    yield from ((int(step), LOST, loss) for step, loss in some.items())
    last = run.result["steps"]
    yield from ((last, metric, value) for metric, value in run.metrics.items() if "loss" not in metric)
    yield from ((last, event, None) for event in run.within if event not in run.metrics)


@dataclass
class Study:
    """A file of docs/data: its lines, and one value per row, seed and metric, of the last step."""

    lines: pd.DataFrame
    final: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        last = self.lines.groupby(["row", "seed", "metric"], sort=False).last()["value"]
        self.final = last.unstack("metric")

    @classmethod
    def read(cls, name: str) -> "Study":
        """
        Raises:
            InputError: it has not been collected.
        """
        file = DOCS / "data" / f"{name}.csv"
        if not file.exists():
            raise InputError(f"{file} is missing: python scripts/findings.py --collect {name} FOLDER")
        return cls(pd.read_csv(file, comment="#"))

    def values(self, row: str, metric: str) -> pd.Series:
        """By seed; without what is missing."""
        return self.final.loc[row, metric].dropna()

    def times(self, row: str, metric: str) -> Times:
        """To an event, one per seed; where it did not come, the last step."""
        known = self.final.loc[row, metric]
        last = self.lines[self.lines["row"] == row].groupby("seed")["step"].max()
        return Times(known.fillna(last).to_numpy(), known.notna().to_numpy())

    def course(self, row: str, metric: str) -> pd.DataFrame:
        """(steps, seeds)"""
        chosen = self.lines[(self.lines["row"] == row) & (self.lines["metric"] == metric)]
        return chosen.pivot_table(index="step", columns="seed", values="value")


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
        when = f", at {at.min():g} to {at.max():g}" if len(at) else ""
        p = f" (p = {logrank(own, study.times(first, metric)):.3f})" if row != first else ""
        return f"{len(at)} of {len(own.at)}{when}{p}"


@dataclass(frozen=True)
class Contrasts:
    """Differences between two rows each; one whose interval holds zero is undecided.

    Args:
        pairs: study, score, a row and the one that it is compared with, by what is said of them.
    """

    pairs: dict[str, tuple[str, str, str, str]]
    digits: int = 1

    def text(self, read: Callable[[str], Study]) -> str:
        lines = []
        for said, (name, score, row, base) in self.pairs.items():
            sides = [read(name).values(one, score) for one in (row, base)]
            d = welch(*sides)
            verdict = "shown" if d.low > 0 or d.high < 0 else "undecided"
            n = " and ".join(str(len(side)) for side in sides)
            lines.append([said, SCORES[score], interval(d, self.digits), n, verdict])
        return markdown_table(minus(lines), ["", "of", "difference (95 %)", "n", ""])


@dataclass(frozen=True)
class Grid:
    """A metric of rows called "NAME COLUMN", by name and column, with a second one in brackets."""

    study: str
    score: str
    rows: Sequence[str]
    columns: Sequence[str]
    further: str

    def text(self, read: Callable[[str], Study]) -> str:
        study = read(self.study)

        def cell(row: str) -> str:
            return f"{spread(study.values(row, self.score), 1)} ({spread(study.values(row, self.further), 2)})"

        lines = [[row, *(cell(f"{row} {column}") for column in self.columns)] for row in self.rows]
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


SCORES = {
    "best/test/ppl": "test perplexity",
    "test/ppl": "test perplexity",
    "best/test/accuracy": "test accuracy, %",
    "test/top1": "test top-1, %",
    COSINE: "cosine, last layer",
}


def contrasts(study: str, depths: Sequence[int], pairs: dict[str, tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Of accuracy, at each of the depths: what is said, for :class:`Contrasts`."""
    return {
        f"{said}, {depth} layers": (study, "best/test/accuracy", f"{depth} {row}", f"{depth} {base}")
        for said, (row, base) in pairs.items()
        for depth in depths
    }


TEXT = ("softmax", "neutreno", "pull alone", "anchor alone", "shuffled", "value residual")
TEXT += ("long warm-up", "deepnorm", "pre-norm")
BEST = {  # by the rates that docs/data/collapse_rates.csv chooses
    "softmax, 1e-3": "softmax",
    "pull alone, 1e-3": "pull alone",
    "anchor alone, 3e-3": "anchor alone 3e-3",
    "neutreno, 3e-3": "neutreno 3e-3",
    "pre-norm, 3e-3": "pre-norm 3e-3",
}
COURSE = {"cosine": COSINE, "share of training collapsed": "collapsed_share/cosine", "escaped": "escape_step/cosine"}
GRAPH = {row: row for row in ("plain", "neutreno", "pull alone", "anchor alone", "detached", "shuffled")}
GRAPH |= {
    "initial residual, α = λ̃": "initial residual",
    "initial residual, α = 0.1": "initial residual 0.1",
    "DGN": "dgn",
}
TABLES = {
    "text": Table("collapse", "best/test/ppl", {row: row for row in TEXT}, COURSE),
    "text_rates": Grid(
        "collapse_rates",
        "best/val/ppl",
        ("softmax", "pull alone", "anchor alone", "neutreno", "pre-norm"),
        ("3e-4", "1e-3", "3e-3"),
        "collapsed_share/cosine",
    ),
    "text_best": Table("collapse", "best/test/ppl", BEST, COURSE),
    "text_contrasts": Contrasts(
        {
            said: ("collapse", "best/test/ppl", row, base)
            for said, (row, base) in {
                "−λ̃ V alone − the whole term, 1e-3": ("pull alone", "neutreno"),
                "λ̃ V_0 alone − the whole term, 1e-3": ("anchor alone", "neutreno"),
                "V_0 of another sequence − the whole term, 1e-3": ("shuffled", "neutreno"),
                "V_0 of another sequence − −λ̃ V alone, 1e-3": ("shuffled", "pull alone"),
                "four times the warm-up − the term, 1e-3": ("long warm-up", "neutreno"),
                "pre-norm − the term, 1e-3": ("pre-norm", "neutreno"),
                "λ̃ V_0 alone − the whole term, each at its best rate": ("anchor alone 3e-3", "neutreno 3e-3"),
                "pre-norm − the term, each at its best rate": ("pre-norm 3e-3", "neutreno 3e-3"),
            }.items()
        }
    ),
    "digits": Contrasts(
        {
            f"the term − softmax, {depth} layers, {said}": (
                "digits_depth",
                score,
                f"neutreno depth {depth}",
                f"softmax depth {depth}",
            )
            for depth in (12, 24, 48)
            for said, score in {"accuracy": "test/top1", "similarity": COSINE}.items()
        },
        digits=2,
    ),
    **{
        f"graph_{depth}": Table(
            "graph_fidelity",
            "best/test/accuracy",
            {label: f"{depth} {row}" for label, row in GRAPH.items()},
            {"cosine": COSINE, "group distance ratio": "group_distance_ratio"},
        )
        for depth in (15, 30)
    },
    "graph_contrasts": Contrasts(
        contrasts(
            "graph_fidelity",
            (15, 30),
            {
                "the term − none": ("neutreno", "plain"),
                "λ̃ V_0 alone − the whole term": ("anchor alone", "neutreno"),
                "−λ̃ V alone − none": ("pull alone", "plain"),
                "V_0 without its gradient − none": ("detached", "plain"),
                "V_0 of other nodes − none": ("shuffled", "plain"),
                "the term − DGN": ("neutreno", "dgn"),
                "the term − initial residual, α = λ̃": ("neutreno", "initial residual"),
            },
        )
        | contrasts(
            "graph_depth",
            (32,),
            {
                "the term − none": ("neutreno", "none"),
                "the term − DGN": ("neutreno", "dgn"),
                "both − the term": ("neutreno+dgn", "neutreno"),
                "GCNII − the term": ("GCNII", "neutreno"),
            },
        )
    ),
}


def draw_collapse(read: Callable[[str], Study]) -> Figure:
    """The two collapses, with and without the term: text over the steps of training, a graph over depth."""
    text = read("collapse")
    figure, axes = subplots(1, 4, figsize=(PAGE, 2.1))
    drawn = {
        BASELINE: "softmax attention, plain GCN",
        NEUTRENO: "with the fidelity term (text: λ̃ = 0.4, graph: λ̃ = 0.6)",
    }
    panels = {COSINE: "text: cosine of tokens", LOST: "text: training loss"}
    for panel, (metric, title) in zip(axes[:2], panels.items(), strict=True):
        for row, method in {"softmax": BASELINE, "neutreno": NEUTRENO}.items():
            draw_course(panel, text.course(row, metric), method)
        panel.set(xlabel="optimizer step", title=title)
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
    lines = [Line2D([], [], **style_of(method).drawn) for method in drawn]
    figure.legend(lines, [plain(said) for said in drawn.values()], loc="outside lower center", ncols=2)
    return figure


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


def draw_graph_arms(read: Callable[[str], Study]) -> Figure:
    columns = {
        "best/test/accuracy": "test accuracy, %",
        COSINE: "cosine, last layer",
        "group_distance_ratio": "group distance ratio",
    }
    tables = {f"{depth} layers, ": TABLES[f"graph_{depth}"] for depth in (15, 30)}
    return draw_arms(read("graph_fidelity"), tables, columns)


FIGURES = {"collapse": draw_collapse, "graph_arms": draw_graph_arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--collect", nargs="+", metavar=("TABLE", "RUN"), help="a table's name, and folders of its runs"
    )
    arguments = parser.parse_args()
    if arguments.collect:
        name, *folders = arguments.collect
        collect(name, folders or ["outputs"])
        return
    read = cache(Study.read)

    def written(found: re.Match) -> str:
        return f"{found[1]}{TABLES[found[2]].text(read)}\n{found[3]}"

    page = DOCS / "findings.md"
    text = MARK.sub(written, page.read_text())
    with replacing(page) as file:
        file.write(text)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            save_both(draw(read), DOCS / "figures" / name)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(report(error))
