"""Many runs, each a separate process: what is to be done, what became of each, and the table at the end."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from neutreno.config.building import build
from neutreno.config.composing import Composed
from neutreno.config.gate import check, part_problems, refuse
from neutreno.config.words import key_of
from neutreno.errors import InputError
from neutreno.files import make_folder, replacing
from neutreno.results import now
from neutreno.runs import RunFolder, default_name


@dataclass(eq=False)
class Job:
    """One run to be made: what is typed after ``train.py``, the folder it leaves, and the jobs that have to end well
    before; and what has become of it."""

    overrides: list[str]
    run: RunFolder
    state: str  # "to run", "to resume", "refused"; "running"; "finished", "failed" or "interrupted"
    config_dirs: list[str] = field(default_factory=list)
    needs: list[Job] = field(default_factory=list)
    log: Path | None = None  # of what this sweep runs
    reason: str | None = None
    started: str | None = None
    ended: str | None = None

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def to_do(self) -> bool:
        return self.state in ("to run", "to resume")

    @property
    def failed(self) -> bool:
        return self.state in ("refused", "failed")

    @property
    def command(self) -> list[str]:
        dirs = [word for folder in self.config_dirs for word in ("--config-dir", folder)]
        return [sys.executable, "-m", "neutreno", "train", *dirs, *self.overrides]

    def record(self) -> dict[str, Any]:
        """``state`` is ``waiting``, ``running``, ``finished``, ``failed``, ``skipped`` (these two with the ``reason``)
        or ``interrupted``."""
        state = "skipped" if self.log is None else "waiting" if self.to_do else self.state
        return {
            "name": self.name,
            "folder": str(self.run.path),
            "command": shlex.join(self.command),
            "state": state,
            "reason": self.reason or (self.state if state == "skipped" else None),
            "log": None if self.log is None else str(self.log),
            "started": self.started,
            "ended": self.ended,
        }


def plan(composed: Composed) -> Job:
    """What is to be done for one run of a sweep. Unless ``resume`` is given, a sweep continues what is unfinished."""
    if not any(key_of(word) == "resume" for word in composed.overrides):
        composed.overrides.append("resume=true")
        composed.config.resume = True
        composed = composed.anew()
    config, reason = composed.config, None
    try:
        check(composed)
        run = RunFolder(config.output_dir, config.name or default_name(composed))
        state = "to resume" if run.config_file.exists() else "to run"
        if config.resume and state == "to resume":
            run.check(composed, resume=True)
            if run.status == "finished":
                state = "finished"
                data = {key: value for key, value in composed.settings["data"].items() if key != "seed"}
                run.check_data(partial(_digests, json.dumps(data)))  # read once for all seeds
    except InputError as error:
        state, reason = "refused", "; ".join(str(error).splitlines())
        name = re.sub(r"[^\w.+-]+", "_", str(config.name or " ".join(composed.overrides)))
        run = RunFolder(str(config.output_dir), name[:100])  # a word for it; nothing is written there
    return Job(composed.overrides, run, state, composed.config_dirs, reason=reason)


@cache
def _digests(settings: str) -> dict[str, str] | None:
    """The fingerprints of the splits of ``data``'s settings; None where it cannot be read, so nothing is compared."""
    try:
        data = build(json.loads(settings))
        data.setup()
    except InputError:
        return None
    return data.digests


def launch(
    jobs: Sequence[Job], config: DictConfig, table: Callable[[list[Path]], None] | None = None
) -> list[tuple[Job, str]]:
    """Make the runs that are not finished, with a line of progress; returns those that failed, with the reason.

    Every run's output goes to a separate file, ``<output_dir>/.sweeps/<time>/<run>.log``; what became of each stands
    in ``manifest.json`` beside them. One failing run does not stop the others, apart from those that need it; a sweep
    that is killed takes its runs with it, and the same command goes on. At the end ``table`` prints that of the
    finished runs' folders (default: :func:`neutreno.reports.tables.print_tables`).
    """
    settings = OmegaConf.to_container(config.launcher, resolve=True)
    refuse(part_problems(settings, "launcher"))
    launcher = build(settings)
    jobs = _once_each(jobs)
    for job in jobs:
        if not job.to_do:
            print(f"skipped {job.name}: {job.reason or job.state}")
    manifest = Manifest(jobs, Path(config.output_dir)) if any(job.to_do for job in jobs) else None
    if manifest is not None:
        print(f"logs: {manifest.folder}")
    progress = Progress(jobs, config.progress.line_every_s)
    progress.say()

    def change(job: Job, event: str, **what: str | None) -> None:
        vars(job).update(what)
        manifest.note()
        progress.say(f"{job.name}: {event}")

    def started(job: Job) -> None:
        change(job, "resumes" if job.state == "to resume" else "starts", state="running", started=now())

    def ended(job: Job, code: int) -> None:
        state, reason = ("failed", _reason(job, code)) if code else ("finished", None)
        change(job, f"failed: {reason}" if code else state, state=state, reason=reason, ended=now())
        if config.preflight and not code:  # what it says is all it leaves
            tqdm.write(job.log.read_text())

    try:
        while any(job.to_do for job in jobs):  # once where no run needs another
            launcher.run(_ready(jobs, change), started, ended, progress.running)
    except BaseException:
        for job in jobs:
            if job.state == "running":
                job.state, job.ended = "interrupted", now()
        manifest.note()
        raise
    progress.close()
    failed = sorted((job for job in jobs if job.failed), key=lambda job: job.state != "refused")
    try:
        if (done := [job for job in jobs if job.state == "finished"]) and not config.preflight:
            _conclude(done, config.output_dir, table)
    finally:  # whatever became of the table
        for job in failed:
            print(f"error: {job.name}: {job.reason}", file=sys.stderr)
    return [(job, job.reason) for job in failed]


