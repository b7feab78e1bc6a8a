"""Shared by the commands composed by Hydra: arguments in any order, one gate, one way of reporting errors."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neutreno.cli import WIDTH
from neutreno.config.composing import CONFIGS, Composed, searchpath
from neutreno.config.gate import check_settings
from neutreno.config.keys import explanations, listed
from neutreno.config.words import NO_GROUPS, check_choices, compose_typed, explained, options_in
from neutreno.errors import InputError
from neutreno.stopping import die_with_rank_zero


def run(name: str, words: Sequence[str], job: Callable[[Composed, bool], None]) -> None:
    """Compose ``configs/NAME.yaml`` with ``words`` and call ``job(composed, is_sweep)``, for every run of a sweep.

    ``--config-dir`` may stand anywhere, and more than once.

    Raises:
        InputError: all that is wrong with the words.
    """
    die_with_rank_zero()
    words, config_dirs = split_config_dirs(words)
    typed = [word for word in words if not word.startswith("-")]
    check_choices(typed, config_dirs)
    if {"--help", "-h"} & set(words):
        print(help_text(name, typed, config_dirs))
        return
    if not of_hydra(words):  # whose own main composes twice
        composed = compose_typed(words, name, config_dirs)
        check_settings(composed, name)  # before anything imports torch
        return job(composed, False)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole
    given = sys.argv
    failed: list[BaseException] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)
    def main(config: DictConfig) -> None:
        sys.argv = given  # Lightning starts the other processes of a run with these words
        hydra_config = HydraConfig.get()
        try:
            choices = dict(hydra_config.runtime.choices)
            overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
            composed = Composed(config, choices, overrides, config_dirs)
            is_sweep = hydra_config.mode == RunMode.MULTIRUN
            if not is_sweep:  # whose runs are checked one by one
                check_settings(composed, name)
            job(composed, is_sweep)
        except (Exception, KeyboardInterrupt) as error:
            failed.append(error)  # raised below: Hydra would add another line

    sys.argv = [given[0], *words, *searchpath(config_dirs)]
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, typed, name, config_dirs) from error
    finally:
        sys.argv = given
    if failed:
        raise failed[0]


def of_hydra(words: Sequence[str]) -> list[str]:
    """Those that Hydra's own main alone takes: its options and settings."""
    return [w for w in words if w.startswith("-") or w.lstrip("+~").startswith("hydra") or "${hydra:" in w]


def help_text(name: str, words: Sequence[str], config_dirs: Sequence[str]) -> str:
    """Commands, groups with their options, and the config that ``words`` compose; Hydra's own takes twice as long."""
    composed = compose_typed(words, name, config_dirs)
    text = OmegaConf.load(CONFIGS / "hydra" / "help" / f"{name}.yaml")
    folders = {p.name for folder in (*config_dirs, CONFIGS) for p in Path(folder).iterdir() if p.is_dir()}
    groups = [_hanging(f"{g}: ", ", ".join(options_in(g, config_dirs))) for g in sorted(folders - {*NO_GROUPS})]
    keys = [_line(*found) for found in listed(composed.config, explanations(words, name, config_dirs))]
    parts = [text.header, "== Groups (group=option) ==", "\n".join(groups), "== Config (key=value) ==", "\n".join(keys)]
    return "\n\n".join([*parts, text.footer]).rstrip()


EXPLAINED_AT = 32  # column


def _hanging(start: str, text: str) -> str:
    return textwrap.fill(start + text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _line(key: str, value: str, said: str) -> str:
    """A key with its value and what it is; a section with its class, after an empty line where it is one at the top."""
    if not key.endswith("="):
        head = _hanging(f"{key}: ", "; ".join(filter(None, [value, said])))
        return head if "." in key else f"\n{head}"
    left, indent = f"  {key}{value}", " " * EXPLAINED_AT
    lines = textwrap.wrap(said, WIDTH - EXPLAINED_AT) or [""]
    beside = len(left) < EXPLAINED_AT - 1
    first = [f"{left:{EXPLAINED_AT}}{lines[0]}".rstrip()] if beside else [left]
    return "\n".join([*first, *(indent + line for line in lines[beside:] if line)])


def split_config_dirs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(all other words, the folders after ``--config-dir``).

    Raises:
        InputError: one is no folder, or the project has a file of the same name as one of its own.
    """
    rest, folders, waiting = [], [], False
    for word in words:
        option, equals, value = word.partition("=")
        if waiting:
            folders.append(word)
            waiting = False
        elif option in ("--config-dir", "-cd"):
            if equals and not value:
                raise InputError("--config-dir has no value: give a folder of config files")
            waiting = not equals
            folders += [value] if equals else []
        else:
            rest.append(word)
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"--config-dir {folder}: no such folder")
    if waiting:
        raise InputError("--config-dir has no value: give a folder of config files")
    resolved = [path for path in map(Path.resolve, map(Path, folders)) if path != CONFIGS.resolve()]
    ours = [file.relative_to(CONFIGS) for file in sorted(CONFIGS.rglob("*.yaml"))]
    for folder in resolved:
        if hidden := [str(file) for file in ours if (folder / file).exists()]:
            raise InputError(f"--config-dir {folder}: the project's own {hidden[0]} hides yours; rename it")
    return rest, list(dict.fromkeys(map(str, resolved)))
