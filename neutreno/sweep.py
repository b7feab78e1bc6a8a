"""Many runs, each a separate process: what is to be done, what became of each, and the table at the end."""

from __future__ import annotations

import glob
import itertools
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from neutreno.config.building import build
from neutreno.config.composing import Composed
from neutreno.config.gate import check
from neutreno.errors import InputError
from neutreno.files import replacing
from neutreno.runs import RunFolder, default_name


@dataclass(eq=False)
class Job:
    """One run to be made: what is typed after ``train.py``, the folder it leaves, and the jobs that have to end well
    before."""

    overrides: list[str]
    run: RunFolder
    state: str  # "to run", "to resume", "finished", or why it cannot be run
    config_dirs: list[str] = field(default_factory=list)
    needs: list[Job] = field(default_factory=list)
    log: Path | None = None

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def command(self) -> list[str]:
        dirs = [word for folder in self.config_dirs for word in ("--config-dir", folder)]
        return [sys.executable, "-m", "neutreno", "train", *dirs, *self.overrides]


def plan(composed: Composed) -> Job:
    """What is to be done for one run of a sweep. Unless ``resume`` is given, a sweep continues what is unfinished."""
    if not any(word.startswith("resume=") for word in composed.overrides):
        composed.overrides.append("resume=true")
        composed.config.resume = True
        composed = composed.anew()
    config = composed.config
    try:
        check(composed)
        run = RunFolder(config.output_dir, config.name or default_name(composed))
        state = "to resume" if run.config_file.exists() else "to run"
        if config.resume and state == "to resume":
            run.check(composed, resume=True)
            state = "finished" if run.status == "finished" else state
    except InputError as error:
        state = "; ".join(str(error).splitlines())
        name = re.sub(r"[^\w.+-]+", "_", str(config.name or " ".join(composed.overrides)))
        run = RunFolder(str(config.output_dir), name[:100])  # a word for it; nothing is written there
    return Job(composed.overrides, run, state, composed.config_dirs)


def launch(
    jobs: Sequence[Job], config: DictConfig, table: Callable[[list[Path]], None] | None = None
) -> list[tuple[Job, str]]:
    """Make the runs that are not finished, with a line of progress; returns those that failed, with the reason.

    Every run's output goes to a separate file, ``<output_dir>/.sweeps/<time>/<run>.log``; what became of each stands
    in ``manifest.json`` beside them. One failing run does not stop the others, apart from those that need it; a sweep
    that is killed takes its runs with it, and the same command goes on. At the end ``table`` prints that of the
    finished runs' folders (default: :func:`neutreno.reports.tables.print_tables`).
    """
    launcher = build(OmegaConf.to_container(config.launcher, resolve=True))
    jobs = _once_each(jobs)
    todo = [job for job in jobs if job.state in ("to run", "to resume")]
    done = [job for job in jobs if job.state == "finished"]
    failed = [(job, job.state) for job in jobs if job not in todo and job not in done]
    progress = Progress(len(jobs), len(done), len(failed))
    for job in jobs:
        if job not in todo:
            print(f"skipped {job.name}: {job.state}")
    progress.say()
    manifest = Manifest(jobs, Path(config.output_dir)) if todo else None
    if todo:
        print(f"logs: {manifest.folder}")

    def started(job: Job) -> None:
        manifest.note(job, "running", started=now())
        progress.started(job)

    def ended(job: Job, code: int) -> None:
        reason = _reason(job, code) if code else None
        if reason is None:
            done.append(job)
        else:
            failed.append((job, reason))
        manifest.note(job, "finished" if reason is None else "failed", reason=reason, ended=now())
        progress.ended(job, reason)
        if config.preflight and reason is None:  # what it says is all it leaves
            print(job.log.read_text())

    try:
        while todo:  # once where no run needs another
            ready, todo = _ready(todo, done, failed, manifest, progress)
            launcher.run(ready, started, ended, progress.running)
    except BaseException:
        if manifest is not None:
            manifest.interrupted()
        raise
    progress.close()
    try:
        if done and not config.preflight:
            _conclude([job for job in jobs if job in done], config.output_dir, table)
    finally:  # whatever became of the table
        for job, reason in failed:
            print(f"error: {job.name}: {reason}", file=sys.stderr)
    return failed


