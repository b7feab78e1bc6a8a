"""How the runs of a sweep are started: in sequence or several in parallel, or as jobs of a SLURM cluster.

A launcher's ``run`` makes all ``jobs``; it says ``started(job)``, ``ended(job, exit code)``, and time and again
``running(jobs)``.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from neutreno.config.options import checked
from neutreno.errors import InputError, needing
from neutreno.stopping import die_with

if TYPE_CHECKING:
    from neutreno.sweep import Job

POLL_S = 0.2


def execute(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    """Start a run whose output goes to ``log`` and which is killed when this process dies."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=partial(die_with, os.getpid())
        )


class Local:
    """On this machine, ``max_parallel`` runs at a time."""

    @checked
    def __init__(self, max_parallel: Annotated[int, Ge(1), Le(4096)] = 1) -> None:
        self.max_parallel = max_parallel

    def run(self, jobs: Sequence[Job], started: Callable, ended: Callable, running: Callable) -> None:
        waiting, slots = list(reversed(jobs)), dict.fromkeys(range(min(self.max_parallel, len(jobs))))
        gpus = visible_gpus() if self.max_parallel > 1 else []
        while waiting or any(slots.values()):
            for slot, busy in slots.items():
                if busy and busy[1].poll() is not None:
                    slots[slot] = None
                    ended(busy[0], busy[1].returncode)
                if slots[slot] is None and waiting:
                    job = waiting.pop()
                    slots[slot] = job, execute(job.command, job.log, self._environment(slot, gpus))
                    started(job)
            running([busy[0] for busy in slots.values() if busy])
            time.sleep(POLL_S)

    def _environment(self, slot: int, gpus: list[str]) -> dict[str, str]:
        environment = dict(os.environ)
        if self.max_parallel > 1:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.max_parallel)))
        if len(gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        return environment


def visible_gpus() -> list[str]:
    """The GPUs that a run may be given, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class SlurmRun:
    """What a SLURM job does: the run as a separate process, queued again by submitit when its time is up."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log

    def __call__(self) -> int:
        # As one task of SLURM's, Lightning would take itself for one of several that srun started.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
        return execute(self.command, self.log, environment).wait()

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)  # resume=true goes on where it was


class Slurm:
    """As jobs of a SLURM cluster, ``max_parallel`` at a time; ``parameters`` are submitit's."""

    @checked
    def __init__(
        self,
        cluster: str = "slurm",
        max_parallel: Annotated[int, Ge(1), Le(4096)] = 16,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        with needing("launcher=slurm", "submitit", "slurm"):
            importlib.import_module("submitit")
        self.cluster, self.max_parallel, self.parameters = cluster, max_parallel, parameters or {}

    def executor(self, folder: Path) -> Any:
        """submitit's, set up; its files go below ``folder``."""
        import submitit

        try:
            executor = submitit.AutoExecutor(folder / "%j", cluster=self.cluster)
            given = {k: v for k, v in self.parameters.items() if v is not None}
            executor.update_parameters(name="neutreno", slurm_array_parallelism=self.max_parallel, **given)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise InputError(f"launcher=slurm: {' '.join(str(error).split())}") from error
        return executor

    def run(self, jobs: Sequence[Job], started: Callable, ended: Callable, running: Callable) -> None:
        if not jobs:
            return
        commands = [SlurmRun(job.command, job.log.resolve()) for job in jobs]
        pending = dict(zip(jobs, self.executor(jobs[0].log.parent).submit_array(commands), strict=True))
        for job in jobs:
            started(job)
        while pending:
            for job in [job for job, run in pending.items() if run.done()]:
                run = pending.pop(job)
                ended(job, 1 if run.exception() else run.result())
            running([*pending])
            time.sleep(POLL_S if self.cluster != "slurm" else 10)
