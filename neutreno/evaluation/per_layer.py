"""Layer-wise metrics of over-smoothing, as tables and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from neutreno.errors import InputError
from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject
from neutreno.oversmoothing.layers import find_layers
from neutreno.oversmoothing.measure import measure
from neutreno.oversmoothing.metrics import probed
from neutreno.reports.evaluation import Table
from neutreno.reports.figures import plot_similarity
from neutreno.reports.layers import LAYERS, part_of, wide


class PerLayer(Evaluator):
    """What the probe measures at the end of training, with its settings: ``probe.metrics``, ``probe.num_samples``."""

    alone = True

    def check(self, subject: Subject) -> None:
        try:
            find_layers(subject.task.measured)
        except InputError as error:
            raise NothingToMeasure(f"evaluator.per_layer: {error}") from error

    def run(self, subject: Subject) -> Findings:
        probe = subject.settings["probe"]
        samples = subject.data.probe_samples(probe["num_samples"])
        rows = measure(subject.task.measured, samples, probed(probe.get("metrics", [])))
        figure = subject.folder / "evaluation.png"
        plot_similarity(rows, figure, subject.title)
        return Findings(tables=list(tables(rows)), record=rows, layers=rows, files=[figure])


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """A table per stack: a row per layer, a column per metric and token subset, mean ± sd over samples."""
    stacks = pd.DataFrame(rows).groupby("stack", sort=False)
    for stack, own in stacks:
        table = wide(own, ["layer"]).astype(str)
        heading = LAYERS if len(stacks) == 1 else f"{part_of(stack)} {LAYERS}".strip()
        yield Table([heading, *table.columns[1:]], table.values.tolist())
