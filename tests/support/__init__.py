"""A way to call the command lines as a user does, and small data in the real formats."""

from __future__ import annotations

import csv
import importlib
import io
import json
import logging
import math
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
if "PYTEST_XDIST_WORKER" in os.environ:  # one core per worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline")  # before anything reads them: nothing is looked for outside

# A run of a second: two blocks, three epochs of four steps.
TINY = [
    "model.depth=2",
    "model.embed_dim=16",
    "model.num_heads=2",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "data.batch_size=300",
    "probe.every_n_epochs=1",
    "probe.num_samples=8",
]

# The same of text: two blocks, twelve steps, a validation after every fourth.
TEXT = [
    "data=python_docs",
    "model.depth=2",
    "model.embed_dim=16",
    "model.num_heads=2",
    "trainer.max_steps=12",
    "trainer.log_every_n_steps=1",
    "data.val_every_n_steps=4",
    "data.sequence_length=16",
    "data.batch_size=12",
    "task.warmup_steps=2",
    "probe.num_samples=8",
    "name=x",
]


def run_script(
    script: str, *arguments: str, cwd: Path, timeout_s: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command line in a separate process, exactly as a user starts it; its imports take seconds."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@cache
def import_everything() -> None:
    """What forks would each import again."""
    import neutreno

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of a compiler without a GPU
    for library in ("matplotlib.pyplot", "sklearn.datasets", "torch.utils.benchmark"):
        importlib.import_module(library)
    for module in pkgutil.walk_packages(neutreno.__path__, "neutreno."):
        if module.name != "neutreno.__main__":
            importlib.import_module(module.name)


def measure_briefly() -> None:
    """How long a step or a forward pass takes is not what the tests are about."""
    from torch.utils.benchmark import Timer

    import neutreno.preflight

    neutreno.preflight.MEASURED_S = 0.5
    measure = Timer.blocked_autorange
    Timer.blocked_autorange = lambda timer, min_run_time: measure(timer, min_run_time=min(min_run_time, 0.1))


def deaf_to_nothing() -> None:
    """A ``setup``: a shell that starts the tests in the background has told them to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Forked:
    """The same without the imports: a fork of the test process runs the script as ``__main__``.

    Args:
        setup: called in the fork before the script. log: file that takes what it prints; else see :meth:`wait`.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        cwd: Path,
        setup: Callable[[], None] = lambda: None,
        log: Path | None = None,
    ) -> None:
        import_everything()
        self.args, self.returncode, self.asked = [script, *arguments], None, threading.Lock()
        self.out = tempfile.TemporaryFile("w+") if log is None else open(log, "a+")
        self.err = tempfile.TemporaryFile("w+") if log is None else self.out
        self.pid = os.fork()
        if self.pid:
            return
        self.code = 1
        try:
            self._run(script, arguments, cwd, setup)
        finally:  # whatever comes when, the tests do not go on here
            os._exit(self.code)

    def _run(self, script: str, arguments: Sequence[str], cwd: Path, setup: Callable[[], None]) -> None:
        import torch

        try:
            os.chdir(cwd)
            os.dup2(self.out.fileno(), 1)
            os.dup2(self.err.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # as Python opens it
            torch.set_num_threads(1)
            measure_briefly()
            sys.argv = [str(ROOT / script), *arguments]
            sys.orig_argv = [sys.executable, *sys.argv]
            setup()
            runpy.run_path(sys.argv[0], run_name="__main__")
            self.code = 0
        except SystemExit as stop:
            self.code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with self.asked:  # several threads may ask
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = math.inf) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode

    def finish(self) -> subprocess.CompletedProcess[str]:
        self.wait()
        texts = [(file.seek(0), file.read())[1] for file in (self.out, self.err)]
        return subprocess.CompletedProcess(self.args, self.returncode, *texts)


