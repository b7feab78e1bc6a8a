"""Comparing runs: grouped over seeds, told apart by the settings in which they differ."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neutreno.errors import InputError
from neutreno.results import read_result
from neutreno.runs import RunFolder, identity


@dataclass
class Group:
    """Finished runs that differ in nothing but their seed."""

    label: str
    results: list[dict[str, Any]]

    def curves(self, when: str = "last", part: str | None = None) -> np.ndarray:
        """Similarity by layer, all tokens: (seeds, layers); of the part ``decoder``, if there is one, where asked."""
        curves = [r["oversmoothing"] if part is None else r["oversmoothing"].get(part) for r in self.results]
        return np.array([curve[when] for curve in curves] if all(curves) else [])

    def values(self, metric: str) -> np.ndarray:
        """One value per seed; empty if a run lacks the metric."""
        found = [r["metrics"][metric] for r in self.results if metric in r["metrics"]]
        return np.array(found if len(found) == len(self.results) else [])


def load_groups(folders: Sequence[str | Path]) -> tuple[list[Group], list[str]]:
    """Group the finished runs among ``folders``; the second value names those that are not finished.

    Raises:
        InputError: a folder is no run folder, or no run is finished.
    """
    found: dict[str, list[tuple[dict, dict]]] = {}
    unfinished = []
    for folder in dict.fromkeys(str(Path(f)) for f in folders):
        result = read_result(folder)
        if result.get("status") != "finished":
            unfinished.append(f"{folder} ({result.get('status')})")
            continue
        settings = identity(RunFolder(folder).config())
        settings = {k: v for k, v in settings.items() if k.rpartition(".")[2] != "seed"}
        for key in ("model.weights", "model.encoder_weights"):  # where a run starts from the run of its own seed
            if isinstance(start := settings.get(key), str):
                settings[key] = re.sub(r"seed\d+", "seed", start)
        for split, digest in result.get("text", {}).get("sha256", {}).items():  # data.root may hold any text
            settings[f"{split} text"] = digest[:8]
        result["metrics"] = _evaluated(Path(folder)) | result["metrics"]
        found.setdefault(json.dumps(settings, sort_keys=True), []).append((settings, result))
    if not found:
        raise InputError("none of the runs is finished" + (": " + ", ".join(unfinished) if unfinished else ""))
    for runs in found.values():
        seeds = [result["settings"]["seed"] for _, result in runs]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(result["name"] for _, result in runs)
            raise InputError(f"the same run is given twice, under two names: {names}")
    settings = [runs[0][0] for runs in found.values()]
    shown = {"attention.lam", "recipe.lam"}  # λ̃ stands in the base label
    shown |= {"attention._target_", "block._target_", "model.size", "data._target_", *_consequences(settings)}
    differing = [k for k in sorted(set().union(*settings)) if len({str(s.get(k)) for s in settings}) > 1]
    groups = []
    for runs in found.values():
        own, result = runs[0]
        extra = [f"{k}={own.get(k)}" for k in differing if k not in shown]
        groups.append(Group(" ".join([_base_label(result["settings"]), *extra]), [r for _, r in runs]))
    return sorted(groups, key=lambda g: _order(g.results[0]["settings"])), unfinished


def _evaluated(folder: Path) -> dict[str, float]:
    """What ``evaluate.py`` found beside a run's own metrics, such as ``val_multi_scale/miou``."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return dict(json.loads((folder / "evaluation.json").read_text())["metrics"])
    return {}


def _consequences(settings: list[dict[str, Any]]) -> set[str]:
    """Keys that differ only because the data set does: the label already names it."""
    if len({s["data._target_"] for s in settings}) == 1:
        return set()
    return {k for s in settings for k in s if k.startswith(("data.", "recipe.", "task.", "trainer."))}


def _base_label(s: dict[str, Any]) -> str:
    lam = "" if s["lam"] is None else f" λ̃={s['lam']:g}"
    block = "" if s["block"] == "plain" else f" + {s['block']}"
    return f"{s['data']} {s['model']}-{s['size']} {s['attention']}{lam}{block}"


def _order(s: dict[str, Any]) -> tuple:
    block = s["block"] != "plain"
    return (s["data"], s["model"], str(s["size"]), block, s["attention"] != "softmax", s["attention"], s["lam"] or 0.0)


def comparison_table(groups: Sequence[Group], metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per group: mean ± standard deviation over seeds of the metrics and of the tokens' similarity."""
    if metrics is None:
        known = ["test/top1", "val/top1", "test/miou", "val/miou", "test/ppl", "val/ppl"]
        known += ["best/test/top1", "ema/test/top1", "ema/val/top1"]
        metrics = [m for m in known if any(len(g.values(m)) for g in groups)]
    for metric in metrics:
        if not any(len(g.values(metric)) for g in groups):
            raise InputError(f"no run has the metric {metric}; there are: {', '.join(groups[0].results[0]['metrics'])}")
    rows = []
    for group in groups:
        row = {"runs": group.label, "seeds": len(group.results)}
        row |= {m: spread(group.values(m), 2) for m in metrics}
        for when, name in (("initial", "similarity, initial"), ("last", "similarity, trained")):
            row[f"{name}, last layer"] = spread(group.curves(when)[:, -1], 3)
            if (decoder := group.curves(when, "decoder")).size:
                row[f"{name}, decoder's last layer"] = spread(decoder[:, -1], 3)
        rows.append(row)
    return pd.DataFrame(rows)


def spread(values: np.ndarray, digits: int) -> str:
    """``mean ± sd`` (n − 1); the bare value of a single run; ``–`` if there is none."""
    if len(values) == 0:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"
