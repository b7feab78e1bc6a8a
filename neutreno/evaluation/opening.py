"""Opening what is evaluated: a run folder, a checkpoint in one, or weights of another origin."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from torch import nn

from neutreno.checkpoints import load_strictly, read_checkpoint, trained_with
from neutreno.config.building import build
from neutreno.config.composing import Composed
from neutreno.config.gate import mark_of
from neutreno.config.options import EXECUTION, FREE, START, options_of
from neutreno.config.settings import SCHEMAS, EvaluationSettings, Probe
from neutreno.config.settings import Trainer as TrainerSettings
from neutreno.config.trust import check_package, check_reading, check_trusted, without_start
from neutreno.config.words import close, compose_typed, key_of
from neutreno.errors import InputError
from neutreno.runs import LAST, RunFolder, check_origin, identity_of
from neutreno.tasks.base import Task
from neutreno.variants import axes_of, check_trained, describe, joined, model_words, recorded_axes, value_at, words

ALLOWED = "other_variants=[{axes}] evaluates them anyway"
OF_TRAINER = ("precision", "limit_val_batches")  # of a run's trainer, what its evaluation does alike
OVER_A_RUN = ("data", "task", "trainer", "probe", "logger", "name", "output_dir")  # what may be set beside a run folder


def run_settings(run: RunFolder, composed: Composed, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a run folder's evaluation: its own, but for what was typed.

    Args:
        trust: packages besides this one whose classes the run may name.

    Raises:
        InputError: a key that the run does not have, or one that is not free to change; a class that is not trusted;
            a reader of data that is neither typed nor trusted.
    """
    settings, config = run.config(), composed.config
    run.record()  # of another format, its classes have other names
    axes = settings["variants"]
    if odd := sorted(settings.keys() - {*options_of(SCHEMAS["train"]), *axes}):
        raise InputError(f"{run.config_file} has the key {odd[0]}, which a run does not write; refused")
    for part in dict.fromkeys(("data", "model", "task", *axes)):  # before anything that they name is imported
        check_trusted(settings.get(part), trust, part)
    for axis in axes:
        if axis in settings["model"] and settings["model"][axis] != settings[axis]:
            raise InputError(f"{run.config_file}: {axis} and model.{axis} differ, which a run writes alike; refused")
    typed = [key_of(word) for word in composed.overrides]
    for key in typed:
        _set_over(run, settings, key, config)
    for part in ("data", "task"):  # with what was typed
        check_trusted(settings[part], trust, part)
    _check_values(run, settings, trust)
    for key in ("num_classes", "in_chans"):
        made_for, now = settings["model"].get(key), settings["data"].get(key)
        if made_for is not None and now != made_for:
            raise InputError(f"data.{key}={now} does not fit the model of {run.path}, which was made for {made_for}")
    settings["model"] = without_start(settings["model"])  # a checkpoint follows
    for part in ("data", "model", "task"):
        check_reading(settings[part], part, typed, config.trust_readers)
    recorded = {k: settings["trainer"].get(k) for k in OF_TRAINER if f"trainer.{k}" not in typed}
    return settings | {"trainer": _plain(config.trainer) | recorded}


def _check_values(run: RunFolder, settings: dict[str, Any], trust: Sequence[str]) -> None:
    """Refuse values of a run's config that a run does not write: it is data of anybody's.

    Raises:
        InputError: names the first of them.
    """
    for metric in settings["probe"].get("metrics") or []:
        if "." in str(metric):
            check_package(metric, trust)
    judged = {"variants": options_of(EvaluationSettings)["variants"]}
    judged |= {f"trainer.{name}": options_of(TrainerSettings)[name] for name in OF_TRAINER}
    judged |= {f"probe.{name}": option for name, option in options_of(Probe).items()}
    for key, option in judged.items():
        if problem := option.problem(value_at(settings, key), key):
            raise InputError(f"{run.config_file}: {problem}; refused")


def _set_over(run: RunFolder, settings: dict[str, Any], key: str, config: DictConfig) -> None:
    """Let a key that was typed win over the run's own value.

    Raises:
        InputError: the run has no such key, or it is not free to change.
    """
    *path, last = key.split(".")
    own = bool(path) and path[0] in ("data", "probe", "task")
    place = value_at(settings, ".".join(path)) if own else None
    if own and (not isinstance(place, dict) or (last not in place and len(path) == 1)):
        raise InputError(f"no key {key} in {run.config_file}")
    ours = key.partition(".")[0] in (*OVER_A_RUN, *EvaluationSettings.__annotations__)
    if not ours or mark_of(key, settings, "evaluate") not in (FREE, EXECUTION):
        raise InputError(f"{key}=… is settled by {run.path}, the run that is evaluated; leave it out")
    if own:
        place[last] = _plain(OmegaConf.select(config, key))


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
        if "crop_pct" in config.data:  # which stays the data set's own
            own = {k: v for k, v in made_for.items() if f"data.{k}" not in typed and k != "crop_pct"}
            config.data.update(own)
    if config.model.get("weights") is None and not config.model.get("pretrained"):
        raise InputError(
            "nothing trained to evaluate: give a run folder, model.weights=FILE, or model=timm model.name=…; see --help"
        )
    if config.model.get("new_head"):
        raise InputError("model.new_head=true leaves the head untrained: train it first, then evaluate that run")
    if "ema_decay" in config.task:
        config.task.ema_decay = None  # there is no EMA of the weights
    return composed.anew()


