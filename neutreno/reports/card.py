"""The model card of a trained network, made from its run's record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from neutreno.errors import one_line
from neutreno.reports.escaping import in_markdown, markdown_table
from neutreno.reports.layers import curve
from neutreno.reports.reading import Run

OF = {"last": "of the last epoch", "best": "of the best epoch, chosen on val", "ema": "averaged over training (EMA)"}


def split_of(metric: str) -> str:
    """``test`` of ``test/top1`` and of ``test_crops/top1``; nothing of a metric that is of no split."""
    split = metric.partition("/")[0].partition("_")[0]
    return split if split in ("val", "test") else ""


def metrics_of(run: Run, weights: str) -> dict[str, float]:
    """The run's metrics of these weights on a split, without their prefix."""
    prefix = "" if weights == "last" else f"{weights}/"
    found = {name.removeprefix(prefix): value for name, value in run.metrics.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if split_of(name)}


def write_card(
    run: Run, weights: str, method: str, words: Sequence[str], tag: str | None, license: str | None, source: str
) -> str:
    """``README.md`` of the files.

    Args:
        method: the variants that the network was trained with, in words.
        words: what was typed beside ``neutreno train``.
        tag: what the hub calls the run's task.
        source: what ``neutreno.from_pretrained`` is given.
    """
    metrics, data, task = metrics_of(run, weights), run.settings["data"], run.task
    found = [
        EvalResult(
            **{"task_type": tag or task, "dataset_type": str(data), "dataset_name": str(data)},
            **{"dataset_split": split_of(name), "metric_type": name.partition("/")[2], "metric_name": name},
            metric_value=value,
        )
        for name, value in metrics.items()
    ]
    known = {"license": license, "library_name": "neutreno", "pipeline_tag": tag, "tags": ["over-smoothing"]}
    head = ModelCardData(**known, model_name=one_line(run.label), eval_results=found or None)
    table = [[name, split_of(name), f"{value:.6g}"] for name, value in metrics.items()]
    parts = [
        f"# {in_markdown(run.label)}",
        f"A network for {in_markdown(task)} on {in_markdown(str(data))}, trained with **{in_markdown(method)}**. "
        "The method is part of the network, and the names of its weights do not tell it: load them as below, which "
        "builds the network that was trained.",
        f"```python\nimport neutreno\n\nnet = neutreno.from_pretrained({source!r})\nnet.model, net.input\n```",
        f"## Figures\n\nOf the weights {OF[weights]}:",
        markdown_table(table, ["metric", "split", "value"], colalign=["left", "left", "right"]),
        *_similarity(run),
        "## Origin",
        markdown_table(_origin(run, words, license), ["", ""]),
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _similarity(run: Run) -> list[str]:
    """A sentence on over-smoothing, where it was measured."""
    trained, initial = (curve(run.measured, when) for when in ("last", "initial"))
    if not trained:
        return []
    at = f"{trained[-1]:.3f} after the last of {len(trained) - 1} layers when training ended"
    return [f"Over-smoothing: the cosine similarity of tokens was {at} ({initial[-1]:.3f} at initialisation)."]


def _origin(run: Run, words: Sequence[str], license: str | None) -> list[list[str]]:
    record, versions = run.result, run.result.get("versions", {})
    started = [Path(str(found.get("source"))).name for found in record.get("initial_weights", {}).values()]
    known = {
        "command": " ".join(["neutreno train", *words]),
        "seed": str(run.seed),
        "started from": ", ".join(started),
        "optimizer steps": str(record.get("steps", "")),
        "parameters": str(record.get("parameters", "")),
        "commit": record.get("git_commit") or "",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "licence": license or "none was given",
    }
    return [[name, value] for name, value in known.items() if value]
