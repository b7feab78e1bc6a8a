"""Rows of layer-wise metrics, as :func:`neutreno.oversmoothing.measure.measure` gives them, for people to read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neutreno.errors import InputError
from neutreno.records import ALL, check_table

TITLES = {  # what an axis says of a metric whose name alone would say too little
    "cosine": "cosine similarity",
    "cosine_layernorm": "cosine similarity after LayerNorm",
    "residual": "rank-collapse residual",
    "dirichlet": "Dirichlet energy",
    "high_frequency": "high-frequency share",
    "J": "J(V) / ‖V‖²",
    "G": "G(V) / ‖V‖², λ̃ = 1",
}
LARGEST = dict.fromkeys(("cosine", "cosine_layernorm", "residual"), 1.0)  # where there is one that an axis ends at
LAYERS = "layer (0 = embedding)"
_KINDS = {  # of the columns of a run's table that people and figures take
    **dict.fromkeys(("step", "epoch", "layer", "samples", "dim"), int),
    **dict.fromkeys(("stack", "subset", "metric"), str),
    **dict.fromkeys(("mean", "sd"), float),
}


def read_table(file: Path, recorded: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A run's ``oversmoothing.csv``: all measurements, of which its record holds the rows of the first and the last.

    Raises:
        InputError: it is not there, not what a run writes, or lacks rows of the record.
    """
    check_table(file)
    try:
        table = pd.read_csv(file).astype(_KINDS)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file} is damaged ({' '.join(str(error).split())[:100]}); restore it from a copy") from error
    if table["step"].isin([row.get("step") for row in recorded]).sum() != len(recorded):
        raise InputError(f"{file} is damaged: it has other rows than result.json; restore it from a copy")
    return table


def title_of(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


def part_of(stack: str) -> str:
    """The part of a network that a stack of layers is: ``decoder`` of ``decoder.blocks``; nothing of ``blocks``."""
    return stack.removesuffix("blocks").strip(".")


def said_of(subset: str) -> str:
    """``all tokens``, ``patch tokens``"""
    return f"{subset} tokens"


def logged_name(row: dict[str, Any], first: str) -> str:
    """``oversmoothing/cosine/layer_07``; with the part of the network where its stack is not the ``first``, and with
    the subset where it is not all tokens: ``oversmoothing/cosine_decoder_patch/layer_01``."""
    part = "" if row["stack"] == first else part_of(row["stack"]).replace(".", "_") or row["stack"]
    subset = "" if row["subset"] == ALL else row["subset"]
    return f"oversmoothing/{'_'.join(filter(None, [row['metric'], part, subset]))}/layer_{row['layer']:02d}"


def stacks_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The stacks of layers among ``rows``, in their order."""
    return list(dict.fromkeys(row["stack"] for row in rows))


def curve(
    rows: Sequence[dict[str, Any]],
    when: str = "last",
    subset: str = ALL,
    metric: str = "cosine",
    stack: str | None = None,
) -> list[float]:
    """Means by layer, of the first stack where none is named; NaN where a metric gave no finite number.

    Args:
        when: ``initial`` (before training) or ``last`` (of the latest measurement), where rows are of several steps.
    """
    stack = next(iter(stacks_of(rows)), None) if stack is None else stack
    wanted = [r for r in rows if (r["stack"], r["subset"], r["metric"]) == (stack, subset, metric)]
    steps = [row.get("step", 0) for row in wanted]
    at = (min if when == "initial" else max)(steps, default=0)
    now = sorted((r for r in wanted if r.get("step", 0) == at), key=lambda r: r["layer"])
    return [math.nan if r["mean"] is None else r["mean"] for r in now]


def wide(rows: pd.DataFrame, index: Sequence[str]) -> pd.DataFrame:
    """A row per ``index``, which ends with ``layer``, a column per metric and token subset: mean ± sd over samples, in
    the same format from top to bottom."""
    formats = rows.groupby(["metric", "subset"], sort=False)["mean"].transform(_format)
    spreads = ["" if pd.isna(sd) else f" ± {sd:{form}}" for sd, form in zip(rows["sd"], formats, strict=True)]
    texts = ["–" if pd.isna(mean) else f"{mean:{form}}" for mean, form in zip(rows["mean"], formats, strict=True)]
    subsets = ["" if subset == ALL else f", {said_of(subset)}" for subset in rows["subset"]]
    rows = rows.assign(
        text=[text + spread for text, spread in zip(texts, spreads, strict=True)],
        column=[title_of(metric) + subset for metric, subset in zip(rows["metric"], subsets, strict=True)],
        **{key: pd.Categorical(rows[key], rows[key].unique()) for key in index[:-1]},  # in this order
    )
    table = rows.pivot(index=index, columns="column", values="text")[rows["column"].unique()]
    return table.fillna("").reset_index().rename(columns={"layer": LAYERS}).rename_axis(columns=None)


def _format(values: pd.Series) -> str:
    """How all of a column's numbers are written: four digits of the largest; in powers of ten where the smallest would
    be left with none."""
    sizes = values[values.notna() & (values != 0)].abs()
    decimals = 3 - math.floor(math.log10(sizes.max())) if len(sizes) else 3
    return ".3e" if len(sizes) and sizes.min() < 10.0**-decimals else f".{max(decimals, 0)}f"
