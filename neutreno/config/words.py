"""What is typed: the key that a word sets, what was probably meant, and why Hydra could not compose it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neutreno.config.building import locate
from neutreno.config.composing import CONFIGS, Composed, compose
from neutreno.config.options import SUPPLIED, options_of
from neutreno.errors import InputError

NO_GROUPS = ("hydra", "table")  # folders of config files that no word chooses from
SYNONYMS = {  # what people call the last part of a key elsewhere
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "steps": "max_steps",
    "optimizer": "opt",
    "optim": "opt",
    "wd": "weight_decay",
    "lambda": "lam",
    "workers": "num_workers",
    "gpus": "devices",
    "bs": "batch_size",
    "out": "output_dir",
}


def key_of(word: str) -> str:
    """The key or group that a word of the command line sets: ``+data.root=x`` → ``data.root``."""
    group, _, package = word.lstrip("+~").partition("=")[0].partition("@")
    return package or group


def explained(
    error: Exception, words: Sequence[str], schema: str = "train", config_dirs: Sequence[str] = ()
) -> InputError:
    """All that is wrong with what was typed, where Hydra names the first problem alone, in its own words."""
    problems: list[str] = []
    chosen: list[str] = []
    keys: list[tuple[str, Override]] = []
    for word in words:
        try:
            override = _parse(word)
        except HydraException as syntax:
            said = first_line(syntax).rstrip(".")
            problems.append(f"{word} is not KEY=VALUE: {said}; quote what holds , = or spaces")
            continue
        if not _folders(override.key_or_group, config_dirs):
            keys.append((word, override))
        elif found := _choice_problem(override, config_dirs):
            problems.append(found)
        else:
            one = f"{word.partition('=')[0]}={_choices(override)[0]}" if override.is_sweep_override() else word
            try:
                compose([*chosen, one], schema, config_dirs)
                chosen.append(one)
            except HydraException as wrong:
                problems.append(f"{word}: {_why_not(override, chosen, wrong, schema, config_dirs)}")
    try:
        base = compose(chosen, schema, config_dirs)
    except (HydraException, OmegaConfBaseException):
        return InputError("\n".join(problems) or first_line(error))
    there = {*flat_keys(OmegaConf.to_container(base.config, resolve=False))}
    for word, override in keys:
        key = override.key_or_group
        if key not in there and not (key.startswith("hydra.") or override.is_add() or override.is_force_add()):
            hint = f"; its class takes it: +{word}" if _is_option(key, base) else near(key, base)
            problems.append(f"no key {key}{hint}; --help lists the keys and groups")
    return InputError("\n".join(problems) or first_line(error))


def compose_typed(words: Sequence[str], name: str = "train", config_dirs: Sequence[str] = ()) -> Composed:
    """:func:`~neutreno.config.composing.compose`.

    Raises:
        InputError: it cannot be composed; says why.
    """
    try:
        return compose(words, name, config_dirs)
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, words, name, config_dirs) from error


def _parse(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _is_option(key: str, composed: Composed) -> bool:
    """Whether a key is an option of the class named there, which the config's file leaves at its default."""
    part, _, name = key.partition(".")
    node = composed.config.get(part)
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        return False
    option = options_of(locate(node._target_)).get(name)
    return option is not None and option.mark is not SUPPLIED


