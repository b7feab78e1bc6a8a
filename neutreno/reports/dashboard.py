"""The dashboard: run folders as one HTML file that needs nothing else, with its script and Plotly inside."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from neutreno.files import replacing
from neutreno.reports.course import layers_over_steps, training_curves
from neutreno.reports.reading import Run
from neutreno.variants import model_words, words

TEMPLATES = Path(__file__).parent


def write_dashboard(runs: Sequence[Run], path: str | Path, reload_s: float | None = None) -> None:
    """Write the page for ``runs`` to ``path``; with ``reload_s`` it loads itself anew so often, keeping its view."""
    from plotly.offline import get_plotlyjs

    content = {"runs": [collect(run, Path(path).resolve().parent) for run in runs], "reload_s": reload_s}
    content = json.loads(json.dumps(content), parse_constant=null)
    data = json.dumps(content, separators=(",", ":"))  # in ASCII: a name may be no valid Unicode
    page = (TEMPLATES / "dashboard.html").read_text()
    for mark, text in (
        ("/*STYLE*/", (TEMPLATES / "dashboard.css").read_text()),
        ("/*PLOTLY*/", get_plotlyjs()),
        ("/*SCRIPT*/", (TEMPLATES / "dashboard.js").read_text()),
        ("/*DATA*/", data.replace("<", "\\u003c")),  # names are anyone's: no tag may end the element that carries them
    ):
        page = page.replace(mark, text, 1)
    with replacing(path) as file:
        file.write(page)


def null(constant: str) -> None:
    """NaN and Infinity, which JSON has not."""


def collect(run: Run, home: Path) -> dict[str, Any]:
    """What the page shows of a run; ``home`` is the folder of the page, from which links lead."""
    result = run.result
    return {
        "name": run.path.name,
        "link": quote(os.fsencode(os.path.relpath(run.path.resolve(), home))) + "/",
        "status": run.status,
        "task": run.task,
        "label": run.label,
        "network": model_words(result),
        "words": " + ".join(words(result)),
        "about": run.settings,
        "labels": result["labels"],
        "axes": list(result["axes"]),
        "baseline": run.at_baseline,
        "numbers": run.numbers,
        "metrics": run.metrics,
        "main": run.main_metric,
        "validated": result["main_metric"],
        "smaller": result["main_metric_mode"] == "min",
        "settings": {k: v for k, v in run.row.items() if v is not None},
        "curves": training_curves(run.path / "metrics.csv"),
        "byLayer": layers_over_steps(run),
    }
