"""The metrics of a model. Training ends with them and ``evaluate.py`` repeats them, so both give the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn

from neutreno.checkpoints import load_strictly, read_checkpoint
from neutreno.config.building import build_trusted, check_package, check_trusted
from neutreno.config.composing import Composed, compose
from neutreno.config.gate import mark_of
from neutreno.config.options import EXECUTION, FREE, options_of
from neutreno.config.settings import EvaluationSettings, Probe
from neutreno.config.settings import Trainer as TrainerSettings
from neutreno.config.words import key_of
from neutreno.errors import InputError, check_number
from neutreno.runs import RunFolder
from neutreno.tasks.base import Task
from neutreno.variants import describe, joined, model_words, words

OVER_A_RUN = ("data", "task", "trainer", "probe", "logger", "name", "output_dir")  # what may be set beside a run folder


def run_settings(run: RunFolder, composed: Composed, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a run folder's evaluation: its own, but for what was typed.

    Args:
        trust: packages besides this one whose classes the run may name.

    Raises:
        InputError: a key that the run does not have, or one that is not free to change; a class that is not trusted.
    """
    settings, config = run.config(), composed.config
    for part in ("data", "model", "task"):
        check_trusted(settings[part], trust, part)
    typed = [key_of(word) for word in composed.overrides]
    for key in typed:
        section, _, name = key.partition(".")
        *path, last = name.split(".")
        place = settings[section] if section in ("data", "probe", "task") and name else None
        if place is not None:
            for part in path:
                place = place.get(part) if isinstance(place, dict) else None
            if not isinstance(place, dict) or (last not in place and not path):
                raise InputError(f"no key {key} in {run.config_file}")
        ours = section in OVER_A_RUN or section in EvaluationSettings.__annotations__
        if not ours or mark_of(key, settings, "evaluate") not in (FREE, EXECUTION):
            raise InputError(f"{key}=… is settled by {run.path}, the run that is evaluated; leave it out")
        if place is not None:
            place[last] = _plain(OmegaConf.select(config, key))
    as_trained = {k: settings["trainer"].get(k) for k in ("precision", "limit_val_batches")}
    for key, value in as_trained.items():  # the one part of a run's config that reaches the trainer
        if problem := options_of(TrainerSettings)[key].problem(value, f"trainer.{key}"):
            raise InputError(f"{run.config_file}: {problem}; refused")
    for metric in settings["probe"].get("metrics") or []:
        if "." in str(metric):
            check_package(metric, trust)
    for name, option in options_of(Probe).items():
        if problem := option.problem(settings["probe"].get(name), f"probe.{name}"):
            raise InputError(f"{run.config_file}: {problem}")
    for key in ("num_classes", "in_chans"):
        made_for, now = settings["model"].get(key), settings["data"].get(key)
        if made_for is not None and now != made_for:
            raise InputError(f"data.{key}={now} does not fit the model of {run.path}, which was made for {made_for}")
    more = {k: None for k in ("weights", "encoder_weights") if k in settings["model"]}
    more |= {"pretrained": False} if "pretrained" in settings["model"] else {}
    return settings | {
        "model": settings["model"] | more,  # a checkpoint follows
        "trainer": _plain(config.trainer) | {k: v for k, v in as_trained.items() if f"trainer.{k}" not in typed},
        "crop_pcts": _plain(config.crop_pcts),
    }


def trusted(config: DictConfig) -> list[str]:
    """``trust=mine`` and ``trust=[mine,other]`` as a list."""
    given = config.trust
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def model_settings(composed: Composed) -> Composed:
    """The config of the evaluation of weights that come from no run of ours.

    Where none are given, a timm model takes timm's; its images are made as timm says, but for what was typed.

    Raises:
        InputError: there are no weights, or no such timm model.
    """
    config, typed = composed.config, [key_of(word) for word in composed.overrides]
    if "pretrained" in config.model:
        from neutreno.models.timm import data_settings

        if "model.pretrained" not in typed:
            config.model.pretrained = config.model.weights is None
        if "model.drop_path_rate" not in typed:
            config.model.drop_path_rate = None  # of training alone, and not every model knows it
        made_for = data_settings(config.model.name)
        own_crop = made_for.pop("crop_pct")
        if "crop_pct" in config.data:
            config.data.update({k: v for k, v in made_for.items() if f"data.{k}" not in typed})
            if "crop_pcts" not in typed:
                config.crop_pcts = [*config.crop_pcts, own_crop]
    if config.model.get("weights") is None and not config.model.get("pretrained"):
        raise InputError(
            "nothing trained to evaluate: give a run folder, model.weights=FILE, or model=timm model.name=…; see --help"
        )
    if config.model.get("new_head"):
        raise InputError("model.new_head=true leaves the head untrained: train it first, then evaluate that run")
    if "ema_decay" in config.task:
        config.task.ema_decay = None  # there is no average of the weights
    return composed.anew()


