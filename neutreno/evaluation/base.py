"""What an evaluator is, what it is given and what it hands back; and which ones an evaluation runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer

from neutreno.config.building import build, locate
from neutreno.config.composing import Composed
from neutreno.config.gate import part_problems
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
    """An evaluator has nothing to measure here: left out where it was not asked for, else refused."""


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
    sections = dict(composed.settings["evaluator"])
    own = {_name(entry): entry for entry in task.evaluators}
    for name, path in own.items():
        if "." in path:
            sections[name] = {"_target_": path, **sections.get(name, {})}
    given = composed.settings["evaluators"]
    names = list(dict.fromkeys(own if given is None else given))
    if problems := list(_choice_problems(composed, sections, names)):
        raise InputError("\n".join(problems))
    asked = {*(given or ()), *_typed(composed)}
    return {name: build(sections[name]) for name in names}, asked


def _name(entry: str) -> str:
    return entry.rpartition(".")[2]


def _typed(composed: Composed) -> dict[str, str]:
    """Evaluators whose options were typed, each with the first key."""
    keys = [key.split(".") for key in map(key_of, reversed(composed.overrides))]
    return {key[1]: ".".join(key) for key in keys if key[0] == "evaluator" and len(key) > 1}


def _choice_problems(composed: Composed, sections: dict[str, Any], names: list[str]) -> Iterator[str]:
    for name in names:
        if name not in sections:
            there = ", ".join(sections)
            yield f"evaluators: no evaluator {name}{close(name, sections, '') or f'; available: {there}'}"
            continue
        if problems := part_problems(sections[name], f"evaluator.{name}"):
            yield from problems
            continue
        target = locate(sections[name]["_target_"])
        if not (inspect.isclass(target) and issubclass(target, Evaluator)):
            yield f"evaluator.{name}._target_={sections[name]['_target_']} is no {Evaluator.__module__}.Evaluator"
    for name, key in _typed(composed).items():
        if name not in names:
            yield (
                f"{key}: {name} is not evaluated here, only {', '.join(names)}; leave it out, or select it: "
                f"evaluators=[{','.join([*names, name])}]"
            )


def applying(evaluators: dict[str, Evaluator], asked: set[str], subject: Subject) -> dict[str, Evaluator]:
    """Those of ``evaluators`` that have something to measure.

    Raises:
        InputError: one that was ``asked`` for has nothing to, or its options do not fit.
    """
    found = {}
    for name, evaluator in evaluators.items():
        try:
            evaluator.check(subject)
        except NothingToMeasure:
            if name in asked:
                raise
        else:
            found[name] = evaluator
    return found


def run_all(evaluators: dict[str, Evaluator], subject: Subject) -> dict[str, Findings]:
    """What each of them found, by name and in their order; nothing in processes but the first."""
    found = {name: evaluator.run(subject) for name, evaluator in evaluators.items() if not evaluator.alone}
    trainer = subject.trainer
    if not trainer.is_global_zero:
        return {}
    subject.task = trainer.precision_plugin.convert_module(subject.task.to(trainer.strategy.root_device))
    found |= {name: evaluator.run(subject) for name, evaluator in evaluators.items() if evaluator.alone}
    return {name: found[name] for name in evaluators}