def _ready(
    todo: list[Job], done: list[Job], failed: list[tuple[Job, str]], manifest: Manifest, progress: Progress
) -> tuple[list[Job], list[Job]]:
    """The jobs whose needs are finished, and those that wait; one that needs a failed one is added to ``failed``."""
    left = []
    for job in todo:
        if missing := [needed.name for needed, _ in failed if needed in job.needs]:
            failed.append((job, reason := f"needs {', '.join(missing)}, which failed"))
            manifest.note(job, "failed", reason=reason)
            progress.refused(job, reason)
        else:
            left.append(job)
    ready = [job for job in left if all(needed in done for needed in job.needs)]
    return ready, [job for job in left if job not in ready]


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
    first, last = min(map(str, folders)), max(map(str, folders))
    start = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    if len(folders) > 1 and {Path(found) for found in glob.glob(f"{glob.escape(start)}*")} == set(folders):
        return f"{shlex.quote(start)}*"
    return shlex.join(map(str, folders))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest:
    """``manifest.json`` of a sweep: its command, when it began, and of each run what was last known of it.

    A run's ``state`` is ``waiting``, ``running``, ``finished``, ``failed``, ``skipped`` (these two with the ``reason``)
    or ``interrupted``; a killed sweep leaves what it knew.
    """

    def __init__(self, jobs: Sequence[Job], output_dir: Path) -> None:
        """Makes the sweep's folder, and says in every job that is to run where its output goes.

        Raises:
            InputError: the folder cannot be made.
        """
        start = output_dir / ".sweeps" / time.strftime("%Y-%m-%d_%H-%M-%S")
        others = (start.with_name(f"{start.name}-{number}") for number in itertools.count(2))
        self.folder = next(
            folder for folder in itertools.chain([start], others) if not (folder / "manifest.json").exists()
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make {self.folder}: {error.strerror}; choose another output_dir=FOLDER"
            ) from error
        self._runs: dict[int, dict[str, Any]] = {}
        numbers = itertools.count()
        for job in jobs:
            to_run = job.state in ("to run", "to resume")
            job.log = self.folder / f"{next(numbers):03d}-{job.name}.log" if to_run else None
            self._runs[id(job)] = {
                "name": job.name,
                "folder": str(job.run.path),
                "command": shlex.join(job.command),
                "state": "waiting" if to_run else "skipped",
                "reason": None if to_run else job.state,
                "log": str(job.log) if to_run else None,
                "started": None,
                "ended": None,
            }
        self._about = {"command": shlex.join(sys.orig_argv), "began": now()}
        self._write()

    def note(self, job: Job, state: str, **more: Any) -> None:
        """What is new of a run; where it cannot be written, a warning says so, and the runs go on."""
        self._runs[id(job)] |= {"state": state, **more}
        self._write_or_warn()

    def interrupted(self) -> None:
        """The sweep ends before its runs do."""
        for run in self._runs.values():
            if run["state"] == "running":
                run |= {"state": "interrupted", "ended": now()}
        self._write_or_warn()

    def _write_or_warn(self) -> None:
        try:
            self._write()
        except InputError as error:
            print(f"warning: {error}", file=sys.stderr)

    def _write(self) -> None:
        with replacing(self.folder / "manifest.json") as file:
            json.dump({**self._about, "runs": list(self._runs.values())}, file, indent=2)


class Progress:
    """How many runs are done, running and left: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: int, done: int, failed: int) -> None:
        self.total, self.done, self.failed, self._running = total, done, failed, 0
        self._bar = tqdm(total=total, initial=done, unit="run", dynamic_ncols=True) if sys.stderr.isatty() else None

    def say(self, event: str = "") -> None:
        left = self.total - self.done - self.failed - self._running
        failed = f", {self.failed} failed" if self.failed else ""
        line = f"[{self.done} of {self.total} runs done, {self._running} running, {left} left{failed}]"
        if self._bar is None:
            print(f"{line} {event}".rstrip(), flush=True)
        else:
            tqdm.write(event or line)
            self._bar.set_description_str(line)

    def started(self, job: Job) -> None:
        self._running += 1
        self.say(f"{job.name}: {'resumes' if job.state == 'to resume' else 'starts'}")

    def ended(self, job: Job, reason: str | None) -> None:
        self._running -= 1
        self.done, self.failed = self.done + (reason is None), self.failed + (reason is not None)
        if self._bar is not None:
            self._bar.update(reason is None)
        self.say(f"{job.name}: {'finished' if reason is None else f'failed: {reason}'}")

    def refused(self, job: Job, reason: str) -> None:
        self.failed += 1
        self.say(f"{job.name}: {reason}")

    def running(self, jobs: Sequence[Job]) -> None:
        """Show the latest line of what runs, where a terminal shows one."""
        if self._bar is not None:
            self._bar.set_postfix_str("; ".join(filter(None, map(_last_line, jobs))), refresh=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _last_line(job: Job) -> str:
    try:
        lines = job.log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _reason(job: Job, code: int) -> str:
    last = _last_line(job)
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}{f', its last output: {last}' if last else ''} (see {job.log})"
