"""Every figure of a trained model: metrics, robustness, cost, similarity of its tokens by layer."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neutreno.cli.hydra_main import guarded, run

if TYPE_CHECKING:
    from pathlib import Path

    from lightning import Trainer

    from neutreno.config.composing import Composed
    from neutreno.data.base import SplitData
    from neutreno.runs import RunFolder
    from neutreno.tasks.base import Task


def main(arguments: Sequence[str] | None = None) -> int:
    words = prepare(list(sys.argv[1:] if arguments is None else arguments))
    return guarded(lambda: run("evaluate", words, lambda composed, _: evaluate(composed)) or 0)


def prepare(arguments: list[str]) -> list[str]:
    """What people type → what Hydra reads.

    ``evaluate.py RUN`` and ``run=RUN`` → ``run="RUN"``, because a bare path would be a syntax error there. Beside a run
    ``data.KEY=…`` → ``++data.KEY=…``, ``task.KEY`` too: it is the run's key, which what is composed here may not have.
    """

    def is_run(i: int, argument: str) -> bool:
        if i and arguments[i - 1].startswith("-") and "=" not in arguments[i - 1]:  # the value of --cfg and the like
            return False
        return argument.startswith("run=") or (argument[:1] != "-" and ("=" not in argument or os.path.isdir(argument)))

    run = next((i for i, argument in enumerate(arguments) if is_run(i, argument)), None)
    if run is None:
        return arguments
    prepared = [f"++{a}" if a.startswith(("data.", "task.")) else a for a in arguments]
    path = arguments[run].removeprefix("run=").strip("'\"").replace('"', '\\"')
    prepared[run] = f'run="{path}"'
    return prepared


def evaluate(composed: Composed) -> None:
    """Evaluate a run folder, or a model with weights; writes ``evaluation.json``, ``.md`` and ``.png``.

    Raises:
        InputError: what the user gave cannot be used; then no folder was made.
    """
    from lightning.pytorch.utilities import rank_zero_only

    from neutreno import console
    from neutreno.evaluation import evaluate_crops, evaluate_protocols, evaluate_run, evaluate_weights, further_crops
    from neutreno.oversmoothing.probe import probed
    from neutreno.parallel import build_trainer
    from neutreno.robustness import check_folders, evaluate_folders

    console.quiet(rank_zero_only.rank)
    run, target, settings, data, task = opened(composed)
    config = composed.config
    robustness = {name: config[name] for name in ("imagenet_c", "imagenet_a", "imagenet_r") if config[name] is not None}
    check_folders(robustness, task.model, data)
    crop_pcts = further_crops(data, settings["crop_pcts"], "crop_pcts" in typed_keys(composed))
    data.setup("validate")  # training images are not needed
    sliding = strides(composed, task, data)
    target.path.mkdir(parents=True, exist_ok=True)
    corrupt = target.path / "evaluation_corrupt_images.txt"
    rank_zero_only(corrupt.unlink)(missing_ok=True)  # of an earlier evaluation
    data.note_corrupt(corrupt)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = build_trainer(settings["trainer"], **quiet)
    if run is None:
        metrics = evaluate_weights(trainer, task, data)
    else:
        metrics = evaluate_run(trainer, task, data, run.last_checkpoint, run.best_checkpoint)
    metrics |= data.baselines() | evaluate_crops(trainer, task, data, crop_pcts)
    metrics |= evaluate_protocols(trainer, task, data)
    found = evaluate_folders(trainer, task.model, robustness, data)
    if not trainer.is_global_zero:
        return
    task.to(trainer.strategy.root_device)
    perplexity, cost = beyond_metrics(trainer, task.model, data, sliding, settings.get("cost"))
    metrics |= {entry["metric"]: entry["ppl"] for entry in perplexity or ()}
    more = {"robustness": found, "corrupt_images": len(data.corrupt.read()), "perplexity": perplexity, "cost": cost}
    measures = probed(settings["probe"].get("metrics", ["cosine"]))
    evaluation = describe_evaluation(run, target, settings, trainer, task, data, measures, metrics, more)
    evaluation["settings"] |= {"crop_pcts": crop_pcts, **robustness}
    write(composed, run, target.path, evaluation, task)


def typed_keys(composed: Composed) -> list[str]:
    from neutreno.config.words import key_of

    return [key_of(word) for word in composed.overrides]


def opened(composed: Composed) -> tuple[RunFolder | None, RunFolder, dict[str, Any], SplitData, Task]:
    """The run (None: weights of another origin), the folder to write into, the settings, data and task.

    Raises:
        InputError: all that is wrong with the config, or with the run.
    """
    from pathlib import Path

    from neutreno.config.building import build
    from neutreno.config.gate import check, constructor_problems, settings_problems
    from neutreno.errors import InputError
    from neutreno.evaluation import build_run, evaluation_name, model_settings, run_settings, trusted
    from neutreno.parallel import check_trainer
    from neutreno.runs import RunFolder

    config = composed.config
    if config.run is None:
        if problems := list(settings_problems(composed, "evaluate")):
            raise InputError("\n".join(problems))
        composed = model_settings(composed)
        check(composed, "evaluate")
        check_trainer(config)
        settings = composed.settings
        target = RunFolder(Path(config.output_dir) / "evaluations", config.name or evaluation_name(composed))
        data = build(settings["data"])
        model = build(settings["model"], **data.model_arguments())
        return None, target, settings, data, build(settings["task"], model=model)
    if problems := [
        *settings_problems(composed, "evaluate"),
        *constructor_problems(composed, "evaluate", only=("trainer", "logger")),
    ]:
        raise InputError("\n".join(problems))
    check_trainer(config)
    run = RunFolder(config.run)
    target = run if config.name is None else RunFolder(Path(config.output_dir) / "evaluations", config.name)
    settings = run_settings(run, composed, trusted(config))
    settings["cost"] = composed.settings.get("cost")
    return run, target, settings, *build_run(settings, trusted(config))


def strides(composed: Composed, task: Task, data: SplitData) -> list | None:
    """Windows over the text, of a language model.

    Raises:
        InputError: they are impossible, or the model is none.
    """
    from neutreno.errors import InputError
    from neutreno.perplexity import protocols
    from neutreno.tasks.language_modeling import LanguageModeling

    sliding = composed.settings["sliding"]
    if isinstance(task, LanguageModeling):
        sliding = [max(1, data.segment // 8)] if sliding is None else sliding
        protocols(sliding, data.segment)  # refused before the long work
        return sliding
    if "sliding" in typed_keys(composed):
        raise InputError(f"sliding={sliding} is for language models; leave it out")
    return None


def beyond_metrics(
    trainer: Trainer, model: Any, data: SplitData, sliding: list | None, cost: dict | None
) -> tuple[list | None, dict | None]:
    """Perplexity by sliding windows, where there are any, or else the cost of an image, where the data has images."""
    from neutreno.cost import measure_cost
    from neutreno.perplexity import perplexities

    with trainer.precision_plugin.forward_context():
        if sliding is not None:
            texts = {split: data.splits[split] for split in ("val", "test")}
            return perplexities(model, texts, data.segment, sliding, data.eval_batch_size), None
        if cost is None or data.image_shape is None:
            return None, None
        return None, measure_cost(model, data.image_shape, **cost) | {"precision": str(trainer.precision)}


def describe_evaluation(
    run: RunFolder | None,
    target: RunFolder,
    settings: dict[str, Any],
    trainer: Trainer,
    task: Task,
    data: SplitData,
    measures: list[str],
    metrics: dict[str, float],
    more: dict[str, Any],
) -> dict[str, Any]:
    """``evaluation.json``"""
    from neutreno import results
    from neutreno.oversmoothing.recorder import measure

    samples = data.probe_samples(settings["probe"]["num_samples"])
    return {
        "name": target.path.resolve().name,
        "metrics": metrics,
        **more,
        "oversmoothing": measure(task.model, samples, measures),
        "settings": {
            "run": None if run is None else str(run.path),
            **{key: settings[key] for key in ("data", "model")},
            "precision": str(trainer.precision),
            "limit_val_batches": settings["trainer"].get("limit_val_batches"),
            **{k: settings["task"][k] for k in ("inference", "protocols") if k in settings["task"]},
        },
        **data.record(),
        **results.environment(),
    }


def write(composed: Composed, run: RunFolder | None, folder: Path, evaluation: dict[str, Any], task: Task) -> None:
    """Record, page and figure; what loggers are given; what the terminal shows."""
    from neutreno import results
    from neutreno.callbacks.loggers import log_report, make_loggers
    from neutreno.reports.evaluation import render
    from neutreno.reports.figures import plot_similarity

    results.write_json(folder / "evaluation.json", evaluation)
    page = render(evaluation)
    results.write_text(folder / "evaluation.md", page)
    title = f"{evaluation['name']}, last checkpoint" if run is not None else evaluation["name"]
    plot_similarity(evaluation["oversmoothing"], folder / "evaluation.png", title)
    figures = [folder / "evaluation.png", *task.write_report(folder, "evaluation_")]
    loggers = make_loggers(composed.settings["logger"] or {}, folder, group_of(run, composed.choices), "eval")
    for logger in loggers:
        logger.log_hyperparams(evaluation["settings"])
    log_report(loggers, evaluation["metrics"], evaluation["oversmoothing"], folder / "evaluation.png")
    print(f"{page}\nrecord  {folder / 'evaluation.json'}, .md\nfigure  {', '.join(map(str, figures))}")


def group_of(run: RunFolder | None, choices: dict[str, str]) -> str:
    """Under which a web service files the evaluation: as its run, by experiment or else data set."""
    from neutreno.results import read_result

    if run is None:
        return choices.get("experiment") or choices["data"]
    result = read_result(run.path)
    given = [o.partition("=")[2] for o in result["overrides"] if o.startswith("experiment=")]
    return given[-1] if given else result["settings"]["data"]


if __name__ == "__main__":
    sys.exit(main())
