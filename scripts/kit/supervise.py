"""The kit's outer half, which needs nothing but Python: parts as processes with a limit, their record, and wheels."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from kit import DRAWN, PARTS, ROOT, Kit, Missing, Part, page
from neutreno.errors import InputError
from neutreno.files import replacing

NAME = "gpu_kit.json"
ARCHIVE = "cifar10.tar.xz"  # of carried images
SPARE_S = 15  # for the pictures, at the end
NOTHING = {"status": "not begun", "reason": "", "seconds": 0, "rows": {}, "environment": None}
NOT_NEEDED = {"datasets", "pyarrow", "plotly"}  # of the project's dependencies: parquet, the dashboard


def measure(arguments: argparse.Namespace) -> None:
    """Run the parts that are not done, as far as the minutes go."""
    began = time.monotonic()
    deadline = began + 60 * arguments.minutes - (3 if arguments.small else SPARE_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends with it
    for option, folder in {"--out": arguments.out, "--work": arguments.work}.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{option} {folder}: {error.strerror}; give another folder") from error
    state = open_state(arguments)
    state["calls"].append({"command": shlex.join(sys.orig_argv), "began": datetime.now(UTC).isoformat("T", "seconds")})
    state["packages"] = prepare(arguments)
    save(state, arguments)
    for name, part in PARTS.items():
        if name not in arguments.parts:
            continue
        before, left = state["parts"].get(name, NOTHING), deadline - time.monotonic()
        if before.get("status") == "done":
            print(f"{name:10} done in a former call", flush=True)
            continue
        if left < (least := 1 if arguments.small else part.least):
            reason = f"{max(0, left):.0f} s were left, it needs {least:.0f} s to be worth beginning"
            found = {**before, "reason": reason if before["status"] == "not begun" else before["reason"]}
        else:
            print(f"{name:10} begins, {left:.0f} s left", flush=True)
            found = run_part(arguments, name, part, before["rows"], min(left, part.most))
            found["seconds"] = round(found["seconds"] + before["seconds"], 1)
        state["parts"][name] = {"title": part.title, **found}
        save(state, arguments)
        print(f"{name:10} {found['status']}{': ' if found['reason'] else ''}{found['reason']}", flush=True)
    state["pictures"] = draw(arguments)
    state["calls"][-1]["seconds"] = round(time.monotonic() - began, 1)
    save(state, arguments)
    print(f"{arguments.out / NAME}, {arguments.out / page.NAME}")


def open_state(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record in ``--out``, else the copy of it in ``--work``, else a new one.

    Raises:
        InputError: it is of another device or size, or unreadable.
    """
    kind = {"device": arguments.device, "small": arguments.small}
    for file in (arguments.out / NAME, arguments.work / NAME):
        if file.exists():
            try:
                state = json.loads(file.read_text())
                found = {key: state[key] for key in kind}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} is not a record of this kit; remove it, or choose another --out") from error
            if found != kind:
                raise InputError(f"{file} is of {found}, not of {kind}; choose another --out and --work")
            return state
    return {**kind, "calls": [], "packages": {}, "parts": {}, "pictures": {}}


def save(state: dict[str, Any], arguments: argparse.Namespace) -> None:
    for folder in (arguments.out, arguments.work):
        with replacing(folder / NAME) as file:
            json.dump(state, file, indent=1)
    with replacing(arguments.out / page.NAME) as file:
        file.write(page.markdown(state))


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Install the wheels of the carried folder that are not here, unpack its images, and say what is still missing."""
    site, carried = arguments.work / "site", arguments.carried
    found: dict[str, Any] = {"installed": [], "missing": [], "problem": None}
    here = {plain(found.name) for found in metadata.distributions(path=[*sys.path, str(site)])}
    wheels = [file for file in sorted(carried.glob("*.whl")) if plain(file.name.split("-")[0]) not in here]
    if wheels:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        done = subprocess.run([*pip, "--target", str(site), *map(str, wheels)], capture_output=True, text=True)
        if done.returncode:
            found["problem"] = f"wheels were not installed: {last_line(done.stderr)}"
        else:
            found["installed"] = [file.name for file in wheels]
            here |= {plain(file.name.split("-")[0]) for file in wheels}
    found["missing"] = [name for name in needed() if plain(name) not in here]
    if found["missing"]:
        print(f"missing packages: {', '.join(found['missing'])}; collect their wheels with --carry", flush=True)
    archive, images = carried / ARCHIVE, arguments.work / "cifar10"
    if archive.exists() and not images.exists():
        with tarfile.open(archive) as content:
            content.extractall(images.with_suffix(".unfinished"), filter="data")
        images.with_suffix(".unfinished").rename(images)
    return found


def plain(name: str) -> str:
    """A distribution's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> list[str]:
    """What the kit imports: the project's dependencies without those it can do without, and pytest."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in listed]
    return [name for name in names if name not in NOT_NEEDED] + ["pytest"]


def start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """A process in the log's folder; it leads a group of its own, so that all it starts can be ended with it."""
    with open(log, "ab") as file:
        place = {"cwd": log.parent, "env": environment, "start_new_session": True}
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **place)