def evaluation_name(composed: Composed) -> str:
    """A folder name for weights that come from no run: data, model, axes, weights."""
    described = describe(composed)
    file = Path(composed.settings["model"]["weights"] or "pretrained")
    weights = file.parents[1].name if file.parent.name == "checkpoints" else file.name  # of a run: its name
    weights = re.sub(r"\.(ckpt|pth|pt|bin|safetensors)$", "", weights)
    model = [model_words(described, "_", joined), *words(described, "-", joined)]
    parts = [described["settings"]["data"], *model, weights]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def run_of(path: str | Path) -> tuple[RunFolder, Path | None]:
    """The run folder that ``path`` is, or the one that the checkpoint ``path`` lies in, and that checkpoint.

    Raises:
        InputError: it is a file elsewhere.
    """
    file = Path(os.path.abspath(path))
    run = RunFolder(file.parent.parent)
    if file.parent.name == "checkpoints" and os.path.isfile(run.config_file) and not os.path.isdir(file):
        return run, file
    if os.path.isfile(file):
        raise InputError(
            f"{path} is a file outside a run folder, which alone says what was trained; name the model and the "
            f"data beside it: model=… model.weights={path} data=…"
        )
    return RunFolder(path), None


def check_other_variants(names: Sequence[str], axes: dict[str, Any]) -> list[str]:
    """``other_variants``.

    Raises:
        InputError: one is none of the ``axes``.
    """
    there = f"its axes are {', '.join(axes)}" if axes else "it has none"
    for name in names:
        if name not in axes:
            raise InputError(f"other_variants: the model has no axis {name}{close(name, axes, '') or f'; {there}'}")
    return list(names)


def check_weights(settings: dict[str, Any], axes: dict[str, Any], other_variants: Sequence[str]) -> None:
    """Refuse weights that a model was built with, where they were trained with other variants than ``axes``.

    Raises:
        InputError: they were.
    """
    for name, source in settings["model"].items():
        if isinstance(source, str) and mark_of(f"model.{name}", settings) is START:
            check_trained(trained_with(source, axes), axes, source, ALLOWED, other_variants)


def load_checkpoint(task: Task, data: LightningDataModule, path: Path, other_variants: Sequence[str] = ()) -> None:
    """Load a run's checkpoint into its task.

    Raises:
        InputError: as :func:`read_fitting` says, or parameters do not fit.
    """
    load_strictly(task, read_fitting(task, data, path, other_variants).get("state_dict"), path)


def read_fitting(
    task: Task, data: LightningDataModule, path: Path, other_variants: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of a run's checkpoint.

    Raises:
        InputError: there is none, it does not fit the task or the data, or was trained with other variants than the
            task has, beyond ``other_variants``.
    """
    checkpoint = read_checkpoint(path)
    task.check_checkpoint(checkpoint, data, path)
    if task.variants is not None:
        check_trained(recorded_axes(checkpoint), task.variants, path, ALLOWED, other_variants)
    if task.run is not None and not other_variants:
        check_origin(checkpoint.get("run"), task.run, path, "restore the run's own")
    ended, steps = (task.run or {}).get("steps"), checkpoint.get("global_step")
    if path.name == LAST and ended is not None and steps != ended:
        raise InputError(f"{path} is of step {steps}, and the run ended at step {ended}; restore the run's own")
    return checkpoint


def open_run(
    folder: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = (), trust_readers: bool = False
) -> tuple[nn.Module, LightningDataModule, dict[str, Any]]:
    """The model of a run folder with the last checkpoint's weights (see ``Task.measured``), its data ready for
    validation, and its settings.

    Args:
        overrides: ``data.KEY=VALUE`` and the like, as for ``evaluate.py``; for instance where the data has moved to.
        trust: packages besides this one whose classes the run may name.
        trust_readers: read the data as the run says, by its ``data.reader`` and ``data.reader_args``.

    Raises:
        InputError: it is no run folder, it has no checkpoint, or an override is not free to change.
    """
    run = RunFolder(folder)
    run.config()  # no run folder: said before all else
    given = [*(f"++{override}" for override in overrides), *(["trust_readers=true"] if trust_readers else [])]
    settings = run_settings(run, compose_typed(given, "evaluate"), trust)
    data, task = build_run(run, settings, trust)
    data.setup("validate")
    load_checkpoint(task, data, run.last_checkpoint)
    return task.measured, data, settings


@contextmanager
def as_started() -> Iterator[None]:
    """What a caller chose for tensors of the caller's own, the default type and inference mode, is set aside."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def device_of(device: str | torch.device) -> torch.device:
    """
    Raises:
        InputError: there is no such device.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch's own ways to say that there is none
        raise InputError(f"device={device}: {str(error).splitlines()[0]}") from error
    return found


def build_run(
    run: RunFolder, settings: dict[str, Any], trust: Sequence[str] = (), config_dirs: Sequence[str] = ()
) -> tuple[LightningDataModule, Task]:
    """Data and task (with its model) of a run folder by its settings, as :func:`run_settings` gives them."""
    data = build(settings["data"])
    model = build(settings["model"], **data.model_arguments())
    data.check_model(model, settings["model"])
    data.check_batches(model)
    task = build(settings["task"], model=model)
    task.variants = axes_of(settings, config_dirs)
    task.run = {"settings": identity_of(run.config()), "steps": run.record().get("steps")}
    return data, task
