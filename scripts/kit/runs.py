"""Tests, and runs of the project's own commands on CIFAR-10."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch
from lightning import Callback
from torch.profiler import ProfilerActivity, profile

from kit import ROOT, Cases, Kit, Missing, Row
from kit.measure import kernels_in
from kit.supervise import last_line
from neutreno import console
from neutreno.callbacks.exact_resume import ExactResume
from neutreno.config.building import build
from neutreno.config.composing import compose
from neutreno.parallel import build_trainer
from neutreno.training import checked

RATE = "train/samples_per_s"
SEEDS = (0, 1, 2, 3, 4)
MOST_EPOCHS = 100  # of the recipe
STARTS_S = 60  # of a run's seconds: imports, images, evaluation at the end
SMALL = ["model.depth=2", "model.embed_dim=16", "model.num_heads=2", "data.batch_size=16", "data.num_workers=0"]
SMALL += ["probe.num_samples=8", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1"]


def typed(*words: str) -> str:
    return shlex.join(["python", *words])


def execute(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / script), *words], capture_output=True, text=True)


def call(script: str, *words: str) -> str:
    """What a command of the project prints.

    Raises:
        RuntimeError: it failed, with the last line it said.
    """
    print("$", typed(script, *words), flush=True)
    done = execute(script, *words)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        raise RuntimeError(f"{script}: exit code {done.returncode}, {last_line(done.stderr) or last_line(done.stdout)}")
    return done.stdout


def tests(kit: Kit) -> Cases:
    return {"pytest -m gpu": partial(run_tests, kit)}


def run_tests(kit: Kit) -> Row:
    if importlib.util.find_spec("pytest") is None:
        raise Missing("the package pytest")
    marked = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    report = Path("tests.xml").resolve()
    words = [
        "-m",
        "gpu",
        "-o",
        "addopts=--import-mode=importlib",
        f"--junitxml={report}",
        "-q",
        "-p",
        "no:cacheprovider",
        *marked,
    ]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {done.returncode}")
    row: Row = {"passed": 0, "failed tests": [], "skipped": {}}
    for test in ElementTree.parse(report).iter("testcase"):
        outcome = {child.tag: child.get("message") or "" for child in test}
        if "skipped" in outcome:
            row["skipped"][test.get("name")] = outcome["skipped"]
        elif {"failure", "error"} & outcome.keys():
            row["failed tests"].append(f"{test.get('name')}: {next(iter(outcome.values())).splitlines()[0][:200]}")
        else:
            row["passed"] += 1
    if row["failed tests"]:
        row["failed"] = "; ".join(row["failed tests"])
    elif not row["passed"]:
        row["note"] = "; ".join(dict.fromkeys(row["skipped"].values()))
    return row


def overrides(kit: Kit, size: str = "tiny") -> list[str]:
    if kit.cifar10 is None:
        raise Missing("the images of CIFAR-10: give --cifar10 FOLDER, or carry them")
    words = ["data=cifar10", f"data.root={kit.cifar10}", "trainer=gpu" if kit.on_gpu else "trainer.accelerator=cpu"]
    return [*words, *(SMALL if kit.small else [f"recipe.model_size={size}"])]


def report_of(printed: str) -> dict[str, str]:
    """The lines of a run's preflight."""
    return dict(re.findall(r"^  ([a-z -]+?)  +(.+)$", printed, re.MULTILINE))


def auto(kit: Kit) -> Cases:
    if kit.small:
        return {"reduced, 32 pixels": partial(largest, kit, [*overrides(kit), "trainer.max_epochs=1"])}
    large = ["recipe.patch_size=16", "data.img_size=224", "data.on_device=false", "data.batch_size=1024"]
    return {
        "DeiT-tiny/4, 32 pixels": partial(largest, kit, overrides(kit)),
        "DeiT-small/16, 224 pixels": partial(largest, kit, [*overrides(kit, "small"), *large, "data.num_workers=12"]),
    }


def largest(kit: Kit, words: list[str]) -> Row:
    words = [*words, "model=deit_neutreno", "data.micro_batch_size=auto", "preflight=true"]
    report = report_of(call("train.py", *words))
    kept = ("largest micro-batch", "devices", "memory per device", "training", "bottleneck")
    note = {} if kit.on_gpu else {"note": "the largest micro-batch needs a GPU"}
    return {**{key: report[key] for key in kept}, **note, "command": typed("train.py", *words)}


