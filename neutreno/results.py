"""``result.json``: what a run was, where it ran, and what came out. Tables and figures read nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from neutreno.config.composing import Composed
from neutreno.config.gate import mark_of
from neutreno.config.options import START
from neutreno.files import replacing
from neutreno.reports.layers import curve
from neutreno.runs import FORMAT, execution_keys, flat, read_result
from neutreno.variants import describe

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


def summary(run: Path) -> str:
    """What a person wants to know at the end of a run."""
    result = read_result(run)
    minutes, seconds = divmod(round(result["wall_clock_s"]), 60)
    shown = [f"{name} {value:.2f}" for name, value in result["metrics"].items() if not name.endswith("/loss")]
    shown += [
        f"{name} not within {n:,.0f}" for name, n in result.get("within", {}).items() if name not in result["metrics"]
    ]
    lines = [f"\n{result['name']}: {result['steps']:,} steps in {minutes}:{seconds:02d}", "  " + "   ".join(shown)]
    for when, label in (("initial", "at initialisation"), ("last", "trained")):
        if similarity := curve(result["oversmoothing"], when):
            first, last = similarity[min(1, len(similarity) - 1)], similarity[-1]
            found = f"{first:.3f} after the first block, {last:.3f} after the last"
            lines.append(f"  similarity of tokens {label}: {found}")
    if corrupt := result.get("corrupt_images"):
        lines.append(f"  {corrupt} corrupt images were skipped, see {run / 'corrupt_images.txt'}")
    lines.append(f"  figure  {run / 'oversmoothing.png'}\n  record  {run / 'result.json'}")
    return "\n".join(lines)


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
