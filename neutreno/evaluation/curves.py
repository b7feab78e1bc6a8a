"""Measures of over-smoothing by layer, as a table and a figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neutreno.callbacks.probe import measure_tokens, probed
from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject, Table
from neutreno.reports.figures import KINDS, LAYERS, parts, plot_similarity


class Curves(Evaluator):
    """What the probe measures at the end of training, with its settings: ``probe.measures``, ``probe.num_samples``."""

    alone = True

    def check(self, subject: Subject) -> None:
        if not hasattr(subject.task.model, "token_features"):
            model = type(subject.task.model).__name__
            raise NothingToMeasure(f"evaluator.curves needs a model with token_features, which {model} lacks")

    def run(self, subject: Subject) -> Findings:
        model, probe = subject.task.model, subject.settings["probe"]
        inputs = subject.data.probe_batch(probe["num_samples"])
        rows = measure_tokens(model, inputs, probed(probe.get("measures", [])))
        layers, figure = getattr(model, "layers", LAYERS), subject.folder / "evaluation.png"
        plot_similarity(rows, figure, subject.title, layers)
        curves: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            if row["measure"] == "cosine":
                curves.setdefault(row["tokens"], {"last": []})["last"].append(row["mean"])
        return Findings(tables=list(tables(rows, layers)), record=rows, curves=curves, files=[figure])


def tables(rows: list[dict[str, Any]], layers: str) -> Iterator[Table]:
    """Of every part of the network: similarity of each kind of tokens by layer, then the further measures.

    Args:
        layers: what a layer is called.
    """
    similarity = [row for row in rows if row["measure"] == "cosine"]
    of_network = parts(dict.fromkeys(row["tokens"] for row in similarity))
    for network, kinds in of_network.items():
        curves = [[f"{r['mean']:.4f} ± {r['sd']:.4f}" for r in similarity if r["tokens"] == kind] for kind in kinds]
        by_layer = [[str(layer), *values] for layer, values in enumerate(zip(*curves, strict=True))]
        first = layers if len(of_network) == 1 else f"{network} {layers}"
        yield Table([first, f"similarity of {KINDS[kinds[0]][1]}", *(KINDS[k][1] for k in kinds[1:])], by_layer)
        further = [r for r in rows if r["measure"] != "cosine" and r["tokens"] == kinds[0]]
        names = list(dict.fromkeys(r["measure"] for r in further))
        at = {(r["layer"], r["measure"]): f"{r['mean']:.4g} ± {r['sd']:.2g}" for r in further}
        if names:
            values = [[str(layer), *(at.get((layer, name), "") for name in names)] for layer in range(len(by_layer))]
            yield Table([first, *(name.replace("_", " ") for name in names)], values)
