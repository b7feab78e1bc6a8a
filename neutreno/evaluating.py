"""An evaluation: open → evaluators → record, page and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from neutreno import console, results
from neutreno.callbacks.loggers import log_report, log_settings, make_loggers
from neutreno.config.building import build, locate
from neutreno.config.composing import Composed
from neutreno.config.gate import check
from neutreno.data.base import SplitData
from neutreno.errors import InputError
from neutreno.evaluation.base import Evaluator, Findings, Subject, applying, choose, run_all
from neutreno.evaluation.opening import (
    build_run,
    check_other_variants,
    check_weights,
    evaluation_name,
    load_checkpoint,
    model_settings,
    run_of,
    run_settings,
    trusted,
)
from neutreno.files import make_folder
from neutreno.parallel import build_trainer, check_trainer, kill_others
from neutreno.records import read_json
from neutreno.reports.evaluation import metric_tables, render
from neutreno.reports.reading import read_run
from neutreno.runs import RunFolder, flat
from neutreno.stopping import stopping
from neutreno.tasks.base import Task
from neutreno.variants import describe


def evaluate(composed: Composed) -> None:
    """Evaluate a run folder, a checkpoint in one, or a model with weights; writes ``evaluation.json`` and ``.md``.

    Raises:
        InputError: what the user gave cannot be used; then no folder was made.
    """
    console.quiet(rank_zero_only.rank, wait=True)
    with console.heartbeat(composed.config.progress.line_every_s):
        _evaluate(composed)


def _evaluate(composed: Composed) -> None:
    console.doing("reading the weights and the data")
    opened = run_opened if composed.config.run is not None else weights_opened
    run, subject, evaluators = opened(composed)
    console.begin()
    if subject.trainer.is_global_zero:
        print("".join(f"note: {note}\n" for note in subject.data.notes), end="")
    make_folder(subject.folder)
    corrupt = subject.folder / "evaluation_corrupt_images.txt"
    rank_zero_only(corrupt.unlink)(missing_ok=True)  # of an earlier evaluation
    subject.data.note_corrupt(corrupt)
    with stopping(kill_others(subject.trainer)):
        found = run_all(evaluators, subject)
    if subject.trainer.is_global_zero:
        write(composed, run, subject, found, record(subject, composed, found))


Opened = tuple[RunFolder | None, Subject, dict[str, Evaluator]]  # the run: None of weights of another origin


def weights_opened(composed: Composed) -> Opened:
    """Weights that come from no run of ours.

    Raises:
        InputError: all that is wrong with the config.
    """
    config = composed.config
    composed = model_settings(composed)
    check(composed, "evaluate")
    check_trainer(config)
    settings, axes = composed.settings, describe(composed)["axes"]
    other = check_other_variants(settings["other_variants"], axes)
    evaluators, asked = choose(composed, locate(settings["task"]["_target_"]))
    target = RunFolder(Path(config.output_dir) / "evaluations", config.name or evaluation_name(composed))
    data = build(settings["data"])
    model = build(settings["model"], **data.model_arguments())
    data.check_model(model, settings["model"])
    data.check_batches(model)
    check_weights(settings, axes, other)
    task = build(settings["task"], model=model)
    task.variants = axes
    source = settings["model"]["weights"] or f"timm's {settings['model']['name']}"
    subject = made_ready(settings, data, task, target.path, str(source), other)
    return None, subject, applying(evaluators, asked, subject)


def run_opened(composed: Composed) -> Opened:
    """A run folder, or the weights of a checkpoint in one alone.

    Raises:
        InputError: all that is wrong with what was typed, or with the run.
    """
    config = composed.config
    check(composed, "evaluate", only=("trainer", "logger", "evaluator"))
    check_trainer(config)
    run, checkpoint = run_of(config.run)
    settings = run_settings(run, composed, trusted(config))
    other = check_other_variants(composed.settings["other_variants"], settings["variants"])
    evaluators, asked = choose(composed, locate(settings["task"]["_target_"]))
    target = run
    whole = settings["trainer"].get("limit_val_batches") == run.config()["trainer"].get("limit_val_batches")
    if config.name is not None or checkpoint is not None or other or not whole:  # then it is no figure of the run
        name = config.name or f"{run.path.name}-{checkpoint.stem if checkpoint is not None else 'other'}"
        target = RunFolder(Path(config.output_dir) / "evaluations", name)
    data, task = build_run(run, settings, trusted(config), composed.config_dirs)
    subject = made_ready(settings, data, task, target.path, str(checkpoint or run.path), other)
    load_checkpoint(task, data, checkpoint or run.last_checkpoint, other)
    try:
        record = run.record()
    except InputError:  # a run without a record that can be read has its checkpoints
        record = {}
    data.check_against(record)
    if checkpoint is None:
        subject.last, subject.best = run.last_checkpoint, run.best_checkpoint
        subject.title += ", last checkpoint"
    return run, subject, applying(evaluators, asked, subject)


def made_ready(
    settings: dict[str, Any], data: SplitData, task: Task, folder: Path, source: str, other_variants: list[str]
) -> Subject:
    """What is evaluated, with its trainer and its data, of which training images are not needed."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = build_trainer(settings["trainer"], **quiet)
    data.setup("validate")
    data.check_limits(trainer)
    title = folder.resolve().name
    return Subject(task, data, trainer, settings, folder, title, source, other_variants=other_variants)


