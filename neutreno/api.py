"""Runs in Python, as objects: ``neutreno.load_run("outputs/RUN")``, ``neutreno.train("data=digits", …)``."""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import nn

from neutreno import console, hub, training, variants
from neutreno.cli import hydra_main
from neutreno.config.building import build, locate
from neutreno.config.composing import Composed
from neutreno.config.gate import mark_of
from neutreno.config.options import EXECUTION, START
from neutreno.config.words import compose_typed, key_of
from neutreno.data.base import SplitData
from neutreno.errors import InputError, one_line
from neutreno.evaluation.opening import as_started, build_run, device_of, load_checkpoint, run_settings
from neutreno.models.exporting import export_timm
from neutreno.parallel import build_trainer
from neutreno.reports import reading
from neutreno.reports.card import metrics_of, write_card
from neutreno.reports.layers import read_table
from neutreno.runs import RunFolder, identity, other_splits, packages
from neutreno.variants import axes_of

Weights = Literal["last", "best", "ema"]


@dataclass(repr=False, eq=False)
class Run(reading.Run):
    """A finished run: see :func:`load_run`. Its model, data and layer-wise values are read when they are asked for."""

    words: Sequence[str]
    weights: Weights
    device: torch.device
    trust: Sequence[str]
    trust_readers: bool

    def __repr__(self) -> str:
        return one_line(f"<run {self.path}: {self.label}>")

    @cached_property
    def model(self) -> nn.Module:
        """The network with the run's weights, in evaluation mode.

        Raises:
            InputError: the run has no such weights, they are damaged, or not this run's; of text and graphs, also what
                :attr:`data` says.
        """
        folder = RunFolder(self.path)
        with as_started(), torch.random.fork_rng(devices=[]):
            data, task = build_run(folder, self._settings, self.trust)
            in_last = self.weights == "last" or f"{self.weights}/" in task.networks
            if self.weights == "ema" and not in_last:
                raise InputError(f"{self.path} kept no EMA of its weights (task.ema_decay=null); choose last or best")
            load_checkpoint(task, data, folder.last_checkpoint if in_last else folder.best_checkpoint)
            prefix = f"{self.weights}/" if in_last and self.weights != "last" else ""
            return task.networks[prefix].to(self.device).eval()

    @cached_property
    def data(self) -> SplitData:
        """The data as the run had it, ready for ``train_dataloader()``, ``val_dataloader()`` and
        ``probe_samples(n)``.

        Raises:
            InputError: it is not where the run had it, or not the same.
        """
        data = build(self._settings["data"])
        data.setup()
        if said := other_splits(self.result.get("digests", data.digests), data.digests):
            raise InputError(f"{self.path} is a run on other data: {said}; data.root=FOLDER says where its data is")
        with console.lent():
            console.quiet(0)
            one = 1 if self.device.type == "cpu" else [self.device.index or 0]
            where = {"accelerator": self.device.type, "devices": one, "precision": "32-true"}
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            data.trainer = build_trainer(self._settings["trainer"] | where, **quiet)  # says how batches are shared out
        return data

    @cached_property
    def layers(self) -> pd.DataFrame:
        """Layer-wise values, a row per step, stack, metric, token subset and layer: the run's ``oversmoothing.csv``.

        Raises:
            InputError: it is not there, or damaged.
        """
        return read_table(self.path / "oversmoothing.csv", self.measured)

    def export(
        self, path: str | Path, format: Literal["timm"] = "timm", without_variants: bool = False
    ) -> tuple[str, dict[str, Any]]:
        """Write the weights for another library: see :func:`neutreno.models.exporting.export_timm`.

        Args:
            without_variants: write weights that were trained with other variants than the baseline, such as NeuTRENO;
                there they load strictly, and compute plain softmax attention, which is not what was trained. A warning
                says how far the logits of a batch are then from the network's.

        Returns:
            name and arguments of ``timm.create_model(name, checkpoint_path=path, **arguments)``.

        Raises:
            InputError: of other variants, unless that is allowed; and as that function and :attr:`model` say.
        """
        if format != "timm":
            raise InputError(f"format={format} is not known; available: timm")
        given_up = "" if self.at_baseline else one_line(" + ".join(variants.words(self.result)))
        if given_up and not without_variants:
            raise InputError(
                f"{self.path} was trained with {given_up}, which timm has not: its weights may load there and compute "
                "something else; without_variants=True writes them nevertheless"
            )
        with as_started():
            return export_timm(self.model, path, given_up, build(self._settings["data"]).input_facts())

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> None:
        """Write what :meth:`push_to_hub` pushes into a new folder, or beside what is there.

        Raises:
            InputError: a file of these names is there, or as :attr:`model` and (of text, graphs and own images)
                :attr:`data` say.
        """
        self._write(folder, license, str(folder))

    def push_to_hub(
        self, repo_id: str, license: str | None = None, private: bool | None = None, token: str | None = None
    ) -> str:
        """Push network, config and a model card to a repository of the Hugging Face hub, which is made if need be.

        Args:
            repo_id: ``NAME/REPOSITORY``.
            license: of the weights, by the hub's name for it: ``mit``, ``apache-2.0``, …
            private: of a new repository; None: as the account has it.
            token: of the hub; None: that of ``hf auth login``.

        Returns:
            the address of the commit.

        Raises:
            InputError: as :meth:`save_pretrained` says; or the hub cannot be reached, or refuses it.
        """
        _ = self.model  # what cannot be read leaves no empty repository behind
        message = one_line(self.label)
        return hub.upload(lambda into, name: self._write(into, license, name), repo_id, message, private, token)

    def _write(self, folder: str | Path, license: str | None, source: str) -> None:
        """The files of the hub.

        What only says where and how the run was executed stays here, and so does what names a place on this machine.
        """
        settings, data = self._settings, build(self._settings["data"])
        if data.model_arguments():
            data = self.data  # checked to be the run's own
        method = one_line(" + ".join(variants.words(self.result)))
        known = identity(self.config, self._is_private)
        config = {
            **{"label": one_line(self.label), "trained_with": method, "weights": self.weights},
            **{"model": settings["model"], "input": data.input_facts(), "classes": self.result.get("classes")},
            "settings": {key: value for key, value in known.items() if not _is_place(value)},
            "metrics": metrics_of(self, self.weights),
        }
        typed = [word for word in self.result["overrides"] if not self._is_private(key_of(word))]
        typed = [shlex.quote(word) for word in typed if not _is_place(word.partition("=")[2])]
        words = [*("--config-dir=FOLDER" for _ in self.result.get("config_dirs", [])), *typed]
        tag = locate(settings["task"]["_target_"]).pipeline_tag
        card = write_card(self, self.weights, method, words, tag, license, source)
        hub.write(folder, self.model, axes_of(settings), data.portable_arguments(), config, card)

    def _is_private(self, key: str) -> bool:
        return mark_of(key, self._settings) in (EXECUTION, START)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        given = [*(f"++{word}" for word in self.words), *(["trust_readers=true"] if self.trust_readers else [])]
        return run_settings(RunFolder(self.path), compose_typed(given, "evaluate"), self.trust)