class Watch(Callback):
    """Times some steps of a run, then adds up the time in kernels of a few more.

    Apart, because a profiled step takes longer, while its kernels take what they always do.
    """

    def __init__(self, on_gpu: bool, warm: int, timed: int, profiled: int) -> None:
        self.on_gpu, self.first, self.last, self.end = on_gpu, warm, warm + timed, warm + timed + profiled
        self.began = self.step_s = self.kernels_s = 0.0

    def on_train_batch_start(self, trainer, task, batch, batch_idx: int) -> None:
        if self.on_gpu and trainer.global_step in (self.first, self.last):
            torch.cuda.synchronize()
        if trainer.global_step == self.first:
            self.began = time.perf_counter()
        if trainer.global_step == self.last:
            self.step_s = (time.perf_counter() - self.began) / (self.last - self.first)
            if self.on_gpu:
                self.profile = profile(activities=[ProfilerActivity.CUDA])
                self.profile.start()

    def on_train_end(self, trainer, task) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            self.profile.stop()
            self.kernels_s = kernels_in(self.profile)[1] / (self.end - self.last)


def busy(kit: Kit) -> Row:
    """A run on one process: time of a step in Lightning's loop, and the share of it in which kernels run."""
    console.quiet(0)
    watch = Watch(kit.on_gpu, *((1, 2, 1) if kit.small else (20, 150, 20)))
    composed, _ = checked(compose([*overrides(kit), "model=deit_neutreno"]))
    settings = composed.settings
    settings["trainer"] |= {"limit_val_batches": 0, "plugins": []}
    data = build(settings["data"])
    task = build(settings["task"], model=build(settings["model"], **data.model_arguments()))
    data.setup()
    data.note_corrupt(Path("corrupt_images.txt"))
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_steps": watch.end}
    build_trainer(settings["trainer"], callbacks=[ExactResume(0), watch], **off).fit(task, data)
    share = {"GPU busy": watch.kernels_s / watch.step_s} if kit.on_gpu else {"note": "GPU busy share needs a GPU"}
    return {"processes": 1, "images/s": data.batch_size / watch.step_s, "ms": 1000 * watch.step_s, **share}


def at_once(kit: Kit) -> Row:
    """What as many processes as the training part starts reach together, in the last of three short epochs."""
    short = ["trainer.max_epochs=3", *([] if kit.small else ["trainer.limit_train_batches=100"])]
    words = [*swept(kit, "rate"), *short]
    call("train.py", *words)
    each = []
    for file in sorted(Path("rate").glob("*/metrics.csv")):
        with open(file, newline="") as content:
            each.append([float(row[RATE]) for row in csv.DictReader(content) if row[RATE]][-1])
    rates = {"images/s": sum(each), "images/s of each": each}
    return {"processes": len(each), **rates, "command": typed("train.py", *words)}


def cifar10(kit: Kit) -> Cases:
    overrides(kit)
    return {"one process": partial(busy, kit), "several at once": partial(at_once, kit)}


def swept(kit: Kit, folder: str) -> list[str]:
    seeds = SEEDS[:1] if kit.small else SEEDS
    words = ["-m", *overrides(kit), "model=deit,deit_neutreno", f"seed={','.join(map(str, seeds))}"]
    return [*words, f"launcher.max_parallel={2 * len(seeds)}", f"output_dir={folder}"]


def planned(kit: Kit) -> Row:
    """Epochs that fit in the part's seconds; planned once, so that a later call continues these runs."""
    if kit.small:
        return {"epochs": 2}
    found = [row for row in kit.rows.get("cifar10", {}).values() if "images/s" in row]
    if not found:
        raise Missing("images per second, of the part cifar10")
    images = sum(1 for _ in (kit.cifar10 / "train").glob("*/*")) or 50_000  # else parquet, the whole set
    rate, runs = max(row["images/s"] for row in found), 2 * len(SEEDS)
    epochs = int(0.8 * max(0, kit.seconds - STARTS_S) * rate / (runs * images * 0.9))  # a tenth validates
    return {"epochs": min(max(epochs, 1), MOST_EPOCHS), "images/s": rate, "seconds": kit.seconds}


def trained(kit: Kit) -> Row:
    epochs = kit.rows["train"].get("plan", {}).get("epochs")
    if epochs is None:
        raise Missing("a number of epochs, of the case plan")
    words = [*swept(kit, "runs"), f"trainer.max_epochs={epochs}", f"task.warmup_epochs={min(5, max(1, epochs // 10))}"]
    row = {"epochs": epochs, "command": typed("train.py", *words)}
    try:
        call("train.py", *words)
    except RuntimeError as error:  # of one run, say; the others are finished
        row["failed"] = str(error)
    runs = sorted(str(file.parent) for file in Path("runs").glob("*/result.json"))
    table = call("scripts/tables.py", *runs, "--paired", "--column", "parameters")
    call("scripts/figures.py", *runs, "--output", "similarity", "--title", f"CIFAR-10, {epochs} epochs")
    results = [json.loads((Path(run) / "result.json").read_text()) for run in runs]
    top1 = {result["name"]: result["metrics"].get("test/top1") for result in results if "metrics" in result}
    return {**row, "test/top1": top1, "table": table}


def train(kit: Kit) -> Cases:
    overrides(kit)
    return {"plan": partial(planned, kit), "runs": partial(trained, kit)}
