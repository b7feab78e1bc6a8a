"""What an evaluator is, what it is given and what it hands back; and which ones an evaluation runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer

from neutreno import console
from neutreno.config.building import build, locate
from neutreno.config.composing import Composed
from neutreno.config.words import close, key_of
from neutreno.data.base import SplitData
from neutreno.errors import InputError
from neutreno.reports.evaluation import Table
from neutreno.tasks.base import Task


@dataclass
class Subject:
    """What is evaluated, and where.

    Attributes:
        task, data: as the settings build them, the task with the weights that are the result.
        trainer: runs the task over a split on all its devices.
        settings: of the parts that were built, and of ``trainer`` and ``probe``.
        folder: for what is written; it is there when evaluators run, not yet when they check.
        title: of figures.
        source: of the weights, in words.
        last, best: checkpoints of a run; None where single weights are evaluated.
        other_variants: axes at which the weights may have been trained with another variant than the task has.
    """

    task: Task
    data: SplitData
    trainer: Trainer
    settings: dict[str, Any]
    folder: Path
    title: str
    source: str
    last: Path | None = None
    best: Path | None = None
    other_variants: Sequence[str] = ()


@dataclass
class Findings:
    """What an evaluator found.

    Attributes:
        metrics: numbers by name, which tables of runs read.
        figures: (what, value) as the page's first table shows them below all metrics.
        tables: further ones of the page.
        record: what else the record keeps; plain data.
        layers: rows of layer-wise metrics, which other loggers draw.
        files: written into the subject's folder.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    figures: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    record: Any = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


class NothingToMeasure(InputError):
    """An evaluator has nothing to measure here: left out where it was not asked for, else refused.

    Args:
        unexpected: say so where it is left out, too; others of its kind are measured.
    """

    def __init__(self, said: str, unexpected: bool = False) -> None:
        super().__init__(said)
        self.unexpected = unexpected


class Evaluator:
    """One kind of figures of a trained model. Its options are annotated parameters of its constructor.

    ``alone``: it runs the model itself, in the first process alone, when the others have ended; so it never holds up
    what all processes do together. Otherwise every process runs it, and leaves the work to the trainer.
    """

    alone = False

    def check(self, subject: Subject) -> None:
        """Refuse what cannot be measured, before anything is: the data is set up, the weights are loaded.

        Raises:
            NothingToMeasure: it does not apply to this task, model or data.
            InputError: it does, but not with these options.
        """

    def run(self, subject: Subject) -> Findings:
        raise NotImplementedError


def choose(composed: Composed, task: type[Task]) -> tuple[dict[str, Evaluator], set[str]]:
    """The evaluators of ``evaluators=…``, else of the task, by name in their order; and which of them were asked for.

    Where a task names a class by its path, the class' name is the evaluator's.

    Raises:
        InputError: no such evaluator, options of one that would not run, or options that it does not take.
    """
    own = {entry.rpartition(".")[2]: entry for entry in task.evaluators}
    sections = dict(composed.settings["evaluator"])
    sections |= {name: {"_target_": path, **sections.get(name, {})} for name, path in own.items() if "." in path}
    given, keys = composed.settings["evaluators"], [key_of(word).split(".") for word in composed.overrides]
    typed = {key[1]: ".".join(key) for key in reversed(keys) if key[0] == "evaluator" and len(key) > 1}
    names = list(dict.fromkeys(own if given is None else given))
    problems = []
    for name in names:
        if name not in sections:
            near = close(name, sections, "") or f"; available: {', '.join(sections)}"
            problems.append(f"evaluators: no evaluator {name}{near}")
        elif not (inspect.isclass(target := locate(sections[name]["_target_"])) and issubclass(target, Evaluator)):
            problems.append(f"evaluator.{name}._target_={sections[name]['_target_']} is no {__name__}.Evaluator")
    for name, key in typed.items():
        if name not in names:
            select = f"leave it out, or select it: evaluators=[{','.join([*names, name])}]"
            problems.append(f"{key}: {name} is not evaluated here, only {', '.join(names)}; {select}")
    if problems:
        raise InputError("\n".join(problems))
    return {name: build(sections[name]) for name in names}, {*(given or ()), *typed}


def applying(evaluators: dict[str, Evaluator], asked: set[str], subject: Subject) -> dict[str, Evaluator]:
    """Those of ``evaluators`` that have something to measure.

    Raises:
        InputError: one that was ``asked`` for has nothing to, or its options do not fit.
    """
    found = {}
    for name, evaluator in evaluators.items():
        try:
            evaluator.check(subject)
        except NothingToMeasure as nothing:
            if name in asked:
                raise
            if nothing.unexpected:
                warnings.warn(f"left out: {nothing}", stacklevel=2)
        else:
            found[name] = evaluator
    return found


def run_all(evaluators: dict[str, Evaluator], subject: Subject) -> dict[str, Findings]:
    """What each of them found, by name and in their order; nothing in processes but the first."""

    def run(name: str) -> Findings:
        console.doing(f"evaluating {name}")
        return evaluators[name].run(subject)

    found = {name: run(name) for name, evaluator in evaluators.items() if not evaluator.alone}
    trainer = subject.trainer
    if not trainer.is_global_zero:
        return {}
    subject.task = trainer.precision_plugin.convert_module(subject.task.to(trainer.strategy.root_device))
    return {name: found[name] if name in found else run(name) for name in evaluators}
