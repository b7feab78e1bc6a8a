"""The dashboard: run folders as one HTML file that needs nothing else, with its script and Plotly inside."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from heapq import nsmallest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tabulate import LATEX_ESCAPE_RULES

from neutreno.files import replacing
from neutreno.records import SECONDS, is_number
from neutreno.reports.comparison import baseline_of, beyond_axes, full_label, further_settings, group_runs, row_key
from neutreno.reports.course import layers_over_steps, thinned_together, training_curves
from neutreno.reports.escaping import LATEX, MARKDOWN
from neutreno.reports.layers import curve
from neutreno.reports.reading import Run
from neutreno.reports.styles import MARKERS, Style, method_of, styles_of
from neutreno.variants import model_words, words

TEMPLATES = Path(__file__).parent
SCRIPTS = (".runs", ".table", ".drawing", ".plots", "")  # in this order
PICTURES, MOST_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif"), 20  # of a run; an SVG may hold a script


def write_dashboard(runs: Sequence[Run], path: str | Path, reload_s: float | None = None) -> None:
    """Write the page for ``runs`` to ``path``; with ``reload_s`` it loads itself anew so often, keeping its view."""
    from plotly.offline import get_plotlyjs

    home = Path(path).resolve().parent
    collected = [collect(run, home) | told for run, told in zip(runs, by_row(runs), strict=True)]
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in collected:
        alike[run["row"]].append(run)
    for members in alike.values():
        for run, curves in zip(members, thinned_together([run["curves"] for run in members]), strict=True):
            run["curves"] = curves
    signs = {"Markdown": MARKDOWN, "LaTeX": LATEX_ESCAPE_RULES | LATEX}
    content = {"runs": collected, "signs": signs, "reload_s": reload_s}
    content = json.loads(json.dumps(content), parse_constant=null)
    data = json.dumps(content, separators=(",", ":"))  # in ASCII: a name may be no valid Unicode
    page = (TEMPLATES / "dashboard.html").read_text()
    for mark, text in (
        ("/*STYLE*/", (TEMPLATES / "dashboard.css").read_text()),
        ("/*PLOTLY*/", get_plotlyjs()),
        ("/*SCRIPT*/", "".join((TEMPLATES / f"dashboard{part}.js").read_text() for part in SCRIPTS)),
        ("/*DATA*/", data.replace("<", "\\u003c")),  # names are anyone's: no tag may end the element that carries them
    ):
        page = page.replace(mark, text, 1)
    with replacing(path) as file:
        file.write(page)


def null(constant: str) -> None:
    """NaN and Infinity, which JSON has not."""


def by_row(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Of each run, as tables have it: its ``row``, the row that this is compared ``against`` and the settings
    ``beyond`` the axes in which that differs, its ``label``, what this says beyond settings with a label, and its
    method's ``style``."""
    groups, _ = group_runs(runs)
    against, beyond = {}, {}
    for group in groups:
        if other := baseline_of(group, [g for g in groups if g.runs[0].task == group.runs[0].task]):
            row = row_of(group.runs[0])
            against[row], beyond[row] = row_of(other.runs[0]), beyond_axes(group.runs[0], other.runs[0])
    firsts = {row_of(run): run for run in runs}
    further = dict(zip(firsts, further_settings(list(firsts.values())), strict=True))
    styles = dict(zip(firsts, styles_of(method_of(run.result) for run in firsts.values()), strict=True))
    return [
        {
            "row": row,
            "against": against.get(row),
            "beyond": beyond.get(row, []),
            "label": full_label(run, further[row]),
            "further": further[row],
            "style": in_plotly(styles[row]),
        }
        for run, row in zip(runs, map(row_of, runs), strict=True)
    ]


def in_plotly(style: Style) -> dict[str, Any]:
    """A method's style as Plotly takes it; lengths of dashes are in pixels there."""
    dash = ",".join(f"{2 * length:g}px" for length in style.dash) or "solid"
    return {"colour": style.colour, "symbol": MARKERS[style.marker], "dash": dash}


def row_of(run: Run) -> str:
    """A name of the run's row that stays when runs are added."""
    return sha256(row_key(run).encode()).hexdigest()[:12]


def collect(run: Run, home: Path) -> dict[str, Any]:
    """What the page shows of a run; ``home`` is the folder of the page, from which links lead."""
    result = run.result
    similarity = curve(run.measured) if run.status == "finished" else []
    path = os.path.relpath(run.path.resolve(), home)
    link = quote(os.fsencode(path)) + "/"
    curves, planned = training_curves(run.path / "metrics.csv"), result.get("planned_steps", result.get("steps"))
    (clock,) = thinned_together([{name: curves.pop(name) for name in (SECONDS,) if name in curves}])
    return {
        "name": run.path.name,
        "path": path,
        "link": link,
        "status": run.status,
        "task": run.task,
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
        "clock": clock.get(SECONDS),
        "curves": curves,
        "epoch": steps_per_epoch(run, planned),
        "pictures": {name: link + quote(os.fsencode(name)) for name in pictures_in(run.path)},
        "byLayer": layers_over_steps(run),
        "final": similarity[-1] if similarity else None,
        "planned": planned,
        "seconds": result.get("wall_clock_s"),
        "events": list(run.within),
    }


def steps_per_epoch(run: Run, planned: int | None) -> float | None:
    """Optimizer steps; None where the run does not say how many epochs it takes."""
    trainer = run.config.get("trainer")
    epochs = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    return planned / epochs if planned and is_number(epochs) and epochs > 0 else None


def pictures_in(folder: Path) -> list[str]:
    """Names of the pictures in a run folder, the first by name; a link may lead anywhere, and is none."""
    with os.scandir(folder) as entries:
        files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    return nsmallest(MOST_PICTURES, (name for name in files if Path(name).suffix.lower() in PICTURES))
