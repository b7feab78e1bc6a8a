"""The paper's figure: similarity of tokens by layer, baseline against NeuTRENO, one panel per task.

    neutreno figures outputs/digits-* outputs/python_docs-*
    neutreno figures outputs/digits-* --output figures/similarity --initial
    neutreno figures outputs/digits-* --metric effective_rank
    neutreno figures outputs/cora-* --by model.depth --score best/test/accuracy
    neutreno figures outputs/python_docs-* --over-steps
    neutreno figures outputs/digits-* --highlight gfsa --width 3.25

With --by over a setting instead: the runs' score, and the metric after the last layer, a line per method. With
--over-steps over layers and steps, a heat map per row, with the training loss beside it (probe.at_steps=[…]).
Writes PREFIX.pdf and PREFIX.png, sized for a column or a page: means over seeds, bands of ± one standard deviation.
More than six rows are small panels, one each. A method has its colour, marker and dash in every figure.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from neutreno.cli import add_font, add_output, command, output_of, parser_of
from neutreno.errors import InputError, check_number, one_line


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("figures", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder of them")
    add_output(parser, "similarity", "PREFIX")
    parser.add_argument("--initial", action="store_true", help="before training instead of after it")
    parser.add_argument("--metric", default="cosine", help="of probe.metrics, e.g. effective_rank; default: cosine")
    parser.add_argument("--by", metavar="SETTING", help="a setting that is a number, e.g. model.depth, attention.lam")
    parser.add_argument("--score", metavar="METRIC", help="with --by; default: what the runs are judged by")
    parser.add_argument("--over-steps", action="store_true", help="over the steps of training")
    parser.add_argument("--title", default="", help="of the figure; default: none")
    parser.add_argument("--highlight", metavar="ROW,…", help="labels or methods; all others in grey behind them")
    parser.add_argument("--width", type=float, metavar="INCHES", help="default: 3.25 for one panel, 6.75 for several")
    parser.add_argument("--full-range", action="store_true", help="axes of a bounded metric from 0 to 1")
    add_font(parser)
    arguments = parser.parse_args(arguments)
    if arguments.by is None and arguments.score is not None:
        raise InputError(f"--score {arguments.score} goes with --by SETTING")
    if sum([arguments.by is not None, arguments.initial, arguments.over_steps]) > 1:
        raise InputError("--by, --initial and --over-steps are three figures; give one of them")
    shaped = {"highlight": arguments.highlight, "width": arguments.width, "full-range": arguments.full_range or None}
    if arguments.over_steps and (given := next((name for name, value in shaped.items() if value is not None), None)):
        raise InputError(f"--{given} is of lines, which --over-steps does not draw; leave one out")
    if arguments.width is not None:
        check_number("--width", arguments.width, 1.5, 40)
    from neutreno.reports.comparison import group_runs
    from neutreno.reports.course import course_of
    from neutreno.reports.drawing import in_font
    from neutreno.reports.figures import plot_courses
    from neutreno.reports.lines import Look, plot_panels
    from neutreno.reports.panels import lines_of, panels_of, scale_of
    from neutreno.reports.reading import read_runs

    runs, problems = read_runs(arguments.runs)
    groups, left_out = group_runs(runs)
    for problem in [*problems, *left_out]:
        print(f"warning: {one_line(problem)}; left out", file=sys.stderr)
    output, title, metric = output_of(arguments), arguments.title, arguments.metric
    highlight = arguments.highlight.split(",") if arguments.highlight else ()
    look = Look(title, arguments.width, highlight, arguments.full_range)
    with in_font(arguments.font):
        if arguments.by is not None:
            panels, without = lines_of(groups, arguments.by, arguments.score, metric)
            for problem in without:
                print(f"warning: {one_line(problem)}; left out", file=sys.stderr)
            paths = plot_panels(panels, output, look)
        elif arguments.over_steps:
            if not groups:
                raise InputError("none of the runs is finished")
            paths = plot_courses({group.label: course_of(group, metric) for group in groups}, output, title, metric)
        else:
            panels = panels_of(groups, "initial" if arguments.initial else "last", metric)
            if not panels:
                raise InputError(f"none of the runs is finished and has measured {metric} of its tokens")
            paths = plot_panels(panels, output, replace(look, numbers=scale_of(groups)))
    print("figure: " + ", ".join(map(str, paths)))
