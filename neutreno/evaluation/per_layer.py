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
from neutreno.records import ALL
from neutreno.reports.evaluation import Table
from neutreno.reports.figures import plot_similarity
from neutreno.reports.layers import part_of, wide


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
    """A table per stack and token subset: a row per layer, a column per metric, mean ± sd over samples."""
    for (stack, subset), own in pd.DataFrame(rows).groupby(["stack", "subset"], sort=False):
        table = wide(own.assign(subset=ALL), ["layer"]).astype(str)
        first, *metrics = table.columns
        table[first] = table[first].replace("0", "0 (embedding)")
        part = part_of(stack)
        heading = f"{part} layer".strip() if subset == ALL else f"{part or 'layer'}, {subset}"
        yield Table([heading, *metrics], table.values.tolist())