def load_run(
    folder: str | Path,
    *words: str,
    weights: Weights = "last",
    device: str | torch.device = "cpu",
    trust: str | Sequence[str] = (),
    trust_readers: bool = False,
) -> Run:
    """A finished run folder as an object; only its record is read at once.

    Attributes of what it gives: ``model`` and ``data``; ``config``, the composed config as a dictionary; ``metrics``,
    by name, those that ``evaluate.py`` added among them; ``layers``, the layer-wise values as a table; ``result``, the
    whole record.

    Args:
        words: ``data.KEY=VALUE`` as beside ``evaluate.py``; ``data.root=FOLDER`` where the data has moved to.
        weights: of the last epoch, of the best epoch, or their EMA at the last.
        device: of the model.
        trust: packages besides this one whose classes the run may name: a folder is data of anybody's.
        trust_readers: read the data as the run says, by its ``data.reader`` and ``data.reader_args``.

    Raises:
        InputError: it is no run folder, of another version, damaged or unfinished; an argument is none of these.
    """
    if weights not in get_args(Weights):
        raise InputError(f"weights={weights!r} is none of {', '.join(get_args(Weights))}")
    where = device_of(device)
    read = reading.read_run(folder)
    if read.status != "finished":
        reason = f": {read.result['reason']}" if read.result.get("reason") else ""
        raise InputError(f"{folder} is not finished ({read.status}{reason}); resume=true continues it")
    trust = [trust] if isinstance(trust, str) else trust
    read.path = Path(os.path.abspath(read.path))  # the working folder may change before the model is asked for
    return Run(**vars(read), words=words, weights=weights, device=where, trust=trust, trust_readers=trust_readers)


def _is_place(value: Any) -> bool:
    """Whether a value, or one within a list, names a folder or a file by where it is on this machine."""
    parts = re.split(r"[\s\[\]{}:,'\"]+", str(value))
    return any(os.path.isabs(os.path.expanduser(part)) for part in parts)


_ONE_AT_A_TIME = threading.Lock()


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else str(value)


def train(*words: str, **keys: Any) -> Run:
    """Train in this process as ``train.py`` does, into the same run folder, and open it.

    Args:
        words: as they are typed after ``train.py``: ``"model=deit"``, ``"attention.lam=0.4"``, ``"--config-dir=conf"``.
        keys: the same for keys without a dot: ``seed=3``, ``resume=True``; a text is taken as it would be typed.

    Raises:
        InputError: what the command would refuse; what belongs to the command line alone; several processes.
        KeyboardInterrupt: the run was interrupted; ``resume=True`` continues it.
    """
    as_typed = {
        key: value if isinstance(value, str) else json.dumps(value, default=_plain) for key, value in keys.items()
    }
    if odd := [word for word in words if not isinstance(word, str)]:
        raise InputError(f"neutreno.train takes words, 'KEY=VALUE', and no {type(odd[0]).__name__}: {odd[0]!r:.60}")
    words = (*words, *(f"{key}={value}" for key, value in as_typed.items()))
    if odd := hydra_main.of_hydra(hydra_main.split_config_dirs(words)[0]):
        raise InputError(f"{odd[0]} belongs to the command line; neutreno.train takes KEY=VALUE, and makes one run")
    found: list[Composed] = []
    hydra_main.run("train", words, lambda composed, is_sweep: found.append(composed))
    composed = replace(found[0], called=f"neutreno.train({', '.join(map(repr, words))})")
    if composed.config.preflight:
        raise InputError("preflight=true makes no run; it belongs to the command line: train.py … preflight=true")
    with _ONE_AT_A_TIME, console.lent(), as_started():  # seeds, signals and the terminal are the process'
        folder = training.train(composed)
    return load_run(folder, trust=sorted(packages(composed.settings)), trust_readers=True)  # the caller named them
