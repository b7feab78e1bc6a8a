"""Evaluate a trained model: the evaluators of its task write a record, a page and figures."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neutreno.cli import announce, command
from neutreno.cli.hydra_main import run
from neutreno.config.composing import Composed

# Hydra's options that are followed by a value, which is no run
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
WITH_VALUE += ("--experimental-rerun",)
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # of --info, which may stand alone


@command
def main(words: Sequence[str]) -> None:
    run("evaluate", prepare(list(words)), lambda composed, _: _evaluate(composed))


def prepare(arguments: list[str]) -> list[str]:
    """What people type → what Hydra reads.

    ``evaluate.py RUN`` and ``run=RUN`` → ``run="RUN"``, because a bare path would be a syntax error there. Beside a run
    ``data.KEY=…`` → ``++data.KEY=…``, ``task.KEY`` too: it is the run's key, which what is composed here may not have.
    """

    def is_run(i: int, argument: str) -> bool:
        before = arguments[i - 1] if i else ""
        if before in WITH_VALUE or (before in ("--info", "-i") and argument in INFO):
            return False
        return argument.startswith("run=") or (
            argument[:1] != "-" and ("=" not in argument or os.path.exists(argument))
        )

    run = next((i for i, argument in enumerate(arguments) if is_run(i, argument)), None)
    if run is None:
        return arguments
    prepared = [f"++{a}" if a.startswith(("data.", "task.")) else a for a in arguments]
    path = arguments[run].removeprefix("run=").strip("'\"").replace('"', '\\"')
    prepared[run] = f'run="{path}"'
    return prepared


def _evaluate(composed: Composed) -> None:
    chosen = " ".join(f"{group}={composed.choices[group]}" for group in ("model", "data"))
    announce(f"evaluation of {composed.config.run or chosen}: loading PyTorch")
    from neutreno.evaluating import evaluate  # torch and Lightning take seconds to import

    evaluate(composed)