def run_forked(script: str, *arguments: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess[str]:
    return Forked(script, *arguments, cwd=cwd, **kwargs).finish()


def train(words: Sequence[str], cwd: Path, *more: str, name: str = "x", **kwargs) -> Path:
    """The folder of a run that ends well."""
    done = run_forked("train.py", *words, *more, f"name={name}", cwd=cwd, **kwargs)
    assert done.returncode == 0, done.stderr
    return cwd / "outputs" / name


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def runs_are_forks() -> None:
    """A ``setup`` of a sweep: its runs are forks, too. That they are processes of their own, which end with the sweep,
    is the claim of the test of a killed one."""
    import neutreno.launchers

    def execute(command: list[str], log: Path, environment: dict[str, str]) -> Forked:
        words = command[command.index("train") + 1 :]
        return Forked("train.py", *words, cwd=Path.cwd(), setup=lambda: os.environ.update(environment), log=log)

    neutreno.launchers.execute = execute


def rank_one_is_a_fork(log: Path, pid_file: Path) -> None:
    """A ``setup`` of a run on two processes: the second is a fork, too, made before the run begins, which waits until
    Lightning starts it, as a child of rank 0 that has the environment given. Its process ID stands in ``pid_file``."""
    from lightning.pytorch.strategies.launchers import subprocess_script
    from lightning.pytorch.utilities import rank_zero_only

    read, write = os.pipe()

    def wait_for_environment() -> None:
        os.close(write)
        with open(read) as given:
            os.environ.update(json.load(given))
        rank_zero_only.rank = 1  # Lightning reads the environment on import

    rank_one = Forked(*sys.argv, cwd=Path.cwd(), setup=wait_for_environment, log=log)
    os.close(read)
    pid_file.write_text(str(rank_one.pid))

    def start(command: list[str], env: dict[str, str], **_) -> Forked:
        with open(write, "w") as given:
            json.dump(env, given)
        return rank_one

    subprocess_script.subprocess = SimpleNamespace(Popen=start)


def assert_problems(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """A check of files has found these problems and no others, a line each, in this order."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert done.returncode == 1 and len(lines) == len(expected), done.stdout + done.stderr
    assert all(words in line for words, line in zip(expected, lines, strict=True)), lines


def assert_one_line_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The bar for every user's mistake: one line that says what and where, a non-zero exit, no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def make_image(seed: int, side: int = 12) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file: Path, images: list[bytes], labels: list[int], names: list[str]) -> None:
    """A parquet file as Hugging Face ``datasets`` writes it, schema metadata included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": b, "path": None} for b in images], pa.struct({"bytes": pa.binary(), "path": pa.string()})
            ),
            "label": pa.array(labels, pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def start_ranks(
    processes: int,
    *arguments: str,
    cwd: Path,
    script: str = "train.py",
    slurm: bool = False,
    on_rank_zero: Callable[[], None] = lambda: None,
) -> list[Forked]:
    """``script`` on several processes as torchrun, or SLURM's srun, starts them; forked, so without their imports.

    ``on_rank_zero`` is called in rank 0 before it starts.
    """
    from lightning.pytorch.utilities import rank_zero_only

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank: int) -> Forked:
        def setup() -> None:
            if slurm:
                ranks, sizes = ("SLURM_PROCID", "SLURM_LOCALID"), ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
                more = {"SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_JOB_ID": "1"}
            else:
                ranks, sizes = ("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
                more = {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
            more |= {name: str(rank) for name in ranks} | {name: str(processes) for name in sizes}
            os.environ.update(more, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            rank_zero_only.rank = rank  # Lightning reads the environment on import
            signal.alarm(150)  # processes that wait for each other must not hold the tests forever
            if rank == 0:
                on_rank_zero()

        return Forked(script, *arguments, cwd=cwd, setup=setup)

    return [start(rank) for rank in range(processes)]


def run_ranks(processes: int, *arguments: str, cwd: Path, **kwargs) -> list[subprocess.CompletedProcess[str]]:
    """What :func:`start_ranks` starts, when it has ended."""
    return [run.finish() for run in start_ranks(processes, *arguments, cwd=cwd, **kwargs)]


def make_run(
    folder: Path,
    *overrides: str,
    status: str = "finished",
    value: float = 90.0,
    drift: float = 0.0,
    config_dirs: Sequence[str] = (),
) -> Path:
    """A run folder in the real format, without training: its config is composed, its figures are made up."""
    from omegaconf import OmegaConf

    from neutreno.config.building import locate
    from neutreno.config.composing import compose
    from neutreno.results import describe_run

    composed = compose([*overrides], config_dirs=config_dirs)
    composed.config.name = folder.name
    task = locate(composed.config.task._target_)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(composed.settings))
    measured = [
        {"step": step, "epoch": step // 10, "when": {0: "initial", 100: "final"}.get(step, "training")}
        | {"stack": "blocks", "name": f"blocks.{layer}", "layer": layer, "subset": subset, "metric": metric}
        | {"mean": mean, "sd": 0.05, "samples": 8, "tokens": 17.0, "dim": 64}
        for step in (0, 50, 100)
        for metric in ("cosine", "effective_rank")
        for subset in ("all", "patch")
        for layer in range(5)
        for mean in [0.1 + 0.01 * layer + drift * step / 100 if metric == "cosine" else 11 - layer - step / 50]
    ]
    result = {"name": folder.name, "status": status, **describe_run(composed, task), "planned_steps": 100}
    if status == "finished":
        result |= {
            "metrics": {task.main_metric.replace("val/", "test/"): value, "val/loss": 1.0},
            "oversmoothing": [row for row in measured if row["step"] != 50],
            "parameters": 1234,
            "steps": 100,
        }
    (folder / "result.json").write_text(json.dumps(result))
    lines = ["step,epoch,train/loss,val/loss"]
    lines += [f"{s},{s / 10},{2 / (1 + s):.5g},{'' if s % 50 else 1.5 / (1 + s):.5}" for s in range(0, 101, 10)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    with open(folder / "oversmoothing.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, measured[0])
        writer.writeheader()
        writer.writerows(measured)
    return folder
