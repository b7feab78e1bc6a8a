"""The dashboard: run folders as one HTML file that needs nothing else, with its script and Plotly inside."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from neutreno.files import replacing
from neutreno.reports.layers import ALL
from neutreno.reports.reading import Run
from neutreno.variants import model_words, words

MOST_POINTS = 200  # of a training curve; more cannot be told apart on a screen
TEMPLATES = Path(__file__).parent


def write_dashboard(runs: Sequence[Run], path: str | Path, reload_s: float | None = None) -> None:
    """Write the page for ``runs`` to ``path``; with ``reload_s`` it loads itself anew so often, keeping its view."""
    from plotly.offline import get_plotlyjs

    content = {"runs": [collect(run, Path(path).resolve().parent) for run in runs], "reload_s": reload_s}
    # names and settings are anyone's: no tag may end the script element that carries them
    data = json.dumps(finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    page = (TEMPLATES / "dashboard.html").read_text()
    for mark, text in (
        ("/*STYLE*/", (TEMPLATES / "dashboard.css").read_text()),
        ("/*PLOTLY*/", get_plotlyjs()),
        ("/*SCRIPT*/", (TEMPLATES / "dashboard.js").read_text()),
        ("/*DATA*/", data),
    ):
        page = page.replace(mark, text, 1)
    with replacing(path) as file:
        file.write(page)


def collect(run: Run, home: Path) -> dict[str, Any]:
    """What the page shows of a run; ``home`` is the folder of the page, from which links lead."""
    result = run.result
    numbers = {key: run.number(key) for key in result["labels"] if key.partition(".")[0] in result["axes"]}
    return {
        "name": run.name,
        "link": quote(os.path.relpath(run.path.resolve(), home)) + "/",
        "status": run.status,
        "task": run.task,
        "label": run.label,
        "network": model_words(result),
        "words": " + ".join(words(result)),
        "about": run.settings,
        "labels": result["labels"],
        "axes": list(result["axes"]),
        "baseline": run.at_baseline,
        "numbers": {key: value for key, value in numbers.items() if value is not None},
        "metrics": run.metrics,
        "main": run.main_metric,
        "validated": result["main_metric"],
        "smaller": run.smaller_is_better,
        "settings": {k: v for k, v in run.row.items() if v is not None},
        "curves": training_curves(run.path / "metrics.csv"),
        "byLayer": by_layer(run),
    }


def training_curves(path: Path) -> dict[str, list[list[float]]]:
    """``{metric: [steps, values]}`` of ``metrics.csv``, thinned; what cannot be read is absent."""
    try:
        table = pd.read_csv(path, on_bad_lines="skip").apply(pd.to_numeric, errors="coerce")
        steps = table["step"]
    except (OSError, ValueError, KeyError):
        return {}
    curves = {}
    for name in table.columns:
        if name in ("step", "epoch", "train/lr") or name.startswith("oversmoothing/"):
            continue
        known = table[name].notna() & steps.notna()
        x, y = steps[known], table[name][known]
        keep = slice(None, None, math.ceil(len(x) / MOST_POINTS) or 1)
        if len(x):
            curves[name] = [x.iloc[keep].tolist(), [float(f"{v:.5g}") for v in y.iloc[keep]]]
    return curves


def by_layer(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Layer-wise metrics of all tokens of the first stack, each time: ``{metric: [{"step": …, "layers": […]}]}``."""
    try:
        table = pd.read_csv(run.path / "oversmoothing.csv", on_bad_lines="skip")
        table = table[(table.subset == ALL) & (table["stack"] == table["stack"].iloc[0])]
        table = table.astype({"step": int, "layer": int, "mean": float}).sort_values("layer")
        return {
            str(metric): [
                {"step": int(step), "layers": [float(f"{v:.4g}") for v in at["mean"]]}
                for step, at in rows.groupby("step")
            ]
            for metric, rows in table.groupby("metric")
        }
    except (OSError, ValueError, AttributeError, KeyError, IndexError):
        curves = [run.curve("initial"), run.curve("last")]
        return {
            "cosine": [{"step": step, "layers": curve} for step, curve in zip((0, 1), curves, strict=True) if curve]
        }


def finite(node: Any) -> Any:
    """``node`` with null for every number that JSON has not."""
    if isinstance(node, dict):
        return {str(k): finite(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [finite(v) for v in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
