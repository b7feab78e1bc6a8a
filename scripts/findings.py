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
from studies.drawings import draw_collapse, draw_graph_arms, draw_text_arms, draw_wikitext
from studies.tables import Contrasts, Grid, Row, Table

from neutreno.errors import InputError, report
from neutreno.files import replacing
from neutreno.reports.drawing import STYLE, save_both

MARK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def contrasts(
    study: str, score: str, pairs: dict[str, tuple[str, str]], layers: Sequence[int] = ()
) -> dict[str, tuple[str, Row, Row]]:
    """For :class:`Contrasts`: two rows, by what is said of them; at each number of ``layers``, where rows begin so."""
    return {
        f"{said}, {depth} layers" if depth else said: (score, *((study, f"{depth} {row}".strip()) for row in rows))
        for said, rows in pairs.items()
        for depth in layers or [""]
    }


TEXT = ("softmax", "neutreno", "pull alone", "anchor alone", "shuffled", "value residual")
TEXT += ("long warm-up", "deepnorm", "pre-norm", "pre-norm neutreno")
RATES = ("3e-4", "1e-3", "3e-3")
BEST = dict.fromkeys(TEXT, "1e-3") | dict.fromkeys(  # by docs/data/collapse_rates.csv
    ("neutreno", "anchor alone", "pre-norm", "pre-norm neutreno"), "3e-3"
)
AT_BEST = {f"{row}, {rate}": row if rate == "1e-3" else f"{row} {rate}" for row, rate in BEST.items()}
SHARE = "collapsed_share/cosine"
DEPTHS = ("depth 6", "", "depth 24")
WIKITEXT = ("softmax", "neutreno", "pull alone", "anchor alone", "pre-norm")
LONGER = "softmax 1e-3 700 steps"
TEXT_BY_DEPTH = ("softmax", "neutreno", "pull alone", "pre-norm")
# more steps than it loses on the plateau in most runs, too few in one
GIVEN_BACK = ("collapse_settings", "softmax 900 steps")


def settings(row: str, *which: str) -> list[Row]:
    """A row of the text study at other settings; at its own where nothing is said."""
    return [("collapse_settings", f"{row} {setting}") if setting else ("collapse", row) for setting in which]