def check_choices(words: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
    """What Hydra stumbles over before it composes: a group that is set to null or to a number.

    Raises:
        InputError: a line for each.
    """
    problems = []
    for word in words:
        with contextlib.suppress(HydraException):  # said when it is composed
            override = _parse(word)
            if _folders(override.key_or_group, config_dirs):
                odd = any(not isinstance(value, str | dict) for value in _choices(override))
                problems.append(_choice_problem(override, config_dirs) if odd else None)
    if problems := [*filter(None, problems)]:
        raise InputError("\n".join(problems))


def _folders(group: str, config_dirs: Sequence[str]) -> list[Path]:
    name = group.partition("@")[0]
    if "." in group or name in NO_GROUPS:
        return []
    return [p for f in (*config_dirs, CONFIGS) if (p := Path(f) / name).is_dir()]


def options_in(group: str, config_dirs: Sequence[str] = ()) -> list[str]:
    """All options of a group, those in folders below it as ``folder/option``."""
    found = [(folder, file) for folder in _folders(group, config_dirs) for file in folder.rglob("*.yaml")]
    return sorted({file.relative_to(folder).with_suffix("").as_posix() for folder, file in found})


def _choice_problem(override: Override, config_dirs: Sequence[str]) -> str | None:
    group, there = override.key_or_group, options_in(override.key_or_group, config_dirs)
    for value in [] if override.is_delete() else _choices(override):
        name = "null" if value is None else str(value)
        if name in there or name.startswith("${"):
            continue
        if below := [option for option in there if option.startswith(f"{name}/")]:
            return f"{group}={name} is a folder of options; available: {', '.join(below)}"
        ends = [option for option in there if option.rpartition("/")[2] == name]
        if alike := ends or difflib.get_close_matches(name, there, 3):
            return f"no option {group}={name}; did you mean {' or '.join(alike)}?"
        return f"no option {group}={name}; available: {', '.join(there)}"
    return None


def _choices(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return [*map(str, override.sweep_string_iterator())]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _why_not(override: Override, chosen: list[str], wrong: Exception, schema: str, config_dirs: Sequence[str]) -> str:
    said = first_line(wrong)
    if "Could not override" not in said:
        return said
    base = compose(chosen, schema, config_dirs)
    axes = base.config.get("variants") or {}
    there = f"its axes are {', '.join(axes)}" if axes else "it has none"
    return f"model={base.choices['model']} has no axis {override.key_or_group}; {there}"


def near(key: str, composed: Composed) -> str:
    """``; did you mean attention.lam?`` of the keys that there are, or an option of a group that would bring it."""
    settings = OmegaConf.to_container(composed.config, resolve=False)
    there = [k for k in flat_keys(settings) if k.partition(".")[0] not in ("recipe", "labels", "variants") and k != key]
    section, _, last = key.rpartition(".")
    last = SYNONYMS.get(last, last)
    if section in there:  # where it was looked for, and nowhere else
        there = [k for k in there if k.rpartition(".")[0] == section]
    ends = {k: k.rpartition(".")[2] for k in there}
    found = [k for k in there if ends[k] == last]
    bring = [f"{axis}={o}" for axis in settings.get("variants") or {} for o in _bringing(axis, last, composed)]
    if bring and not found:
        return f"; {', '.join(bring)} would add {last}"
    if not found:
        alike = difflib.get_close_matches(last, ends.values(), 2, 0.75)
        found = difflib.get_close_matches(key, there, 2, 0.8) or [k for k in there if ends[k] in alike]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _bringing(group: str, name: str, composed: Composed) -> list[str]:
    """Options of a group whose file sets ``name``."""
    files = [f for folder in _folders(group, composed.config_dirs) for f in sorted(folder.glob("*.yaml"))]
    return [file.stem for file in files if name in (yaml.safe_load(file.read_text()) or {})]


def flat_keys(node: dict[str, Any], start: str = "") -> Iterator[str]:
    """Dotted keys of all sections and values."""
    for name, value in node.items():
        if not str(name).startswith("_"):
            yield f"{start}{name}"
            if isinstance(value, dict):
                yield from flat_keys(value, f"{start}{name}.")


def close(name: str, known: Sequence[str] | dict[str, Any], start: str) -> str:
    wanted = SYNONYMS.get(name, name)
    alike = [wanted] if wanted in known else difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {start}{alike[0]}?" if alike else ""


def first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())


def full_key(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    return key or str(error).rpartition("full_key: ")[2].split("\n")[0]
