"""The paper's figure: similarity of tokens by layer, baseline against NeuTRENO, one panel per task.

    neutreno figures outputs/digits-* outputs/digit_scenes-* outputs/python_docs-*
    neutreno figures outputs/digits-* --output docs/figures/digits_similarity --initial
    neutreno figures outputs/digits-* --metric effective_rank

Writes PREFIX.pdf and PREFIX.png, sized for a column or a page: means over seeds, bands of ± one standard deviation.
"""

import sys
from collections.abc import Sequence

from neutreno.cli import command, parser_of
from neutreno.errors import InputError, one_line


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("figures", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder of them")
    parser.add_argument("--output", default="similarity", metavar="PREFIX", help="default: %(default)s")
    parser.add_argument("--initial", action="store_true", help="before training instead of after it")
    parser.add_argument("--metric", default="cosine", help="of probe.metrics, e.g. effective_rank; default: cosine")
    parser.add_argument("--title", default="", help="of the figure; default: none")
    arguments = parser.parse_args(arguments)
    from neutreno.reports.comparison import group_runs
    from neutreno.reports.figures import plot_curves
    from neutreno.reports.reading import read_runs
    from neutreno.reports.tables import panels_of, scale_of

    runs, problems = read_runs(arguments.runs)
    groups, left_out = group_runs(runs)
    for problem in [*problems, *left_out]:
        print(f"warning: {one_line(problem)}; left out", file=sys.stderr)
    panels = panels_of(groups, "initial" if arguments.initial else "last", arguments.metric)
    if not panels:
        raise InputError(f"none of the runs is finished and has measured {arguments.metric} of its tokens")
    paths = plot_curves(panels, arguments.output, arguments.title, arguments.metric, scale_of(groups))
    print("figure: " + ", ".join(map(str, paths)))
