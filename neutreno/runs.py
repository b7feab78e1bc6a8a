"""Run folders: their names, when one may be written, and how a model comes back out of one."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from neutreno.config.composing import Composed
from neutreno.config.gate import mark_of
from neutreno.config.options import EXECUTION
from neutreno.config.words import key_of
from neutreno.errors import InputError
from neutreno.files import UNFINISHED, make_folder, replacing
from neutreno.records import read_json, read_yaml, record_problem
from neutreno.variants import describe, joined, model_words, words

LAST = "last.ckpt"
FORMAT = 5  # of result.json; a folder of another one is named and left out


def default_name(composed: Composed) -> str:
    """A readable folder name without ``=`` or ``,``: data, model and axes as built with their labelled settings, the
    seed, and what was typed beyond that."""
    number = composed.settings["seed"]
    name = _words_of(composed, [f"seed{number}"])
    if len(name) > 150:  # file systems end at 255 bytes; a digest keeps two long names apart
        start, seed = name[:140], rf"-seed{number}(?!\d)"
        rest = re.sub(seed, "-seed", name) if re.search(seed, start) else name  # seeds of one row end alike
        name = f"{start}-{_digest(rest)}"
    return name


def group_name(composed: Composed) -> str:
    """What runs of one configuration share, whatever their seeds: :func:`default_name` without it, in at most 128
    characters, as W&B takes."""
    name = _words_of(composed, [])
    return name if len(name) <= 128 else f"{name[:119]}-{_digest(name)}"


def _words_of(composed: Composed, seed: list[str]) -> str:
    described = describe(composed)
    settings = described["settings"]
    parts = [str(settings["data"]), model_words(described, "_", joined), *words(described, "-", joined), *seed]
    told = {"model", "data", "seed", *described["labels"]}
    told |= {key for axis in described["axes"] for key in (axis, f"{axis}._target_")}  # it is called by what is built
    for word in sorted(composed.overrides):
        key, value = key_of(word), word.partition("=")[2]
        if key in told or mark_of(key, composed.settings) is EXECUTION:
            continue
        if key not in composed.choices and re.fullmatch(r"'?[^\[\]{},]*/[^\[\]{},]*", value):
            value = Path(value.strip("'")).name  # of a run folder or file
        parts.append(f"{key}-{value}")
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class RunFolder:
    """A folder that is the only record of a run.

    Absent: run. There and unfinished: continue with ``resume=true``, refuse otherwise. Finished: with ``resume=true``
    nothing is left to do; refuse otherwise.
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        name = str(name)
        if re.search(r"[/\\=,]", name) or name in (".", ".."):
            raise InputError(f"name={name} is not a folder name: leave out / \\ = and ,")
        if (size := len(os.fsencode(name))) > 240:  # file systems end at 255 bytes
            raise InputError(f"name={name[:40]}… has {size} bytes; at most 240 are possible")
        self.path = Path(path) / name
        self.config_file = self.path / "config.yaml"
        self.result_file = self.path / "result.json"
        self.last_checkpoint = self.path / "checkpoints" / LAST
        self.best_checkpoint = self.path / "checkpoints" / "best.ckpt"

    def record(self) -> dict[str, Any]:
        """``result.json``; empty where the run has not begun."""
        return read_result(self.path) if self.result_file.exists() else {}

    @property
    def status(self) -> str | None:
        return self.record().get("status")

    def check(self, composed: Composed, resume: bool) -> None:
        """Whether a run of ``composed`` may use this folder.

        Raises:
            InputError: it may not, and why.
        """
        try:
            os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):  # of the latter create() speaks
            return
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; choose another name=… or output_dir=FOLDER") from error
        if not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a run folder; choose another name=… or output_dir=FOLDER")
        if not resume:
            state = "holds a finished run" if self.status == "finished" else "exists already"
            raise InputError(f"{self.path} {state}; resume=true continues it, name=… starts another")
        there = {file.name for file in self.path.iterdir() if not file.name.endswith(UNFINISHED)}
        if there <= {".lock"}:  # killed before it began
            return
        if not self.config_file.exists():
            raise InputError(f"{self.path} holds no config.yaml to resume from; choose another name=…")
        before, now = (identity_of(settings, composed.settings) for settings in (self.config(), composed.settings))
        if said := differences(before, now):
            raise InputError(f"{self.path} is a run with other settings: {said}; choose another name=…")
        if (when := self.record().get("first_checkpoint")) and not self.last_checkpoint.exists():
            gone = f"{self.last_checkpoint} is gone, which this run had written by {when}"
            raise InputError(f"{gone}; restore it, or start another run with name=…")

    def check_data(self, digests: Callable[[], dict[str, str] | None]) -> None:
        """Whether the data is that of the run so far; ``digests`` reads it, and is called only if the record has some;
        None: nobody knows.

        Raises:
            InputError: it is other data; names the splits.
        """
        before = self.record().get("digests")
        now = digests() if before is not None else None
        if now is not None and (said := other_splits(before, now)):
            raise InputError(f"{self.path} is a run on other data: {said}; give that data, or choose another name=…")

    def create(self, config: dict[str, Any], resume: bool) -> None:
        """Make the folder, keep other processes out of it until this one ends, and write the config.

        Raises:
            InputError: another process came first.
        """
        try:
            make_folder(self.path, exist_ok=resume)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115  (held until the process ends)
        except FileExistsError as error:
            raise InputError(f"{self.path} exists already; resume=true continues it, name=… starts another") from error
        except OSError as error:
            said = f"cannot write in {self.path}: {error.strerror}"
            raise InputError(f"{said}; choose another output_dir=FOLDER") from error
        try:  # a lock of this process alone: loading workers that outlive a kill for a moment must not keep it
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            said = f"{self.path} is being written by another process"
            raise InputError(f"{said}; wait for it, or choose another name=…") from error
        except OSError:  # a file system without locks
            pass
        for leftover in self.path.rglob(f"*{UNFINISHED}"):
            leftover.unlink()
        with replacing(self.config_file) as file:
            file.write(OmegaConf.to_yaml(config))
        vars(self).pop("_content", None)

    def config(self) -> dict[str, Any]:
        """The resolved config, as plain data.

        Raises:
            InputError: there is none, or it is not what a run writes.
        """
        return copy.deepcopy(self._content)

    @cached_property
    def _content(self) -> dict[str, Any]:
        content = read_yaml(self.config_file)
        sections = ("data", "model", "task", "probe", "trainer", "variants")
        if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in sections):
            raise InputError(f"{self.config_file} is not the config of a run")
        if type(content.get("seed")) is not int:
            raise InputError(f"{self.config_file} is not the config of a run: it has no seed")
        return content


