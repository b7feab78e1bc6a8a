"""Train a transformer and watch how similar its tokens become with depth: ``python train.py --help``.

compose → check the run folder → build → fit → evaluate → result.json
"""

import contextlib
import logging
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger("train")
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here whole; exit_with() says them in a line


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    job = HydraConfig.get()
    overrides = list(job.overrides.task)
    choices = dict(job.runtime.choices)
    try:
        if job.mode == RunMode.MULTIRUN:  # each as a process of its own, when all are known
            from neutreno.launchers import plan

            sweep.append((plan(config, choices, overrides), config))
        else:
            train(config, choices, overrides)
    except Exception as error:
        exit_with(error)  # here, because Hydra would add a line of its own


sweep: list[tuple] = []  # the runs that -m asks for


def exit_with(error: BaseException) -> None:
    from neutreno.errors import report

    sys.exit(report(error))


def train(config: DictConfig, choices: dict[str, str], overrides: list[str]) -> None:
    from lightning.pytorch.callbacks import Timer
    from lightning.pytorch.utilities import rank_zero_only

    from neutreno import console, results
    from neutreno.callbacks.checkpointing import Checkpoint
    from neutreno.callbacks.exact_resume import ExactResume
    from neutreno.callbacks.finite_loss import FiniteLoss
    from neutreno.callbacks.loggers import log_report, make_loggers
    from neutreno.callbacks.metrics_csv import MetricsCSV
    from neutreno.callbacks.probe import OversmoothingProbe
    from neutreno.callbacks.progress import RunProgress
    from neutreno.checkpoints import AtomicCheckpointIO, read_checkpoint
    from neutreno.data.language_modeling import count_epochs
    from neutreno.data.loading import derive_seed, seed_everything
    from neutreno.errors import InputError, check_number, explain
    from neutreno.evaluation import evaluate_run
    from neutreno.parallel import GatherForEvaluation, check_trainer, describe
    from neutreno.preflight import DeviceBatch, preflight
    from neutreno.runs import RunFolder, default_name

    leader = rank_zero_only.rank == 0
    console.quiet(rank_zero_only.rank)
    check_number("seed", config.seed, 0, integer=True)
    if by_steps := "epoch_steps" in config.data:
        count_epochs(config)
    elif config.trainer.max_steps != -1:
        raise InputError(f"trainer.max_steps={config.trainer.max_steps}: epochs bound this run; set trainer.max_epochs")
    check_number("trainer.max_epochs", config.trainer.max_epochs, 1, integer=True)
    check_number("trainer.log_every_n_steps", config.trainer.log_every_n_steps, 1, integer=True)
    check_number("trainer.accumulate_grad_batches", config.trainer.accumulate_grad_batches, 1, integer=True)
    check_number("progress.line_every_s", config.progress.line_every_s)
    if config.checkpoint.every_n_steps is not None:
        check_number("checkpoint.every_n_steps", config.checkpoint.every_n_steps, 1, integer=True)
    for key in ("resume", "compile", "preflight"):
        if not isinstance(config[key], bool):
            raise InputError(f"{key}={config[key]} is neither true nor false")
    plugins = hydra.utils.instantiate(config.trainer.plugins)  # SLURM's says first that srun is missing
    check_trainer(config)
    config.name = config.name or default_name(config, choices, overrides)
    settings = OmegaConf.to_container(config, resolve=True)
    if by_steps:
        config.trainer.max_steps = -1  # bounded by steps, Lightning skips an epoch when it resumes at the end of one
    run = RunFolder(config.output_dir, config.name)
    if leader and not config.preflight:  # the other processes of a run find the folder that this one made
        run.check(settings, config.resume)
    if config.resume and not config.preflight and run.status == "finished":
        if leader:
            print(f"{run.path} is finished; nothing to do")
        return

    seed_everything(derive_seed(config.seed))
    data = hydra.utils.instantiate(config.data, _convert_="all")
    model = hydra.utils.instantiate(config.model, **data.model_arguments())
    task = hydra.utils.instantiate(config.task, model=model, _convert_="all")
    data.setup()
    if config.compile:  # in place, so names stay; the average and token_features() are not compiled
        model.compile()
    if config.preflight:
        return preflight(config, task, data, plugins)

    probe = OversmoothingProbe(run.path, **settings["probe"])
    timer = Timer(verbose=False)
    # "last" is a callback of its own: ModelCheckpoint(save_last=True) saves it only when "best" improved.
    checkpoints = {"dirpath": run.path / "checkpoints", "enable_version_counter": False}
    every_epoch = {**checkpoints, "save_on_train_epoch_end": True}
    callbacks = [
        DeviceBatch(),
        ExactResume(config.seed),
        GatherForEvaluation(),
        FiniteLoss(),
        probe,
        timer,
        RunProgress(**config.progress),
        Checkpoint(**every_epoch, filename="best", monitor=task.main_metric, mode=task.main_metric_mode),
        Checkpoint(**every_epoch, filename="last"),
    ]
    if config.checkpoint.every_n_steps:
        every_n_steps = config.checkpoint.every_n_steps
        callbacks.append(Checkpoint(**checkpoints, filename="last", every_n_train_steps=every_n_steps))
    loggers = [MetricsCSV(run.path / "metrics.csv")]
    loggers += make_loggers(config.logger or {}, run.path, choices["experiment"] or choices["data"], "train")
    trainer = hydra.utils.instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO(), *plugins],
        default_root_dir=run.path,
        use_distributed_sampler=False,  # ours share out without counting a sample twice
        enable_model_summary=False,
        num_sanity_val_steps=0,
        _convert_="all",
    )

    parts = trainer.accumulate_grad_batches
    trainer.accumulate_grad_batches = data.accumulated_batches(trainer.world_size, parts)
    if leader:  # only now, when all could be built
        run.create(settings, config.resume)
        console.log_to(run.path / "train.log")
    data.note_corrupt(run.path / "corrupt_images.txt")
    result = {
        "name": config.name,
        "status": "running",
        "settings": results.settings_of(config, choices),
        "overrides": overrides,
        "parameters": sum(p.numel() for p in model.parameters()),
        "devices": describe(trainer, data),
        **data.record(),
        **results.environment(),
    }
    record = rank_zero_only(lambda **more: results.write_json(run.result_file, result | more))
    record()
    if leader:
        samples = f"{len(data.splits['train']):,} training {data.samples_are}"
        print(f"{config.name}: {result['parameters']:,} parameters, {samples}")
    for logger in loggers[1:]:
        logger.log_hyperparams(settings)
    try:
        resume_from = run.last_checkpoint if config.resume and run.last_checkpoint.exists() else None
        if resume_from is not None:
            # says in a line what Lightning says in a traceback
            task.check_checkpoint(read_checkpoint(resume_from), data, resume_from)
        trainer.fit(task, data, ckpt_path=resume_from, weights_only=True)
        metrics = evaluate_run(trainer, task, data, run.last_checkpoint, run.best_checkpoint) | data.baselines()
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        log.info("stopped here", exc_info=error)  # to train.log; the terminal gets a line
        with contextlib.suppress(InputError):  # a full disk must not hide what happened
            record(status="interrupted" if stopped else "failed", reason=explain(error) or repr(error))
        if stopped:  # Lightning makes it a SystemExit
            raise KeyboardInterrupt from error
        raise
    if leader:
        probe.write()
    record(
        status="finished",
        corrupt_images=len(data.corrupt.read()),
        metrics=metrics,
        oversmoothing=probe.curves(),
        measures=probe.further_curves(),
        steps=trainer.global_step,
        devices=describe(trainer, data),  # device_batch=auto is known only now
        wall_clock_s=round(timer.time_elapsed("train"), 1),
    )
    if leader:
        task.write_report(run.path)
        log_report(loggers[1:], metrics, probe.by_kind(), run.path / "oversmoothing.png")
        print(results.summary(run.path))


if __name__ == "__main__":
    try:
        main()
        if sweep:
            from neutreno.launchers import launch

            if launch([job for job, _ in sweep], sweep[0][1]):
                sys.exit(2)
    except (Exception, KeyboardInterrupt) as error:
        exit_with(error)