COURSE = {"cosine": COSINE, "share of training collapsed": SHARE, "escaped": "escape_step/cosine"}
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
        "best/val/ppl", SHARE, RATES, {row: [("collapse_rates", f"{row} {rate}") for rate in RATES] for row in TEXT}
    ),
    "text_best": Table("collapse", "best/test/ppl", AT_BEST, COURSE),
    "text_depth": Grid(
        "best/test/ppl", SHARE, ("6 layers", "12", "24"), {row: settings(row, *DEPTHS) for row in TEXT_BY_DEPTH}
    ),
    "text_lam": Grid(
        "best/test/ppl",
        SHARE,
        ("λ̃ = 0", "0.1", "0.2", "0.4", "0.8"),
        {"neutreno": [("collapse", "softmax"), *settings("neutreno", "0.1", "0.2", "", "0.8")]},
    ),
    "text_init": Grid(
        "best/test/ppl",
        SHARE,
        ("init_std = 0.07", "0.02"),
        {row: settings(row, "", "init 0.02") for row in ("softmax", "neutreno")},
    ),
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
                "four times the warm-up − the term, each at its best rate": ("long warm-up", "neutreno 3e-3"),
                "value residual − the term, each at its best rate": ("value residual", "neutreno 3e-3"),
                "DeepNorm − the term, each at its best rate": ("deepnorm", "neutreno 3e-3"),
                "pre-norm − the term, each at its best rate": ("pre-norm 3e-3", "neutreno 3e-3"),
                "pre-norm with the term − without, 1e-3": ("pre-norm neutreno", "pre-norm"),
                "pre-norm with the term − without, each at its best rate": ("pre-norm neutreno 3e-3", "pre-norm 3e-3"),
            },
        )
    ),
    "text_settings": Contrasts(
        {
            said: ("best/test/ppl", ours, theirs)
            for said, ours, theirs in (
                *(
                    (f"λ̃ = {lam} − softmax", ("collapse_settings", f"neutreno {lam}"), ("collapse", "softmax"))
                    for lam in (0.1, 0.2, 0.8)
                ),
                ("λ̃ = 0.2 − 0.1", ("collapse_settings", "neutreno 0.2"), ("collapse_settings", "neutreno 0.1")),
                ("λ̃ = 0.4 − 0.2", ("collapse", "neutreno"), ("collapse_settings", "neutreno 0.2")),
                ("λ̃ = 0.8 − 0.4", ("collapse_settings", "neutreno 0.8"), ("collapse", "neutreno")),
                ("the term, 24 layers − 12", ("collapse_settings", "neutreno depth 24"), ("collapse", "neutreno")),
                ("pre-norm, 24 layers − 12", ("collapse_settings", "pre-norm depth 24"), ("collapse", "pre-norm")),
                ("softmax for 900 steps − for 600", GIVEN_BACK, ("collapse", "softmax")),
                ("the term − softmax for 900 steps", ("collapse", "neutreno"), GIVEN_BACK),
                ("the term at 3e-3 − softmax for 900 steps", ("collapse", "neutreno 3e-3"), GIVEN_BACK),
            )
        }
        | contrasts(
            "collapse_settings",
            "best/test/ppl",
            {
                "the term − softmax, init_std 0.02": ("neutreno init 0.02", "softmax init 0.02"),
                "pull alone − softmax, 6 layers": ("pull alone depth 6", "softmax depth 6"),
            }
            | {
                f"the term − {other}, {depth} layers": (f"neutreno depth {depth}", f"{other} depth {depth}")
                for depth in (6, 24)
                for other in ("softmax", "pull alone", "pre-norm")
            },
        )
    ),
    **{
        f"wikitext_{rate}": Table(
            "collapse_wikitext",
            "best/test/ppl",
            {row: f"{row} {rate}" for row in WIKITEXT} | further,
            COURSE,
        )
        for rate, further in {"1e-3": {"softmax, 700 steps": LONGER}, "3e-3": {}}.items()
    },
    "wikitext_contrasts": Contrasts(
        contrasts(
            "collapse_wikitext",
            "best/test/ppl",
            {
                "the term − softmax, 1e-3": ("neutreno 1e-3", "softmax 1e-3"),
                "the term − softmax for 700 steps, 1e-3": ("neutreno 1e-3", LONGER),
                "the term − softmax, each at its best rate": ("neutreno 3e-3", "softmax 1e-3"),
                "the term − softmax for 700 steps, each at its best rate": ("neutreno 3e-3", LONGER),
                "pull alone − the whole term, 1e-3": ("pull alone 1e-3", "neutreno 1e-3"),
                "softmax for 700 steps − for 600, 1e-3": (LONGER, "softmax 1e-3"),
                "anchor alone − the whole term, 1e-3": ("anchor alone 1e-3", "neutreno 1e-3"),
                "anchor alone − the whole term, 3e-3": ("anchor alone 3e-3", "neutreno 3e-3"),
                "pre-norm − the term, 1e-3": ("pre-norm 1e-3", "neutreno 1e-3"),
                "pre-norm − the term, 3e-3": ("pre-norm 3e-3", "neutreno 3e-3"),
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
TEXT_ARMS = {"": TABLES["text"], "best rate: ": TABLES["text_best"]}
FIGURES = {
    "collapse": draw_collapse,
    "wikitext_course": draw_wikitext,
    "text_arms": partial(draw_text_arms, tables=TEXT_ARMS),
    "graph_arms": partial(draw_graph_arms, tables=ARMS),
}


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
