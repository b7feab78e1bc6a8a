"""``result.json``: what a run was, where it ran, and what came out. Tables and figures read nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tabulate import tabulate

from neutreno.config.composing import Composed
from neutreno.config.gate import mark_of
from neutreno.config.options import START
from neutreno.config.words import key_of
from neutreno.files import replacing
from neutreno.reports.layers import curve
from neutreno.runs import FORMAT, execution_keys, flat, group_name, read_result
from neutreno.variants import describe, model_words, words

PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-learn")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` as a whole."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Replace ``path`` as a whole."""
    with replacing(path) as file:
        file.write(content)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_run(composed: Composed, task: type) -> dict[str, Any]:
    """What a run is, for its record: what :func:`neutreno.variants.describe` says, its task and what it is judged by,
    which keys are matters of execution, when it was started and by which command or call."""
    return {
        "format": FORMAT,
        **describe(composed),
        "group": group_name(composed),
        "task": f"{task.__module__}.{task.__qualname__}",
        "main_metric": task.main_metric,
        "main_metric_mode": task.main_metric_mode,
        "execution": execution_keys(composed),
        "row": composed.settings["row"],
        "overrides": composed.overrides,
        "config_dirs": composed.config_dirs,
        "started": now(),
        "command": composed.called or shlex.join(sys.orig_argv),
    }


def tags(record: dict[str, Any]) -> list[str]:
    """What a service files a run under: data set, model, what it is at each axis, the row or experiment it is of."""
    experiments = [word.partition("=")[2] for word in record["overrides"] if key_of(word) == "experiment"]
    row = record.get("row") or next(iter(experiments), None)
    return [str(record["settings"]["data"]), model_words(record), *words(record), *([row] if row else [])]


def initial_weights(composed: Composed) -> dict[str, dict[str, Any]]:
    """The weights that a run starts from, by the key that names them: their source, of a file its digest, and the
    variants they were trained with (None: nobody knows)."""
    from neutreno.checkpoints import checkpoint_file, trained_with

    axes, found = describe(composed)["axes"], {}
    for key, source in flat(composed.settings).items():
        if isinstance(source, str) and mark_of(key, composed.settings) is START:
            file = checkpoint_file(source)
            found[key] = {"source": str(source), "sha256": None, "axes": trained_with(source, axes)}
            if file.is_file():
                with file.open("rb") as content:
                    found[key]["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


WEIGHTS = {"": "last epoch", "best/": "best epoch", "ema/": "EMA"}  # whose metrics a prefix marks


def summary(run: Path, shown: Callable[[str, float], tuple[str, str]]) -> str:
    """What a person wants to know at the end of a run.

    Args:
        shown: the title and the value of a metric, as :meth:`neutreno.tasks.base.Task.shown` gives them.
    """
    result = read_result(run)
    minutes, seconds = divmod(round(result["wall_clock_s"]), 60)
    rows: dict[str, dict[str, str]] = {}  # by name: two metrics may have one title
    for name, value in result["metrics"].items():
        prefix = next(prefix for prefix in ("best/", "ema/", "") if name.startswith(prefix))
        if not name.endswith("loss"):
            title, text = shown(own := name.removeprefix(prefix), value)
            rows.setdefault(own, {"title": title})[prefix] = text
    for name, step in result.get("within", {}).items():
        if name not in result["metrics"]:
            row = rows.setdefault(name, {"title": shown(name, step)[0]})
            row[""] = f"not within {step:,.0f}"
    kinds = [prefix for prefix in WEIGHTS if any(prefix in row for row in rows.values())]
    lines = [f"\n{result['name']}: {result['steps']:,} steps in {minutes}:{seconds:02d}\n"]
    cells = [[row["title"], *(row.get(prefix, "") for prefix in kinds)] for row in rows.values()]
    lines += [_aligned(cells, ["", *(WEIGHTS[prefix] for prefix in kinds)])]
    similar = {
        label: [similarity[min(1, len(similarity) - 1)], similarity[-1]]
        for when, label in (("initial", "at initialisation"), ("last", "trained"))
        if (similarity := curve(result["oversmoothing"], when))
    }
    if similar:
        cells = [[label, *(f"{value:.3f}" for value in values)] for label, values in similar.items()]
        lines += ["", _aligned(cells, ["similarity of tokens", "after the first block", "after the last"])]
    lines += [""]
    if corrupt := result.get("corrupt_images"):
        lines.append(f"{corrupt} corrupt images were skipped, see {run / 'corrupt_images.txt'}")
    lines.append(f"figure  {run / 'oversmoothing.png'}\nrecord  {run / 'result.json'}")
    return "\n".join(lines)


def _aligned(rows: list[list[str]], columns: list[str]) -> str:
    """Rows under their columns, titles to the left and values to the right."""
    sides = ["left"] + ["right"] * (len(columns) - 1)
    return tabulate(rows, columns, "plain", colalign=sides, disable_numparse=True)


def environment() -> dict[str, Any]:
    """Commit, package versions and hardware of this process."""
    import torch

    hardware = {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "platform": platform.platform()}
    if torch.cuda.is_available():
        hardware["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"git_commit": _git_commit(), "versions": versions, "hardware": hardware}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Of the folder that this package is imported from, with ``-dirty`` where a tracked file differs."""
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
