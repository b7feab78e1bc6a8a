"""A run folder is data of anybody's: what may be built of it, and what is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from neutreno.config.building import build, locate
from neutreno.config.gate import part_problems, parts_within, refuse
from neutreno.config.options import START, Option, options_of
from neutreno.errors import InputError, one_line


def build_trusted(node: Any, trust: Sequence[str] = (), key: str = "the run's config", **supplied: Any) -> Any:
    """Build a part of a run folder's config, after :func:`check_trusted` and :func:`check_reading`. It starts from no
    weights: trained ones follow."""
    check_trusted(node, trust, key)
    node = without_start(node)
    check_reading(node, key)
    return build(node, **supplied)


def without_start(node: dict[str, Any]) -> dict[str, Any]:
    """A checked part without the weights that it would start from."""
    options = options_of(locate(node["_target_"]))
    return {name: value for name, value in node.items() if name not in options or options[name].mark is not START}


def check_trusted(node: Any, trust: Sequence[str] = (), where: str = "the run's config") -> None:
    """Refuse a run folder's part unless building it can do nothing but build parts of networks, data and tasks.

    It is plain data; each ``_target_`` names a network part, data set or task, or a builder registered by
    :func:`neutreno.config.options.builds`, where it is defined, in this package or in one of ``trust`` (``mine`` is
    ``mine`` and ``mine.*``); and its options are those that the gate allows.

    Raises:
        InputError: anything else.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise InputError("the run's config is not one that a run writes: data, model and task must name a _target_")
    _check_plain(node, trust)
    refuse(part_problems(node, where))


def _check_plain(node: Any, trust: Sequence[str]) -> None:
    odd = None
    if type(node) is dict:
        if "_target_" in node:
            _check_target(node["_target_"], trust)
        allowed = ("_target_", "_partial_")
        keys = [key for key in node if not isinstance(key, str) or (key.startswith("_") and key not in allowed)]
        odd = f"the key {keys[0]!r}" if keys else None
    elif isinstance(node, str):
        odd = f"the interpolation {node!r}" if "${" in node else None
    elif node is not None and type(node) not in (list, bool, int, float):  # YAML makes tuples, sets and dates too
        odd = f"a {type(node).__name__}"
    if odd is not None:
        raise InputError(f"the run's config holds {odd}; a run writes none; refused")
    for inner in (*node, *node.values()) if type(node) is dict else node if type(node) is list else ():
        _check_plain(inner, trust)


# A scheme of a URL, a chain of them, or a command: fsspec, Hugging Face datasets and WebDataset open these.
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]+:|://|::|pipe:", re.IGNORECASE)


def check_reading(node: dict[str, Any], key: str, typed: Sequence[str] = (), trust_readers: bool = False) -> None:
    """Refuse a checked part that chooses by itself what reads data, or names what is no path of this machine.

    Args:
        typed: keys that were typed anew, with their values here; these are the user's.
        trust_readers: take the options that decide what reads data (``READS``) as the run has them.

    Raises:
        InputError: names the key.
    """
    options = options_of(locate(node["_target_"], f"{key}._target_"))
    for name, value in node.items():
        where, option = f"{key}.{name}", options.get(name)
        judged = option is not None and not trust_readers and _decides(option, value, node, options)
        for place, leaf in _leaves(value, where):
            if any(f"{place}.".startswith(f"{word}.") for word in typed):
                continue
            if isinstance(leaf, str) and _leads_elsewhere(leaf):
                said = one_line(f"the run's config says {place}={leaf}"[:200])
                raise InputError(f"{said}, which is no path on this machine; refused unless {place} is typed")
            if judged and leaf is not None:
                how = f"type {where}=… again, or trust the run's: trust_readers=true (elsewhere --trust-readers)"
                said = one_line(f"the run's config says {where}={value}"[:200])
                raise InputError(f"{said}, which decides what reads the data, and may run code; refused. {how}")
        for place, part in parts_within(value, where).items():
            check_reading(part, place, typed, trust_readers)


def _decides(option: Option, value: Any, node: dict[str, Any], options: dict[str, Option]) -> bool:
    """Whether an option's value is another than the default's way to read data."""
    if option.reads is None or value == option.default:
        return False
    beside = option.reads.beside
    return beside is None or node.get(beside, options[beside].default) != options[beside].default


def _leads_elsewhere(text: str) -> bool:
    """Whether a library could take ``text`` for a URL or a command, braces expanded and white space removed."""
    text = re.sub(r"[\x00-\x20]", "", text)
    return bool(_ELSEWHERE.search(text)) or ("{" in text and ":" in text)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The plain values within a value by their keys, and the keys of dictionaries."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}.{name}", name
            yield from _leaves(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def check_package(path: Any, trust: Sequence[str]) -> None:
    """Refuse a dotted path of a run folder that leads outside this package and those of ``trust``.

    Raises:
        InputError: it does.
    """
    if not isinstance(path, str) or not path.startswith(tuple(f"{name}." for name in ("neutreno", *trust))):
        package, said = str(path).partition(".")[0], f"the run's config names {path!r}, which is not a part of neutreno"
        how = f"trust={package} (of evaluate; elsewhere --trust {package})"
        raise InputError(f"{said}; refused. If that package is yours or you have read it: {how}")


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
        raise InputError(f"the run's config names {path!r}, which is not a network part, data set or task; refused")
