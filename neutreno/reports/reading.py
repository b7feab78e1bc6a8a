"""Run folders as tables, figures and the dashboard read them: what cannot be read is left out and named."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neutreno.errors import InputError, one_line
from neutreno.records import check_table, is_number, read_json
from neutreno.runs import RunFolder, read_result, shared, whole
from neutreno.tablefiles import wrong_figures
from neutreno.variants import model_words, words

TABLES = ("metrics.csv", "oversmoothing.csv")


@dataclass
class Run:
    """A run folder: ``result`` is its ``result.json``, ``config`` its ``config.yaml``, and ``evaluation`` what
    ``evaluation.json`` says."""

    path: Path
    result: dict[str, Any]
    config: dict[str, Any]
    evaluation: dict[str, Any]

    @property
    def status(self) -> str:
        """``finished``, ``running``, ``failed`` or ``interrupted``."""
        return self.result["status"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The few settings by which people tell runs apart, flat: data, model, axes, what stands in labels, seed."""
        return {key: whole(value) for key, value in self.result["settings"].items()}

    @property
    def seed(self) -> int:
        return self.settings["seed"]

    @property
    def at_baseline(self) -> bool:
        """Whether the run is at the baseline of all its axes, or equals it."""
        return all(axis["baseline"] for axis in self.result["axes"].values())

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Labelled settings of the axes that are numbers; of an axis at its baseline those that this equals."""
        axes, equal = self.result["axes"], self.result["baseline_values"]
        found = {key: self.settings.get(key) for key in self.result["labels"] if key.partition(".")[0] in axes}
        at_baseline = [key for key in found if axes[key.partition(".")[0]]["baseline"] and found[key] is None]
        found |= {key: equal.get(key) for key in at_baseline}
        return {key: value for key, value in found.items() if is_number(value)}

    @property
    def label(self) -> str:
        """``digits deit-mini neutreno λ̃=0.6 + featscale``"""
        named = [str(self.settings["data"]), model_words(self.result), " + ".join(words(self.result))]
        return " ".join(filter(None, named))

    @property
    def task(self) -> str:
        """The name of the task's class in words: ``classification``, ``language modeling``."""
        name = self.result["task"].rpartition(".")[2]
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()

    @property
    def origin(self) -> tuple[str, str] | None:
        """What the run was started for: ``("row", "lab/gfsa")``, or ``("experiment", "table1/deit_tiny_neutreno")``."""
        if row := self.result.get("row"):
            return "row", row
        given = [o.partition("=")[2] for o in self.result["overrides"] if o.lstrip("+").startswith("experiment=")]
        return ("experiment", given[-1]) if given else None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The run's own metrics and what ``evaluate.py`` found beside them, such as ``val_multi_scale/miou``."""
        found = self.evaluation["metrics"] | self.result.get("metrics", {})
        return {name: value for name, value in found.items() if is_number(value)}

    @property
    def within(self) -> dict[str, float]:
        """Metrics that are times to an event, and up to when it was looked for; without a value, it did not come."""
        return self.result.get("within", {})

    @property
    def main_metric(self) -> str | None:
        """What the run is judged by: the test split's figure where there is one, else the validation's."""
        named = self.result["main_metric"]
        known = [f"test/{named.partition('/')[2]}", named]
        return next((name for name in known if name in self.metrics), None)

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Rows of layer-wise metrics, see :mod:`neutreno.reports.layers`."""
        return self.result.get("oversmoothing", [])

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What runs of one row of a table share: flat settings without seed, places and ways of execution."""
        return shared(self.config, frozenset(self.result["execution"]).__contains__)

    @cached_property
    def row(self) -> dict[str, Any]:
        """The same, and what the data was: ``data.root`` may hold anything. Without what is null, as an option is that
        came later."""
        given = {key: value for key, value in self.shared.items() if value is not None}
        digests = self.result.get("digests", {})
        return {**given, **{f"{split} data": digest[:8] for split, digest in digests.items()}}


def read_run(folder: str | Path) -> Run:
    """One run folder, finished or not.

    Raises:
        InputError: it is none, or its files are not what a run writes.
    """
    result, config = read_result(folder), RunFolder(folder).config()
    paper = config.get("paper") or {}
    if problems := wrong_figures(paper, "paper"):
        raise InputError(f"{Path(folder) / 'config.yaml'}: {problems[0]}")
    for name in TABLES:
        if os.path.lexists(file := Path(folder) / name):
            check_table(file)
    return Run(Path(folder), result, config, _evaluation(Path(folder) / "evaluation.json"))


def _evaluation(file: Path) -> dict[str, Any]:
    """What ``evaluate.py`` left beside the run, if anything.

    Raises:
        InputError: it is not what that writes.
    """
    found = read_json(file) if os.path.lexists(file) else {"metrics": {}}
    if not isinstance(found, dict) or not isinstance(found.get("metrics"), dict):
        raise InputError(f"{file} was not written by an evaluation; remove it, or evaluate the run again")
    return found


def read_runs(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs among ``folders``, each a run folder or a folder of them; and a line for each that could not be read.

    Raises:
        InputError: there is no run at all.
    """
    runs, problems, paths = [], [], {}
    for folder in map(Path, folders):
        is_run = os.path.exists(folder / "config.yaml") or not os.path.isdir(folder)
        inside = [] if is_run else sorted(f.parent for f in folder.glob("*/config.yaml"))
        paths |= {path.resolve(): path for path in inside or [folder]}  # one that is named twice counts once
    for path in paths.values():
        try:
            if not os.path.isdir(path):
                raise InputError(f"{path}: no such folder")
            runs.append(read_run(path))
        except InputError as error:
            problems.append(one_line(str(error)))
    if not runs:
        raise InputError("no runs to read" + (f": {'; '.join(problems)}" if problems else ""))
    return runs, problems


def more_to_come(folders: Sequence[str | Path]) -> bool:
    """Whether the last sweep in one of ``folders`` has runs that wait for their turn or are in progress, as far as its
    manifest says: that of a sweep which was killed may say so for ever."""
    return any(state in ("waiting", "running") for folder in folders for state in _states(Path(folder)))


def _states(folder: Path) -> list[Any]:
    """Of the runs of the last sweep in a folder; none where there is no manifest, or what is no manifest."""
    last = max(folder.glob(".sweeps/*/manifest.json"), default=None)
    try:
        manifest = {} if last is None else read_json(last)
    except InputError:  # being replaced, or damaged: the page does without it
        return []
    runs = manifest.get("runs") if isinstance(manifest, dict) else None
    return [run.get("state") for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
