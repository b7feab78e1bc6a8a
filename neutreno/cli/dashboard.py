"""All runs on one page: a table to sort and filter, training and over-smoothing curves, metric against what varies.

    neutreno dashboard outputs --open
    neutreno dashboard outputs/digits-* --output digits.html
    neutreno dashboard outputs --watch  follow runs, and a sweep, to the end

The page is a single file and needs neither network nor server.
"""

import contextlib
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from neutreno.cli import add_output, command, output_of, parser_of
from neutreno.errors import InputError, check_number


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("dashboard", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder of them")
    add_output(parser, "dashboard.html", "FILE")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--watch", action="store_true", help="rewrite the page until all runs have ended")
    parser.add_argument("--every", type=float, default=10, metavar="SECONDS", help="with --watch; default %(default)g")
    a = parser.parse_args(arguments)
    check_number("--every", a.every, 1)
    from neutreno.reports.dashboard import write_dashboard
    from neutreno.reports.reading import more_to_come, read_runs

    said: set[str] = set()
    opened = False
    with contextlib.suppress(KeyboardInterrupt):  # so --watch ends
        while True:
            follow = a.watch and more_to_come(a.runs)  # asked first: what ends in between is read once more
            try:
                runs, problems = read_runs(a.runs)
            except InputError:
                if not follow:
                    raise
                time.sleep(a.every)  # until the first run of a sweep has begun
                continue
            for problem in set(problems) - said:
                print(f"warning: {problem}; left out", file=sys.stderr)
            said |= set(problems)
            follow = follow or (a.watch and any(run.status == "running" for run in runs))
            output = output_of(a)
            write_dashboard(runs, output, a.every if follow else None)
            opened = opened or (a.open and webbrowser.open(Path(output).resolve().as_uri()))
            if not follow:
                print(f"{output}: {len(runs)} runs, {Path(output).stat().st_size / 1e6:.1f} MB")
                return
            time.sleep(a.every)
