"""Runs as a data frame: a row each, named as on the dashboard's page and in tables."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from neutreno.records import is_number
from neutreno.reports.comparison import differing_settings
from neutreno.reports.reading import Run, read_runs

ABOUT = ("name", "status")
AT_THE_END = ("parameters", "steps", "wall_clock_s")  # keys of result.json; seconds of training


def load_runs(*folders: str | Path) -> pd.DataFrame:
    """Run folders, or folders of them (``outputs`` where none is given), as a table with a row for each run.

    Columns: ``name`` and ``status``; what tells runs apart, by its label (``λ̃``) or its key's last word, and all other
    settings in which runs differ by their keys, but for those that follow from a choice that has a column;
    ``main_metric``, the name of what the run is judged by; a column for each metric of any run, those first; what
    the record says at the end of a run, ``wall_clock_s`` in seconds. What a run does not have is missing. Runs that
    cannot be read are named in a warning and left out.

    Raises:
        InputError: there is no run at all.
    """
    runs, problems = read_runs(folders or ["outputs"])
    for problem in problems:
        warnings.warn(f"{problem}; left out", stacklevel=2)
    settings = _titles(runs) | {key: key for key in differing_settings(runs)}
    judged = [run.main_metric for run in runs if run.main_metric is not None]
    metrics = dict.fromkeys([*judged, *(name for run in runs for name in run.metrics)])
    columns = [*ABOUT, *settings.values(), "main_metric", *metrics, *AT_THE_END]
    rows = [
        run.metrics
        | {title: _setting(run, key) for key, title in settings.items()}
        | {key: run.result.get(key) for key in AT_THE_END if is_number(run.result.get(key))}
        | {"name": run.path.name, "status": run.status, "main_metric": run.main_metric}
        for run in runs
    ]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))


def _setting(run: Run, key: str) -> Any:
    """Also where a label lets it go without saying."""
    value = run.settings.get(key)
    return run.row.get(key) if value is None else value


def _titles(runs: list[Run]) -> dict[str, str]:
    """What tells the runs apart, as columns: by key the label or the last word, or the key where two would be alike."""
    keys = dict.fromkeys(key for run in runs for key, value in run.settings.items() if value is not None)
    labels = {key: label for run in runs for key, label in run.result["labels"].items()}
    short = {key: labels.get(key) or key.rpartition(".")[2] for key in sorted(keys, key="seed".__eq__)}
    taken = Counter([*short.values(), *ABOUT, "main_metric", *AT_THE_END])
    return {key: title if taken[title] == 1 else key for key, title in short.items()}
