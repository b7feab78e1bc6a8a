"""Train a network and measure how similar its tokens become with depth."""

from __future__ import annotations

from collections.abc import Sequence

from neutreno import console
from neutreno.cli import announce, command
from neutreno.cli.hydra_main import run
from neutreno.config.composing import Composed
from neutreno.errors import InputError


@command
def main(words: Sequence[str]) -> int:
    sweep: list[Composed] = []
    run("train", words, lambda composed, is_sweep: sweep.append(composed) if is_sweep else _train(composed))
    if not sweep:
        if {"-m", "--multirun"} & set(words):
            raise InputError("the sweep is empty: its overrides leave nothing to combine")
        return 0
    for composed in sweep[1:]:
        for key in ("launcher", "output_dir"):
            if composed.config[key] != sweep[0].config[key]:
                raise InputError(f"{key} applies to the whole sweep; give a single value")
    announce(f"sweep of {len(sweep)} runs: checking each")
    from neutreno.sweep import launch, plan  # each as a separate process, now that all are known

    with console.heartbeat(sweep[0].config.progress.line_every_s):
        console.doing("checking the runs")
        jobs = [plan(composed) for composed in sweep]
    return 2 if launch(jobs, sweep[0].config) else 0


def _train(composed: Composed) -> None:
    chosen = " ".join(f"{group}={composed.choices[group]}" for group in ("model", "data"))
    announce(f"{chosen} seed={composed.config.seed}: loading PyTorch")
    from neutreno.training import train  # the story of a run; torch and Lightning take seconds to import

    train(composed)