def read_result(run: str | Path) -> dict[str, Any]:
    """``result.json`` of a run folder.

    Raises:
        InputError: not a run folder, or not what a run writes.
    """
    path = Path(run) / "result.json"
    result = read_json(path)
    if not isinstance(result, dict) or "status" not in result:
        raise InputError(f"{path} is not the result of a run")
    if result.get("format") != FORMAT:
        was = result.get("format", "an older one")
        raise InputError(f"{path} has the format {was}, not {FORMAT} as this version writes and reads; run it again")
    needed = {"name", "settings", "metrics", "oversmoothing"} if result["status"] == "finished" else set()
    if not needed <= result.keys():
        raise InputError(f"{path} is not the result of a run")
    if problem := record_problem(result):
        raise InputError(f"{path} was not written by a run ({problem}); was it edited?")
    return result


def identity(settings: dict[str, Any], is_execution: Callable[[str], bool]) -> dict[str, Any]:
    """What a run is, as flat keys: its settings without what only says where and how it is executed."""
    model = {k: v for k, v in settings["model"].items() if k not in settings["variants"]}  # axes stand at the top
    found = {key: value for key, value in flat({**settings, "model": model}).items() if not is_execution(key)}
    if found.get("trainer.max_steps", -1) != -1:
        found.pop("trainer.max_epochs", None)  # counted from the steps when the run starts
    return found


def identity_of(settings: dict[str, Any], marked_by: dict[str, Any] | None = None) -> dict[str, Any]:
    """:func:`identity`, by the marks of the options of the classes that ``marked_by`` names (default: the same)."""
    marks = settings if marked_by is None else marked_by
    return identity(settings, lambda key: mark_of(key, marks) is EXECUTION)


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """``KEY=NOW (was BEFORE), …``"""
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return ", ".join(f"{key}={now.get(key)} (was {before.get(key)})" for key in differ)


def other_splits(before: dict[str, str], now: dict[str, str]) -> str:
    """``the train and val splits differ``"""
    differ = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return f"the {' and '.join(differ)} split{'s differ' if differ[1:] else ' differs'}" if differ else ""


def check_origin(found: Any, run: dict[str, Any], source: Any, remedy: str) -> None:
    """Refuse a checkpoint in a run's folder that another run wrote: its weights may fit in silence.

    Args:
        found: what the checkpoint says of its run; run: the same of this run: ``settings`` (see :func:`identity`), and
            ``digests`` of the data where they are to be compared.

    Raises:
        InputError: it says nothing, or something else; names what differs.
    """
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("settings", "digests")):
        raise InputError(f"{source} does not say which run wrote it; {remedy}")
    said = differences(found["settings"], run["settings"])
    said = said or other_splits(found["digests"], run.get("digests", found["digests"]))
    if said:
        raise InputError(f"{source} was written by another run: {said}; {remedy}")


def shared(settings: dict[str, Any], is_execution: Callable[[str], bool]) -> dict[str, Any]:
    """What runs have in common that differ in their seed alone: their identity without seeds, and without the seed in
    the weights that they start from, those of the run of the same seed."""
    found, seed, place = {}, settings["seed"], f"{settings.get('output_dir')}/"
    for key, value in identity(settings, is_execution).items():
        if key.rpartition(".")[2] == "seed" and value == seed:
            continue
        if isinstance(value, str) and key.startswith("model."):
            value = re.sub(rf"seed{seed}(?!\d)", "seed", value).removeprefix(place)
        found[key] = whole(value)
    return found


def whole(value: Any) -> Any:
    """1.0 as 1: the same number, however it was typed."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def packages(settings: dict[str, Any]) -> set[str]:
    """Those that hold the classes which the settings name."""
    named = (value for key, value in flat(settings).items() if key.endswith("_target_"))
    return {path.partition(".")[0] for path in named if isinstance(path, str)}


def execution_keys(composed: Composed) -> list[str]:
    """The keys of a run's settings that only say where and how it is executed, for its record."""
    return [key for key in flat(composed.settings) if mark_of(key, composed.settings) is EXECUTION]
