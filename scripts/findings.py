"""The tables and figures of docs/findings.md, from data committed beside it; in seconds.

    python scripts/findings.py                              write every table and draw every figure anew
    python scripts/findings.py --collect collapse outputs   first: add runs of a table to docs/data/collapse.csv

The files of docs/data are CSV in long form: row, seed, step, metric, value. Layer-wise metrics are those after the last
layer; a time to an event without a value did not come. Their first lines say which command made them, with what and in
how many hours. A run that is there already is left as it is: to collect anew, delete the file.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import cache, partial

import matplotlib.pyplot as plt
import studies
from studies import COSINE
from studies.data import Study, collect
from studies.drawings import draw_collapse, draw_graph_arms
from studies.tables import Contrasts, Grid, Table

from neutreno.errors import InputError, report
from neutreno.files import replacing
from neutreno.reports.drawing import STYLE, save_both

MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def contrasts(
    study: str, score: str, pairs: dict[str, tuple[str, str]], layers: Sequence[int] = ()
) -> dict[str, tuple[str, ...]]:
    """For :class:`Contrasts`: two rows, by what is said of them; at each number of ``layers``, where rows begin so."""
    return {
        f"{said}, {depth} layers" if depth else said: (study, score, *(f"{depth} {row}".strip() for row in rows))
        for said, rows in pairs.items()
        for depth in layers or [""]
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
DIGITS = {
    f"the term − softmax, {depth} layers": (f"neutreno depth {depth}", f"softmax depth {depth}")
    for depth in (12, 24, 48)
}
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
        contrasts(
            "collapse",
            "best/test/ppl",
            {
                "−λ̃ V alone − the whole term, 1e-3": ("pull alone", "neutreno"),
                "λ̃ V_0 alone − the whole term, 1e-3": ("anchor alone", "neutreno"),
                "V_0 of another sequence − the whole term, 1e-3": ("shuffled", "neutreno"),
                "V_0 of another sequence − −λ̃ V alone, 1e-3": ("shuffled", "pull alone"),
                "four times the warm-up − the term, 1e-3": ("long warm-up", "neutreno"),
                "pre-norm − the term, 1e-3": ("pre-norm", "neutreno"),
                "λ̃ V_0 alone − the whole term, each at its best rate": ("anchor alone 3e-3", "neutreno 3e-3"),
                "pre-norm − the term, each at its best rate": ("pre-norm 3e-3", "neutreno 3e-3"),
            },
        )
    ),
    "digits": Contrasts(
        contrasts("digits_depth", "test/top1", DIGITS)
        | contrasts("digits_depth", COSINE, {f"{said}, similarity": rows for said, rows in DIGITS.items()}),
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
            "best/test/accuracy",
            {
                "the term − none": ("neutreno", "plain"),
                "λ̃ V_0 alone − the whole term": ("anchor alone", "neutreno"),
                "−λ̃ V alone − none": ("pull alone", "plain"),
                "V_0 without its gradient − none": ("detached", "plain"),
                "V_0 of other nodes − none": ("shuffled", "plain"),
                "the term − DGN": ("neutreno", "dgn"),
                "the term − initial residual, α = λ̃": ("neutreno", "initial residual"),
            },
            (15, 30),
        )
        | contrasts(
            "graph_depth",
            "best/test/accuracy",
            {
                "the term − none": ("neutreno", "none"),
                "the term − DGN": ("neutreno", "dgn"),
                "both − the term": ("neutreno+dgn", "neutreno"),
                "GCNII − the term": ("GCNII", "neutreno"),
            },
            (32,),
        )
    ),
}

ARMS = {f"{depth} layers, ": TABLES[f"graph_{depth}"] for depth in (15, 30)}
FIGURES = {"collapse": draw_collapse, "graph_arms": partial(draw_graph_arms, tables=ARMS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--collect", nargs="+", metavar=("TABLE", "RUN"), help="a table's name, and folders of its runs"
    )
    arguments = parser.parse_args()
    if arguments.collect:
        name, *folders = arguments.collect
        print(f"{name}: {collect(name, folders or ['outputs'])} runs added")
        return
    read = cache(Study.read)

    def written(found: re.Match) -> str:
        return f"{found[1]}{TABLES[found[2]].text(read)}\n{found[3]}"

    page = studies.DOCS / "findings.md"
    text = MARK.sub(written, page.read_text())
    with replacing(page) as file:
        file.write(text)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            save_both(draw(read), studies.DOCS / "figures" / name)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(report(error))
