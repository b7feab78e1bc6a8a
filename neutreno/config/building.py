"""From ``_target_`` to an object: finding what a dotted path names, trusting it or not, and building it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.errors import InstantiationException

from neutreno.errors import InputError


def locate(path: Any, key: str = "_target_") -> Callable:
    """What the dotted ``path`` of a class or function names; ``key`` is where it stands.

    An error within the module is that module's own and keeps its traceback.

    Raises:
        InputError: there is no such module, or nothing of that name in it.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise InputError(f"{key}={path} is no dotted path of a class, such as package.module.Class")
    names = path.split(".")
    module, found = None, 0
    for end in range(1, len(names)):
        name = ".".join(names[:end])
        try:
            module, found = importlib.import_module(name), end
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there and misses another one
            break
    if module is None:
        raise InputError(f"{key}={path}: there is no module {names[0]}; is it installed, or its folder on PYTHONPATH?")
    thing: Any = module
    for name in names[found:]:
        if not hasattr(thing, name):
            near = difflib.get_close_matches(name, dir(thing), 1)
            where = getattr(thing, "__name__", type(thing).__name__)
            raise InputError(f"{key}={path}: {where} has no {name}" + (f"; did you mean {near[0]}?" if near else ""))
        thing = getattr(thing, name)
    if not callable(thing):
        raise InputError(f"{key}={path} is no class or function")
    return thing


def build(node: Any, **supplied: Any) -> Any:
    """Instantiate a config's part as Hydra does, but let an error of its constructor through as it is."""
    try:
        return hydra.utils.instantiate(node, **supplied, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise InputError(" ".join(str(error).split())) from error  # Hydra's own refusal


def build_trusted(node: Any, trust: Sequence[str] = (), key: str = "the run's config", **supplied: Any) -> Any:
    """The same for a part of a run folder's config, which is data of anybody's: see :func:`check_trusted`."""
    check_trusted(node, trust, key)
    return build(node, **supplied)


def check_trusted(node: Any, trust: Sequence[str] = (), where: str = "the run's config") -> None:
    """Refuse a run folder's part unless building it can do nothing but build parts of networks, data and tasks.

    It is plain data; each ``_target_`` names a network part, data set or task, or a builder registered by
    :func:`neutreno.config.options.builds`, where it is defined, in this package or in one of ``trust`` (``mine`` is
    ``mine`` and ``mine.*``); and its options are those that the gate allows.

    Raises:
        InputError: anything else.
    """
    from neutreno.config.gate import part_problems

    if not isinstance(node, dict) or "_target_" not in node:
        raise InputError("the run's config is not one that a run writes: data, model and task must name a _target_")
    _check_plain(node, trust)
    if problems := part_problems(node, where):
        raise InputError("\n".join(problems))


def _check_plain(node: Any, trust: Sequence[str]) -> None:
    if type(node) is dict:
        if "_target_" in node:
            _check_target(node["_target_"], trust)
        for key, value in node.items():
            if not isinstance(key, str):
                raise InputError(
                    f"the run's config holds the key {key!r}, which is no text; a run writes none; refused"
                )
            if key.startswith("_") and key not in ("_target_", "_partial_"):
                raise InputError(f"the run's config holds {key}; a run writes none; refused")
            _check_plain(key, trust)
            _check_plain(value, trust)
    elif type(node) is list:
        for value in node:
            _check_plain(value, trust)
    elif isinstance(node, str):
        if "${" in node:
            raise InputError(f"the run's config holds the interpolation {node!r}; a run writes none; refused")
    elif node is not None and type(node) not in (bool, int, float):  # YAML makes tuples, sets and dates too
        raise InputError(f"the run's config holds a {type(node).__name__}; a run writes none; refused")


def check_package(path: Any, trust: Sequence[str]) -> None:
    """Refuse a dotted path of a run folder that leads outside this package and those of ``trust``.

    Raises:
        InputError: it does.
    """
    package = path.partition(".")[0] if isinstance(path, str) else None
    if not isinstance(path, str) or not any(path.startswith(f"{name}.") for name in ("neutreno", *trust)):
        raise InputError(
            f"the run's config names {path!r}, which is not a part of neutreno; refused. If that package is yours "
            f"or you have read it: trust={package}"
        )


def _check_target(path: Any, trust: Sequence[str]) -> None:
    check_package(path, trust)
    from lightning import LightningDataModule
    from torch import nn

    try:
        found = locate(path, "the run's config")
    except InputError as error:
        raise InputError(f"{error}; refused") from error
    part = inspect.isclass(found) and issubclass(found, nn.Module | LightningDataModule)
    builder = inspect.isfunction(found) and hasattr(found, "__builds__")
    if f"{found.__module__}.{found.__qualname__}" != path or not (part or builder):
        raise InputError(f"the run's config names {path!r}, which is no network part, data set or task; refused")
