"""Composing a config of the project's files, those of a package outside it (``--config-dir``), and what was typed."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

_INSIDE = Path(__file__).parents[1] / "configs"  # a wheel's; beside the package, anyone's configs may be installed
CONFIGS = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[2] / "configs"  # a checkout's


def piecewise(at: float, table: dict[str, Any]) -> Any:
    """``${piecewise:AT,${TABLE}}`` in a config: of ``{'0': A, '6': B}`` A where ``AT`` is below 6, else B; A also where
    ``AT`` is no number, which the gate judges where it is set."""
    at = at if isinstance(at, int | float) else -math.inf
    return table[max((key for key in table if float(key) <= at), key=float, default=min(table, key=float))]


OmegaConf.register_new_resolver("piecewise", piecewise, replace=True)


@dataclass
class Composed:
    """A config, and how it came about.

    Attributes:
        config: as Hydra composed it, without Hydra's section.
        choices: the option chosen in every group.
        overrides: what was typed.
        config_dirs: further folders of config files.
        called: the call in Python that it came from; None: a command.
    """

    config: DictConfig
    choices: dict[str, str | None]
    overrides: list[str]
    config_dirs: list[str] = field(default_factory=list)
    called: str | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as plain data, every interpolation resolved."""
        return OmegaConf.to_container(self.config, resolve=True)

    def anew(self) -> Composed:
        """The same with ``settings`` read again, after ``config`` was changed."""
        return replace(self)


def compose(overrides: Sequence[str] = (), name: str = "train", config_dirs: Sequence[str | Path] = ()) -> Composed:
    """What the command line would compose of ``overrides``.

    Args:
        config_dirs: folders of config files beside the project's own.

    Raises:
        HydraException, OmegaConfBaseException: it cannot be composed; :func:`neutreno.config.words.explained` says why.
    """
    folders = [str(Path(folder).resolve()) for folder in config_dirs]
    with _alone(), hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(name, overrides=[*overrides, *searchpath(folders)], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_readonly(config, False)
    with open_dict(config):
        del config["hydra"]
    return Composed(config, choices, list(overrides), folders)


def composed_files(words: Sequence[str], name: str, config_dirs: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """The files that :func:`compose` merges, in that order, each with the key that it stands below ("": at the top)."""
    folders = [str(Path(folder).resolve()) for folder in config_dirs]
    with _alone(), hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list(name, [*words, *searchpath(folders)], RunMode.RUN).defaults
    places = [
        (default, [Path(folder, f"{default.config_path}.yaml") for folder in (CONFIGS, *folders)])
        for default in defaults
    ]
    return [(file, default.package or "") for default, files in places for file in files if file.is_file()]


_HYDRA = threading.RLock()


@contextmanager
def _alone() -> Iterator[None]:
    """Hydra has one state in a process: a caller's own is set aside, and other threads wait."""
    with _HYDRA:
        there = GlobalHydra.instance()
        before, there.hydra = there.hydra, None
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = before


def searchpath(folders: Sequence[str]) -> list[str]:
    """Hydra's word for further folders of config files; none where there are none."""
    quoted = ",".join('"file://{}"'.format(folder.replace('"', '\\"')) for folder in folders)
    return [f"hydra.searchpath=[{quoted}]"] if folders else []
