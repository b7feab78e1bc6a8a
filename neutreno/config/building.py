"""From ``_target_`` to an object: finding what a dotted path names, and building it."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import InstantiationException

from neutreno.errors import InputError

TOO_LARGE = re.compile("can't allocate memory|Storage size calculation overflowed")


def locate(path: Any, key: str = "_target_") -> Callable:
    """What the dotted ``path`` of a class or function names; ``key`` is where it stands.

    An error within the module is that module's own and keeps its traceback.

    Raises:
        InputError: there is no such module, or nothing of that name in it.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise InputError(f"{key}={path} is not the dotted path of a class, such as package.module.Class")
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
        raise InputError(f"{key}={path}: no module {names[0]}; is it installed, or its folder on PYTHONPATH?")
    thing: Any = module
    for name in names[found:]:
        if not hasattr(thing, name):
            near = difflib.get_close_matches(name, dir(thing), 1)
            where = getattr(thing, "__name__", type(thing).__name__)
            raise InputError(f"{key}={path}: {where} has no {name}" + (f"; did you mean {near[0]}?" if near else ""))
        thing = getattr(thing, name)
    if not callable(thing):
        raise InputError(f"{key}={path} is not a class or function")
    return thing


def build(node: Any, **supplied: Any) -> Any:
    """Instantiate a config's part as Hydra does, but let an error of its constructor through as it is.

    Raises:
        InputError: Hydra refuses it, or it takes more memory than the machine gives.
    """
    try:
        return hydra.utils.instantiate(node, **supplied, _convert_="all")
    except InstantiationException as error:
        if error.__cause__ is None:
            raise InputError(" ".join(str(error).split())) from error
        if isinstance(error.__cause__, RuntimeError) and TOO_LARGE.search(str(error.__cause__)):
            part = node.get("_target_", "a part of the config")
            raise InputError(f"{part} takes more memory than there is; make it smaller") from error
        raise error.__cause__ from None
