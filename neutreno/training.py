"""A run, from its config to its finished record: check → build → fit → evaluate → record."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Len
from lightning import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from neutreno import console, results
from neutreno.callbacks.checkpointing import AtomicCheckpointIO, Checkpoint
from neutreno.callbacks.exact_resume import ExactResume
from neutreno.callbacks.finite_loss import FiniteLoss
from neutreno.callbacks.loggers import log_report, log_settings, make_loggers
from neutreno.callbacks.metrics_csv import MetricsCSV
from neutreno.callbacks.progress import RunProgress
from neutreno.checkpoints import check_fit, read_checkpoint
from neutreno.config.building import build, locate
from neutreno.config.composing import Composed
from neutreno.config.gate import check
from neutreno.config.options import Option, Rule
from neutreno.config.trust import without_start
from neutreno.config.words import key_of
from neutreno.data.base import SplitData
from neutreno.data.loading import derive_seed, seed_everything
from neutreno.errors import InputError, Together, explain
from neutreno.evaluation.metrics import evaluate_run
from neutreno.oversmoothing.probe import OversmoothingProbe
from neutreno.parallel import GatherForEvaluation, build_trainer, check_trainer, kill_others
from neutreno.parallel import describe as describe_devices
from neutreno.preflight import MicroBatch, preflight
from neutreno.runs import RunFolder, check_origin, default_name, identity_of
from neutreno.stopping import Stop, stopping
from neutreno.tasks.base import Task
from neutreno.variants import check_trained, describe, recorded_axes

RESUMABLE = {  # what Lightning needs of a checkpoint
    "state_dict": dict[str, Any],
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list[dict[str, Any]]),
    **dict.fromkeys(("loops", "callbacks"), dict[str, dict[str, Any]]),
    **dict.fromkeys(("epoch", "global_step"), Annotated[int, Ge(0)]),
    "train_loss": Annotated[list[Annotated[list[float], Len(2, 2)]], Len(1)],
    "pytorch-lightning_version": Annotated[str, Rule(re.compile(r"\d+(\.\w+)+(\+[\w.]+)?").fullmatch, "is no version")],
}


def train(composed: Composed) -> Path:
    """One run, from its config to its finished record; gives its folder.

    Raises:
        InputError: what the user gave cannot be used; then no folder was made, or the one there is as it was.
    """
    console.quiet(rank_zero_only.rank, wait=True)
    with console.heartbeat(composed.config.progress.line_every_s):
        return _train(composed)


def _train(composed: Composed) -> Path:
    console.doing("checking the settings")
    composed, plugins = checked(composed)
    config, settings = composed.config, composed.settings
    run = RunFolder(config.output_dir, config.name)
    if not config.preflight and rank_zero_only.rank == 0:  # the other processes find the folder that this one made
        run.check(composed, config.resume)
    seed_everything(derive_seed(config.seed))
    console.doing("reading the data")
    data, together = build(settings["data"]), Together()
    with together:
        data.setup()
    if not config.preflight and not together.problems:
        if rank_zero_only.rank == 0:
            run.check_data(lambda: data.digests)
        if config.resume and run.status == "finished":
            if rank_zero_only.rank == 0:
                print(f"{run.path} is finished; nothing to do")
            return run.path

    resume_from = run.last_checkpoint if config.resume and run.last_checkpoint.exists() else None
    network = settings["model"] if resume_from is None else without_start(settings["model"])  # a checkpoint follows
    console.doing("building the model")
    with together:
        task = build_task(composed, data, network)
    together.refuse()
    data.check_readable()
    task.run = {"settings": identity_of(settings), "digests": data.digests}
    if config.preflight:
        console.begin()
        console.doing("measuring some steps")
        preflight(config, task, data, plugins)
    else:
        console.doing("preparing the training")
        fit(composed, run, resume_from, data, task, plugins)
    return run.path


def build_task(composed: Composed, data: SplitData, network: dict[str, Any]) -> Task:
    """The task with its model, which ``network`` describes.

    Raises:
        InputError: a part cannot be built, or they do not fit each other.
    """
    config, settings = composed.config, composed.settings
    model = build(network, **data.model_arguments())
    data.check_model(model, settings["model"])
    data.check_batches(model)
    if (samples := settings["probe"]["num_samples"]) < data.least_at_once:
        raise InputError(f"probe.num_samples={samples}, but {data.needs_others}; raise it")
    task = build(settings["task"], model=model)
    task.variants = describe(composed)["axes"]
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise InputError(f"grad_checkpointing=true: {type(model).__name__} does not support it; leave it out")
        model.set_grad_checkpointing()
    if config.compile:  # in place, so names stay; the average is not compiled, nor what the probe runs
        model.compile()
    return task


def checked(composed: Composed) -> tuple[Composed, list]:
    """The config after the gate, with its name and the number of epochs set; and the trainer's plugins.

    Raises:
        InputError: all that is wrong with it.
    """
    check(composed)
    config = composed.config
    locate(config.data._target_).bound(config.trainer, config.data)
    plugins = [build(plugin) for plugin in composed.settings["trainer"]["plugins"]]  # SLURM's says that srun is missing
    check_trainer(config)
    config.name = config.name or default_name(composed)
    return composed.anew(), plugins


def fit(
    composed: Composed, run: RunFolder, resume_from: Path | None, data: SplitData, task: Task, plugins: list
) -> None:
    """Train, evaluate and record; an error is recorded, too, before it goes on its way."""
    config, settings = composed.config, composed.settings
    probe, timer = OversmoothingProbe(run.path, **settings["probe"]), Timer(verbose=False)
    described = results.describe_run(composed, type(task))
    loggers, checkpoints = loggers_of(run, settings, described), AtomicCheckpointIO()
    trainer = make_trainer(composed, run, [probe, timer], loggers, task, data, [checkpoints, *plugins])
    is_rank_zero = trainer.is_global_zero
    data.check_limits(trainer)
    notes = [*data.notes, *check_schedule(composed, trainer, task, data)]
    if resume_from is not None:
        check_resumed(resume_from, task, data)
    before = run.record() if resume_from is not None else {}
    if is_rank_zero:  # only now, when all could be built
        run.create(settings, config.resume)
        console.log_to(run.path / "train.log")
    data.note_corrupt(run.path / "corrupt_images.txt")
    result = {
        "name": config.name,
        "status": "running",
        **described,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "devices": describe_devices(trainer, data),
        "planned_steps": data.planned_steps,
        # of a resumed run what its beginning recorded, since the files may have changed
        "initial_weights": before.get("initial_weights") or (results.initial_weights(composed) if is_rank_zero else {}),
        **({"first_checkpoint": before["first_checkpoint"]} if "first_checkpoint" in before else {}),
        **data.record(),
        **results.environment(),
    }
    record = rank_zero_only(lambda **more: results.write_json(run.result_file, result | more))
    record()

    def note_checkpoint() -> None:
        result.setdefault("first_checkpoint", results.now())
        record()

    checkpoints.written = note_checkpoint
    if is_rank_zero:
        samples = f"{data.count('train'):,} training {data.samples_are}"
        print(f"{config.name}: {result['parameters']:,} parameters, {samples}")
        print("".join(f"note: {note}\n" for note in notes), end="")
    log_settings(loggers[1:], settings, described["settings"], task.judged_by(data.has_test))
    with stopping(kill_others(trainer)) as stop:
        try:
            trainer.fit(task, data, ckpt_path=resume_from, weights_only=True)
            metrics = evaluate_run(trainer, task, data, run.last_checkpoint, run.best_checkpoint) | data.baselines()
            metrics |= probe.collapse()[0]
            if is_rank_zero:  # before the record says that nothing is left to do
                probe.write()
                task.write_left(run.path)
        except BaseException as error:
            record_error(error, stop, record)
            raise
    record(status="finished", metrics=metrics, **outcome(trainer, data, probe, timer))
    if is_rank_zero:
        log_report(loggers[1:], metrics, probe.first_and_last(), run.path / "oversmoothing.png")
        print(results.summary(run.path, task.shown))


def check_schedule(composed: Composed, trainer: Trainer, task: Task, data: SplitData) -> list[str]:
    """A line each if the run ends within its warm-up, or if its rate would rise: as in a short trial of a recipe.

    Raises:
        InputError: it ends within its warm-up, and that was typed.
    """
    lr, notes = task.opt["lr"], []
    if task.min_lr > lr and task.schedule != "constant":
        notes.append(f"task.lr is {lr:g} for this batch, below task.min_lr={task.min_lr:g}: the learning rate rises")
    data.trainer = trainer  # as Lightning does later: it says how many steps an epoch has
    run, warmup = task.spans(trainer.max_epochs, data)
    if warmup <= run:
        return notes
    said = f"the warm-up of {warmup:,} {task.lr_per}s is longer than the run of {run:,}"
    if typed := [w for w in composed.overrides if key_of(w) in ("task.warmup_epochs", "task.warmup_steps")]:
        raise InputError(f"{typed[-1].lstrip('+')}: {said}; lower it, or train longer")
    return [*notes, f"{said}, so the learning rate does not reach its peak"]


def check_resumed(checkpoint: Path, task: Task, data: SplitData) -> None:
    """Say in a line what Lightning would say in a traceback, or not at all.

    Raises:
        InputError: the checkpoint is broken, or not one of this run.
    """
    content = read_checkpoint(checkpoint)
    another = f"To start another run from it: model.weights={checkpoint} name=…"
    remedy = f"it is not this run's. {another}"
    full = ("state_dict", "optimizer_states", "loops")
    if absent := [key for key in RESUMABLE if key not in content or (key in full and not content[key])]:
        said = f"{checkpoint} holds no {absent[0]}, perhaps weights alone, from which a run cannot resume"
        raise InputError(f"{said}; restore it. {another}")
    if odd := [key for key, kind in RESUMABLE.items() if Option(kind).errors(content[key])]:
        raise InputError(f"{checkpoint} holds another {odd[0]} than a run writes; restore it. {another}")
    check_trained(recorded_axes(content), task.variants, checkpoint, remedy)
    check_origin(content.get("run"), task.run, checkpoint, remedy)
    task.check_checkpoint(content, data, checkpoint)
    check_fit(task, content["state_dict"], checkpoint)


def loggers_of(run: RunFolder, settings: dict[str, Any], described: dict[str, Any]) -> list[Logger]:
    """The CSV file of every run, and the loggers that ``logger=`` asks for."""
    more = make_loggers(settings["logger"] or {}, run.path, described["group"], results.tags(described), "train")
    return [MetricsCSV(run.path / "metrics.csv"), *more]


def make_trainer(
    composed: Composed,
    run: RunFolder,
    callbacks: list,
    loggers: list[Logger],
    task: Task,
    data: SplitData,
    plugins: list,
) -> Trainer:
    """Lightning's trainer with what makes a run exact, safe to kill and quiet.

    Raises:
        InputError: several processes, of a call in Python: each would start with the caller's whole program.
    """
    config = composed.config
    # "last" has a separate callback: ModelCheckpoint(save_last=True) saves it only when "best" improved.
    checkpoints = {"dirpath": run.path / "checkpoints", "enable_version_counter": False}
    every_epoch = {**checkpoints, "save_on_train_epoch_end": True}
    best = {"monitor": task.main_metric, "mode": task.main_metric_mode}
    callbacks = [
        MicroBatch(),
        ExactResume(config.seed),
        GatherForEvaluation(),
        FiniteLoss(),
        *callbacks,
        RunProgress(**config.progress),
        *([] if task.keeps_best else [Checkpoint(**every_epoch, filename="best", **best)]),  # before last
        Checkpoint(**every_epoch, filename="last"),
    ]
    if every_n_steps := config.checkpoint.every_n_steps:
        callbacks.append(Checkpoint(**checkpoints, filename="last", every_n_train_steps=every_n_steps))
    trainer = build_trainer(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=plugins,
        default_root_dir=run.path,
    )
    if composed.called and trainer.world_size > 1:
        asked = f"these settings ask for {trainer.world_size} processes, and neutreno.train is a single one"
        raise InputError(f"{asked}: trainer.devices=1, or train.py on the command line")
    micro_batches = trainer.accumulate_grad_batches
    trainer.accumulate_grad_batches = data.accumulated_batches(trainer.world_size, micro_batches)
    return trainer


def record_error(error: BaseException, stop: Stop, record: Any) -> None:
    """Say in the record and in ``train.log`` what ended a run; an interruption goes on as ``KeyboardInterrupt``."""
    stopped = stop.number is not None or isinstance(error, KeyboardInterrupt | SystemExit)
    logging.getLogger("train").info("stopped here", exc_info=error)  # to train.log, whole
    with contextlib.suppress(InputError):  # a full disk must not hide what happened
        reason = explain(error) or repr(error) if stop.number is None else str(stop.interruption())
        record(status="interrupted" if stopped else "failed", reason=reason)
    if stopped:
        raise KeyboardInterrupt("resume=true continues the run") from error


def outcome(trainer: Trainer, data: SplitData, probe: OversmoothingProbe, timer: Any) -> dict[str, Any]:
    """What the record of a finished run says beside its metrics."""
    _, within = probe.collapse()
    return {
        **({"within": within} if within else {}),
        "corrupt_images": len(data.corrupt.read()),
        "oversmoothing": probe.first_and_last(),
        "steps": trainer.global_step,
        "devices": describe_devices(trainer, data),  # micro_batch_size=auto is known only now
        "wall_clock_s": round(timer.time_elapsed("train"), 1),
    }