def record(subject: Subject, composed: Composed, found: dict[str, Findings]) -> dict[str, Any]:
    """``evaluation.json``"""
    settings, data = subject.settings, subject.data
    described = data.record()
    metrics = {name: value for one in found.values() for name, value in one.metrics.items()}
    how = {
        "precision": str(subject.trainer.precision),
        "limit_val_batches": settings["trainer"].get("limit_val_batches"),
        "other_variants": list(subject.other_variants),
        **{key: settings[key] for key in ("data", "model", "task", "probe")},
    }
    earlier = earlier_findings(subject, how, described, found)
    metrics |= {name: value for one in earlier.values() for name, value in one["metrics"].items()}
    corrupt = len(data.corrupt.read())
    further = [("corrupt images left out, see evaluation_corrupt_images.txt", str(corrupt))] if corrupt else []
    further += [row for one in found.values() for row in one.figures]
    tables = [
        *metric_tables(metrics, further, subject.task.percent),
        *(t for one in found.values() for t in one.tables),
    ]
    return {
        "name": subject.folder.resolve().name,
        "weights": subject.source,
        "metrics": metrics,
        "corrupt_images": corrupt,
        "records": {name: one.record for name, one in found.items() if one.record is not None}
        | {name: one["record"] for name, one in earlier.items() if one["record"] is not None},
        "of_evaluator": {name: list(one.metrics) for name, one in found.items()}
        | {name: list(one["metrics"]) for name, one in earlier.items()},
        "kept": list(earlier),
        "tables": [{"columns": table.columns, "rows": table.rows} for table in tables],
        "settings": {
            "run": composed.config.run,
            **how,
            "evaluators": list(found),
            "evaluator": {name: one["options"] for name, one in earlier.items()}
            | {name: composed.settings["evaluator"].get(name, {}) for name in found},
        },
        **described,
        **results.environment(),
    }


def earlier_findings(
    subject: Subject, how: dict[str, Any], described: dict[str, Any], found: dict[str, Findings]
) -> dict[str, dict[str, Any]]:
    """What evaluators that were not run now found earlier of the same weights and data in the same way: ``metrics``,
    ``record``, and their ``options``.

    So that a further evaluation of a run costs nothing that an earlier one has found.
    """
    file = subject.folder / "evaluation.json"
    try:
        before, when = read_json(file), file.stat().st_mtime
        same = before["weights"] == subject.source and before.get("digests") == described.get("digests")
        same = same and all(before["settings"][key] == how[key] for key in how)
        if not same or subject.last is None or subject.last.stat().st_mtime > when:
            return {}
        return {
            name: {
                "metrics": {metric: before["metrics"][metric] for metric in metrics},
                "record": before["records"].get(name),
                "options": before["settings"]["evaluator"].get(name, {}),
            }
            for name, metrics in before["of_evaluator"].items()
            if name not in found
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or of another version
        return {}


def write(
    composed: Composed, run: RunFolder | None, subject: Subject, found: dict[str, Findings], evaluation: dict[str, Any]
) -> None:
    """Record and page; what loggers are given; what the terminal shows."""
    folder = subject.folder
    results.write_json(folder / "evaluation.json", evaluation)
    page = render(evaluation)
    results.write_text(folder / "evaluation.md", page)
    files = [file for one in found.values() for file in one.files]
    asked = composed.settings["logger"] or {}
    loggers = make_loggers(asked, folder, *filed_as(run, composed.choices), "eval") if asked else []
    settings = evaluation["settings"]
    told = {key: value for key, value in flat(settings).items() if not isinstance(value, list)}
    log_settings(loggers, settings, told, subject.task.judged_by(subject.data.has_test))
    rows = [row for one in found.values() for row in one.layers]
    log_report(loggers, evaluation["metrics"], rows, next(iter(files), None))
    files += subject.task.write_left(folder, "evaluation_")
    print(f"{page}\nrecord  {folder / 'evaluation.json'}, .md")
    if files:
        print(f"files   {', '.join(map(str, files))}")


def filed_as(run: RunFolder | None, choices: dict[str, str]) -> tuple[str, list[str]]:
    """Group and tags under which a service files the evaluation: its run's, or by the data set."""
    if run is None:
        return choices.get("experiment") or choices["data"], [choices["data"]]
    try:
        record = read_run(run.path).result
    except InputError:  # a run without a result that can be read has its checkpoints
        return run.path.name, []
    return record.get("group") or run.path.name, results.tags(record)
