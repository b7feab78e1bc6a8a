"""Compare runs: a table (mean ± sd over seeds) and one figure with their over-smoothing curves.

python scripts/compare.py outputs/digits-*
python scripts/compare.py outputs/a outputs/b --metric val/top1 --figure compare.png
"""

import argparse
import sys

from neutreno.errors import report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--metric", action="append", metavar="NAME", help="column to show, e.g. test/top1 (repeatable)")
    parser.add_argument(
        "--figure", default="comparison.png", metavar="FILE", help="default: %(default)s (.png, .pdf, .svg)"
    )
    parser.add_argument("--title", default="Similarity of tokens by layer", help="of the figure")
    arguments = parser.parse_args()

    from neutreno.reports.comparison import comparison_table, load_groups
    from neutreno.reports.figures import plot_comparison

    try:
        groups, unfinished = load_groups(arguments.runs)
        print(comparison_table(groups, arguments.metric).to_markdown(index=False))
        for run in unfinished:
            print(f"not finished, left out: {run}")
        plot_comparison(
            [(g.label, {"encoder": g.curves(), "decoder": g.curves(part="decoder")}) for g in groups],
            arguments.figure,
            arguments.title,
        )
        print(f"figure: {arguments.figure}")
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
