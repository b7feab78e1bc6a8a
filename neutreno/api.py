"""Runs in Python, as objects: ``neutreno.load_run("outputs/RUN")``, ``neutreno.train("data=digits", …)``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import nn

from neutreno import console, training, variants
from neutreno.cli import hydra_main
from neutreno.config.building import build
from neutreno.config.composing import Composed
from neutreno.config.words import compose_typed
from neutreno.data.base import SplitData
from neutreno.errors import InputError, one_line
from neutreno.evaluation.opening import build_run, load_checkpoint, run_settings
from neutreno.models.exporting import export_timm
from neutreno.parallel import build_trainer
from neutreno.reports import reading
from neutreno.reports.layers import read_table
from neutreno.runs import RunFolder, other_splits, packages

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
        with torch.random.fork_rng(devices=[]):
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
                there they load strictly, and compute plain softmax attention, which is not what was trained.

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
        return export_timm(self.model, path, given_up)

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
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:  # torch's own ways to say that there is none
        raise InputError(f"device={device}: {str(error).splitlines()[0]}") from error
    read = reading.read_run(folder)
    if read.status != "finished":
        reason = f": {read.result['reason']}" if read.result.get("reason") else ""
        raise InputError(f"{folder} is not finished ({read.status}{reason}); resume=true continues it")
    trust = [trust] if isinstance(trust, str) else trust
    read.path = Path(os.path.abspath(read.path))  # the working folder may change before the model is asked for
    return Run(**vars(read), words=words, weights=weights, device=where, trust=trust, trust_readers=trust_readers)


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
    words = (*words, *(f"{key}={value}" for key, value in as_typed.items()))
    if odd := hydra_main.of_hydra(hydra_main.split_config_dirs(words)[0]):
        raise InputError(f"{odd[0]} belongs to the command line; neutreno.train takes KEY=VALUE, and makes one run")
    found: list[Composed] = []
    hydra_main.run("train", words, lambda composed, is_sweep: found.append(composed))
    composed = replace(found[0], called=f"neutreno.train({', '.join(map(repr, words))})")
    if composed.config.preflight:
        raise InputError("preflight=true makes no run; it belongs to the command line: train.py … preflight=true")
    with _ONE_AT_A_TIME, console.lent():  # seeds, signals and the terminal are the process'
        folder = training.train(composed)
    return load_run(folder, trust=sorted(packages(composed.settings)), trust_readers=True)  # the caller named them
