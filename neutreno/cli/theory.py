"""The theory in numbers: what descent on J and E does to tokens, and both energies in the layers of trained runs.

    neutreno theory                            random tokens, λ̃ = 0, 0.2, …, 1
    neutreno theory --lams 0,0.6,1.2           beyond λ̃ = 1 it can diverge
    neutreno theory outputs/RUN outputs/OTHER  by layer, on probe samples
    neutreno theory outputs/RUN data.root=FOLDER         the data has moved

Prints a table (Markdown) and writes PREFIX.pdf and PREFIX.png. Without a run: one head of attention with Q = K, applied
repeatedly from u = f with a fixed kernel; energies relative to the start. With runs: J and G of the values V_l under
the attention A_l, f = V_0, relative to ‖V_l‖². See docs/theory.md.
"""

import argparse
import re
from collections.abc import Sequence

from neutreno.cli import add_font, add_output, add_trust, add_trust_readers, command, output_of, parser_of
from neutreno.errors import InputError, check_number, one_line

DEFAULTS = {"lams": "0,0.2,0.4,0.6,0.8,1", "steps": 32, "tokens": 64, "dim": 16, "seed": 0}


def random_tokens(lams: str, steps: int, tokens: int, dim: int, seed: int, arguments: argparse.Namespace) -> None:
    from neutreno.oversmoothing.energies import descent
    from neutreno.reports.theory import descent_table, plot_descent

    try:
        values = sorted({float(lam) for lam in lams.split(",")})
    except ValueError as error:
        raise InputError(f"--lams {lams} is not a list of numbers; write --lams {DEFAULTS['lams']}") from error
    for lam in values:
        check_number("--lams", lam)
    for name, value, least, most in (("steps", steps, 1, 10**5), ("tokens", tokens, 2, 10**4), ("dim", dim, 1, 10**5)):
        check_number(f"--{name}", value, least, most, integer=True)
    check_number("--seed", seed, most=2**63 - 1, integer=True)
    rows, ends = descent(values, steps, tokens, dim, seed)
    print(descent_table(ends))
    print("\nfigure: " + ", ".join(map(str, plot_descent(rows, ends, output_of(arguments)))))


def trained_runs(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    import pandas as pd

    from neutreno import console
    from neutreno.evaluation.opening import open_run
    from neutreno.oversmoothing.energies import measure_energies
    from neutreno.reports.styles import method_of
    from neutreno.reports.theory import layers_table, plot_layers
    from neutreno.runs import read_result

    console.quiet(0)
    overrides = [a for a in arguments.runs if re.match(r"[a-z]+\.\w[\w.]*=", a)]
    rows = []
    for folder in [a for a in arguments.runs if a not in overrides]:
        model, data, settings = open_run(folder, overrides, arguments.trust, arguments.trust_readers)
        samples = data.probe_samples(settings["probe"]["num_samples"])
        told = {"run": one_line(Path(folder).resolve().name), "method": method_of(read_result(folder))}
        rows += measure_energies(model, samples, **told)
    if not rows:
        raise InputError(f"{' '.join(overrides)} goes with a run folder: neutreno theory RUN {overrides[0]}")
    table = pd.DataFrame(rows)
    print(layers_table(table))
    print("\nfigure: " + ", ".join(map(str, plot_layers(table, output_of(arguments)))))


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("theory", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder; data.KEY=VALUE and probe.KEY=VALUE of it")
    parser.add_argument("--lams", metavar="λ̃,λ̃,…", help=f"default: {DEFAULTS['lams']}")
    for name in ("steps", "tokens", "dim", "seed"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"default: {DEFAULTS[name]}")
    add_output(parser, "theory", "PREFIX")
    add_font(parser)
    add_trust(parser)
    add_trust_readers(parser)
    arguments = parser.parse_args(arguments)
    given = {name: value for name in DEFAULTS if (value := getattr(arguments, name)) is not None}
    if arguments.runs and given:
        raise InputError(f"--{min(given)} is of the descent of random tokens; leave it out beside a run folder")
    from neutreno.reports.drawing import in_font

    with in_font(arguments.font):
        if arguments.runs:
            trained_runs(arguments)
        else:
            random_tokens(**{**DEFAULTS, **given}, arguments=arguments)