def evaluation_name(composed: Composed) -> str:
    """A folder name for weights that come from no run: data, model, axes, weights."""
    described = describe(composed)
    parts = [described["settings"]["data"], model_words(described, "_", joined), *words(described, "-", joined)]
    file = Path(composed.settings["model"]["weights"] or "pretrained")
    weights = file.parents[1].name if file.parent.name == "checkpoints" else file.name  # of a run: its name
    parts.append(re.sub(r"\.(ckpt|pth|pt|bin|safetensors)$", "", weights))
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def evaluate_weights(trainer: Trainer, task: Task, data: LightningDataModule) -> dict[str, float]:
    """Every validation metric and, where the data set has a test split, every test metric of the task's weights."""
    trainer.validate(task, data, verbose=False)
    metrics = dict(trainer.callback_metrics)
    if data.has_test:
        trainer.test(task, data, verbose=False)
        metrics |= trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def load_checkpoint(task: Task, data: LightningDataModule, path: Path) -> None:
    """
    Raises:
        InputError: there is none, or it does not fit the task or the data.
    """
    checkpoint = read_checkpoint(path)
    task.check_checkpoint(checkpoint, data, path)
    load_strictly(task, checkpoint.get("state_dict"), path)


def open_run(
    folder: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()
) -> tuple[nn.Module, LightningDataModule, dict[str, Any]]:
    """The model of a run folder with its last epoch's weights, its data ready for validation, and its settings.

    Args:
        overrides: ``data.KEY=VALUE`` and the like, as for ``evaluate.py``; for instance where the data has moved to.
        trust: packages besides this one whose classes the run may name.

    Raises:
        InputError: it is no run folder, it has no checkpoint, or an override is not free to change.
    """
    run = RunFolder(folder)
    run.config()  # no run folder: said before all else
    settings = run_settings(run, compose([f"++{override}" for override in overrides], "evaluate"), trust)
    data, task = build_run(settings, trust)
    data.setup("validate")
    load_checkpoint(task, data, run.last_checkpoint)
    return task.model, data, settings


def build_run(settings: dict[str, Any], trust: Sequence[str] = ()) -> tuple[LightningDataModule, Task]:
    """Data and task (with its model) of a run folder's settings, as :func:`run_settings` gives them."""
    data = build_trusted(settings["data"], trust, "data")
    model = build_trusted(settings["model"], trust, "model", **data.model_arguments())
    return data, build_trusted(settings["task"], trust, "task", model=model)


def evaluate_run(trainer: Trainer, task: Task, data: LightningDataModule, last: Path, best: Path) -> dict[str, float]:
    """Metrics of the last epoch's raw weights, of their average (``ema/``) if kept, and of the best epoch (``best/``).

    The last epoch's raw weights are the result, as DeiT reports it. "Best" was chosen on the validation split, so its
    validation metrics flatter it. Leaves the last weights loaded.
    """
    metrics = {}
    if best.exists():
        load_checkpoint(task, data, best)
        chosen = evaluate_weights(trainer, task, data)
        metrics = {f"best/{name}": value for name, value in chosen.items() if not name.startswith("ema/")}
    load_checkpoint(task, data, last)
    return evaluate_weights(trainer, task, data) | metrics


@contextmanager
def cropping(data: LightningDataModule, crop_pct: float) -> Iterator[None]:
    """Evaluation images are resized to img_size / ``crop_pct`` before their centre is cropped, meanwhile."""
    before, data.crop_pct = data.crop_pct, crop_pct
    try:
        yield
    finally:
        data.crop_pct = before


def further_crops(data: LightningDataModule, crop_pcts: Sequence[float], asked: bool) -> list[float]:
    """Those of ``crop_pcts`` that say something new of ``data``: none where it does not crop, unless ``asked``.

    Raises:
        InputError: the data set knows no crops, or a number is not in (0, 1].
    """
    own = None if getattr(data, "on_device", False) else getattr(data, "crop_pct", None)
    if asked and own is None and crop_pcts:
        raise InputError("crop_pcts: this data set has no data.crop_pct, or lies on the device; leave crop_pcts out")
    if not isinstance(crop_pcts, Sequence) or isinstance(crop_pcts, str):
        raise InputError(f"crop_pcts={crop_pcts} is no list; write crop_pcts=[{crop_pcts}]")
    for crop_pct in crop_pcts:
        check_number("crop_pcts", crop_pct, 0.01, 1)
    if own is None or (own == 1 and not asked):  # CIFAR's small images are not cropped
        return []
    return [crop_pct for crop_pct in dict.fromkeys(crop_pcts) if crop_pct != own]


def evaluate_protocols(trainer: Trainer, task: Task, data: LightningDataModule) -> dict[str, float]:
    """Validation metrics by the task's further protocols, such as ``val_multi_scale/miou``."""
    metrics = {}
    for protocol in getattr(task, "protocols", {}):
        with task.following(protocol):
            trainer.validate(task, data, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics


def evaluate_crops(
    trainer: Trainer, task: Task, data: LightningDataModule, crop_pcts: Sequence[float]
) -> dict[str, float]:
    """Validation metrics under other crops than the data set's own, named ``val_crop0.9/top1``."""
    metrics = {}
    for crop_pct in crop_pcts:
        with cropping(data, crop_pct):
            trainer.validate(task, data, verbose=False)
        metrics |= {
            name.replace("val/", f"val_crop{crop_pct:g}/"): float(value)
            for name, value in trainer.callback_metrics.items()
        }
    return metrics