def supervised(arguments: argparse.Namespace, words: list[str], log: Path, limit: float) -> tuple[int | None, float]:
    """Run this script with ``words``; its exit code (None: stopped at the limit) and its seconds."""
    log.unlink(missing_ok=True)
    path = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", ""), str(arguments.work / "site")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
    kind = ["--device", arguments.device, *["--small"] * arguments.small]
    kind += ["--cifar10", str(arguments.cifar10)] if arguments.cifar10 else []
    places = ["--out", str(arguments.out), "--work", str(arguments.work), *kind]
    began = time.monotonic()
    process = start([sys.executable, str(ROOT / "scripts/gpu_kit.py"), *words, *places], log, environment)
    code = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(limit)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code, round(time.monotonic() - began, 1)


def run_part(
    arguments: argparse.Namespace, name: str, part: Part, rows: dict[str, Any], limit: float
) -> dict[str, Any]:
    """A part's record: ``rows`` of former calls, and what its cases found now."""
    file, log = arguments.work / f"{name}.jsonl", arguments.work / f"{name}.log"
    file.unlink(missing_ok=True)
    code, seconds = supervised(arguments, ["--part", name, "--seconds", f"{limit:.0f}"], log, limit)
    rows, environment = dict(rows), None
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # the last one, of a killed process
            found = json.loads(line)
            environment = found.get("environment", environment)
            rows |= {found["case"]: found["row"]} if "case" in found else {}
    status, reason = verdict(code, rows, log)
    return {"status": status, "reason": reason, "seconds": seconds, "rows": rows, "environment": environment}


def verdict(code: int | None, rows: dict[str, Any], log: Path) -> tuple[str, str]:
    """A part's status and its line."""
    said = {kind: {k: row[kind] for k, row in rows.items() if kind in row} for kind in ("failed", "missing", "note")}
    if code is None:
        return "stopped", f"its time was up after {len(rows)} cases; the next call goes on"
    if code:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        last = last_line(log.read_text(errors="replace"))
        return "failed", f"{how}{f', its last output: {last}' if last else ''}"
    if said["failed"]:
        case, reason = next(iter(said["failed"].items()))
        return "failed", f"{len(said['failed'])} of {len(rows)} cases, first {case}: {reason}"
    status = "missing" if rows and len(said["missing"]) == len(rows) else "done"
    return status, "; ".join(dict.fromkeys([*said["missing"].values(), *said["note"].values()]))


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def draw(arguments: argparse.Namespace) -> dict[str, Any]:
    """The pictures, by a process that may lack matplotlib; similarity by layer is drawn by the training part."""
    log = arguments.work / "pictures.log"
    code, _ = supervised(arguments, ["--pictures"], log, 2 * SPARE_S)
    if (similarity := arguments.work / "similarity.png").exists():
        shutil.copy(similarity, arguments.out)
    files = [f"{name}.png" for name in DRAWN if (arguments.out / f"{name}.png").exists()]
    return {"files": files, "reason": "" if code == 0 else verdict(code, {}, log)[1]}


def run_cases(arguments: argparse.Namespace) -> None:
    """In the part's process: its cases, each written as it ends; one that fails leaves the others."""
    state = json.loads((arguments.work / NAME).read_text()) if (arguments.work / NAME).exists() else {"parts": {}}
    rows = {name: part.get("rows", {}) for name, part in state["parts"].items()}
    good = {k: row for k, row in rows.get(arguments.part, {}).items() if not {"failed", "missing"} & row.keys()}
    kit = Kit.of(arguments, {**rows, arguments.part: dict(good)})
    with open(arguments.work / f"{arguments.part}.jsonl", "a", buffering=1) as file:
        print(json.dumps({"environment": environment()}), file=file)
        module, _, function = PARTS[arguments.part].cases.partition(":")

        def cases():
            if kit.on_gpu and not importlib.import_module("torch").cuda.is_available():
                raise Missing("a GPU")
            return getattr(importlib.import_module(f"kit.{module}"), function)(kit)

        found = tried(cases)
        if {"failed", "missing"} & found.keys():  # a row in the cases' place
            found = {arguments.part: lambda row=found: row}
        for case, call in found.items():
            if case not in good:
                kit.rows[arguments.part][case] = row = tried(call)
                print(json.dumps({"case": case, "row": row}), file=file)


def tried(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``call`` returns, or a row that says why it returned nothing."""
    try:
        return call()
    except ModuleNotFoundError as error:
        return {"missing": f"the package {error.name}"}
    except Missing as error:
        return {"missing": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {last_line(str(error))}"}


def environment() -> dict[str, Any] | None:
    """Commit, versions and hardware, if the packages for that are there."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module("neutreno.results").environment()
    return None