def _ready(jobs: Sequence[Job], change: Callable) -> list[Job]:
    """The jobs whose needs are finished; one that needs a failed one has failed, too."""
    for job in jobs:
        if job.to_do and (lost := [needed.name for needed in job.needs if needed.failed]):
            change(job, reason := f"needs {', '.join(lost)}, which failed", state="failed", reason=reason)
    return [job for job in jobs if job.to_do and all(needed.state == "finished" for needed in job.needs)]


def _once_each(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without those whose run another one makes already, which is said."""
    found: dict[Path, Job] = {}
    for job in jobs:
        if found.setdefault(job.run.path, job) is not job:
            print(f"skipped {job.name}: this sweep has that run already")
    return list(found.values())


def _conclude(done: Sequence[Job], output_dir: str, table: Callable[[Sequence[Path]], None] | None) -> None:
    """The table of a sweep's finished runs, and what is typed next."""
    folders = [job.run.path for job in done]
    print()
    if table is None:
        from neutreno.reports.tables import print_tables

        print_tables(folders, config_dirs=done[0].config_dirs)
    else:
        table(folders)
    print(f"\nnext: neutreno figures {_typed(folders)}\n      neutreno dashboard {shlex.quote(output_dir)}")


def _typed(folders: Sequence[Path]) -> str:
    """Folders as they are typed: by what they begin with, if no other folder does."""
    start = os.path.commonprefix([*map(str, folders)])  # noqa: RUF071  (characters are meant)
    if len(folders) > 1 and {Path(found) for found in glob.glob(f"{glob.escape(start)}*")} == set(folders):
        return f"{shlex.quote(start)}*"
    return shlex.join(map(str, folders))


class Manifest:
    """``manifest.json`` of a sweep: its command, when it began, and of each run what was last known of it; a killed
    sweep leaves what it knew."""

    def __init__(self, jobs: Sequence[Job], output_dir: Path) -> None:
        """Makes the sweep's folder, and says in every job that is to run where its output goes.

        Raises:
            InputError: the folder cannot be made.
        """
        start = output_dir / ".sweeps" / time.strftime("%Y-%m-%d_%H-%M-%S")
        others = (start.with_name(f"{start.name}-{number}") for number in itertools.count(2))
        folders = itertools.chain([start], others)
        self.folder = next(folder for folder in folders if not (folder / "manifest.json").exists())
        make_folder(self.folder)
        for number, job in enumerate(job for job in jobs if job.to_do):
            job.log = self.folder / f"{number:03d}-{job.name}.log"
        self._jobs, self._about = jobs, {"command": shlex.join(sys.orig_argv), "began": now()}
        self._write()

    def note(self) -> None:
        """Write what is new; where that cannot be, a warning says so, and the runs go on."""
        try:
            self._write()
        except InputError as error:
            tqdm.write(f"warning: {error}", file=sys.stderr)

    def _write(self) -> None:
        with replacing(self.folder / "manifest.json") as file:
            json.dump({**self._about, "runs": [job.record() for job in self._jobs]}, file, indent=2)


class Progress:
    """How many runs are done, running and left: a bar on a terminal, lines elsewhere, and of what runs the latest
    lines: in the bar, or every so many seconds where nothing else is said."""

    def __init__(self, jobs: Sequence[Job], line_every_s: float) -> None:
        self._jobs, self._every_s, self._said = jobs, max(line_every_s, 1.0), time.monotonic()
        form = "{n_fmt}/{total_fmt} runs [{elapsed}], {desc}{postfix}"
        self._bar = tqdm(total=len(jobs), bar_format=form, dynamic_ncols=True, disable=None)  # None: without a terminal

    def say(self, event: str = "") -> None:
        count = Counter("left" if job.to_do else "failed" if job.failed else job.state for job in self._jobs)
        failed = f", {count['failed']} failed" if count["failed"] else ""
        running = f"{count['running']} running, {count['left']} left{failed}"
        self._said = time.monotonic()
        if self._bar.disable:
            line = f"[{count['finished']} of {len(self._jobs)} runs done, {running}]"
            print(f"{line} {event}".rstrip(), flush=True)
        else:
            if event:
                tqdm.write(event)
            self._bar.n = count["finished"]
            self._bar.set_description_str(running)

    def running(self, jobs: Sequence[Job]) -> None:
        if not self._bar.disable:
            self._bar.set_postfix_str("; ".join(filter(None, map(_last_line, jobs))), refresh=True)
        elif time.monotonic() - self._said > self._every_s and jobs:
            self._said = time.monotonic()
            print("\n".join(f"{job.name}: {_last_line(job) or 'starting'}" for job in jobs), flush=True)

    def close(self) -> None:
        self._bar.close()


def _last_line(job: Job) -> str:
    try:
        with open(job.log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _reason(job: Job, code: int) -> str:
    last = _last_line(job)
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}{f', its last output: {last}' if last else ''} (see {job.log})"
