"""The gate: what is wrong with a config is said before anything is built of it, all that is found together.

Two stages. The first needs no torch: groups, keys, and the settings that the project owns. The second imports the
classes that the config names and checks the options of their constructors, without calling one. Only what is said here,
or by an :class:`~neutreno.errors.InputError`, is a user's mistake; every other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from neutreno.config.building import locate
from neutreno.config.composing import CONFIGS, Composed, compose
from neutreno.config.options import EXECUTION, IDENTITY, SUPPLIED, Mark, Option, options_of
from neutreno.config.settings import SCHEMAS, Part, Parts
from neutreno.errors import InputError

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


def check(composed: Composed, schema: str = "train") -> None:
    """Both stages.

    Raises:
        InputError: a line for every problem that a stage finds.
    """
    for stage in (settings_problems, constructor_problems):
        if problems := list(dict.fromkeys(stage(composed, schema))):
            raise InputError("\n".join(problems))


# The first stage


def settings_problems(composed: Composed, schema: str = "train") -> Iterator[str]:
    """Keys that nothing takes, values that have none, and the project's own settings out of bounds."""
    try:
        settings = composed.settings
    except InterpolationKeyError as error:
        wanted, key = str(error).partition("'")[2].partition("'")[0], _full_key(error)
        if key in map(key_of, composed.overrides):
            yield f"{key}: there is no key {wanted} to take its value from"
            return
        if wanted in (composed.config.get("variants") or {}):
            yield f"model={composed.choices['model']} needs the axis {wanted}; choose {wanted}=…, do not remove it"
            return
        yield (
            f"this model is not made for this data set, which has no {wanted} for {key}; leave model=… out, and the "
            "data set chooses one that fits"
        )
        return
    except OmegaConfBaseException as error:
        yield f"{_full_key(error)}: {_first_line(error)}"
        return
    own = options_of(SCHEMAS[schema])
    if problem := own["variants"].problem(settings.get("variants"), "variants"):
        yield problem  # else every axis would be a key that nothing takes
        return
    known = {**own, **dict.fromkeys(settings["variants"])}
    for key, value in settings.items():
        if key not in known:
            yield f"no key {key}: nothing takes it{_near(key, composed)}"
        elif key in own:
            yield from _setting_problems(own[key], value, key)
    for axis in known.keys() - own.keys():
        if composed.choices.get(axis) is None or not isinstance(settings.get(axis), dict):
            yield f"variants.{axis}: the model declares this axis, but has no group {axis} in its defaults list"
        elif f"${{{axis}}}" not in OmegaConf.to_yaml(composed.config.model, resolve=False):
            yield f"model.{axis} is what {axis}=… says: set {axis}, or {axis}.KEY, instead"
    for key in map(key_of, composed.overrides):
        if key.partition(".")[0] in ("variants", "labels", "family"):
            yield f"{key} is declared by the model's file, and not to be typed"
    for key in missing(settings):
        yield f"{key} has no value; give one, {key}=…"
    yield from _recipe_problems(composed)


def _setting_problems(option: Option, value: Any, key: str) -> Iterator[str]:
    kind, nullable = _section(option.annotation)
    if option.mark is SUPPLIED:
        yield f"{key} is not to be set: the project sets it"
    elif kind is None:
        if problem := option.problem(value, key):
            yield problem
    elif value is None and nullable:
        return
    elif not isinstance(value, dict):
        yield f"{key}={value} is no section of settings; choose one of its group, or set its keys ({key}.KEY=…)"
    elif kind is Part:
        if "_target_" not in value:
            yield f"{key}._target_ has no value: it names the class that is built"
    elif kind is Parts:
        for name, part in value.items():
            if not isinstance(part, dict) or "_target_" not in part:
                yield f"{key}.{name} names no class by _target_"
    else:
        own = options_of(kind)
        if "_target_" in value and not hasattr(kind, "built"):
            yield f"{key}._target_ is not to be set: {key} is no class"
        for name, inner in value.items():
            if name == "_target_":
                continue
            if name in own:
                yield from _setting_problems(own[name], inner, f"{key}.{name}")
            elif not hasattr(kind, "built"):  # else the class that is named may take it
                yield f"no key {key}.{name}: nothing takes it{_close(name, own, f'{key}.')}"


def _section(annotation: Any) -> tuple[type | None, bool]:
    """The dataclass of a section, Part or Parts (None: it is a plain value), and whether null is allowed."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = [a for a in (get_args(annotation) or (annotation,)) if inspect.isclass(a)]
    found = next((k for k in kinds if k in (Part, Parts) or hasattr(k, "__dataclass_fields__")), None)
    return found, type(None) in kinds


def missing(node: Any, key: str = "") -> Iterator[str]:
    """Keys whose value is ``???``."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from missing(value, f"{key}.{name}" if key else str(name))
    elif node == "???":
        yield key


def _recipe_problems(composed: Composed) -> Iterator[str]:
    """Typed keys of ``recipe`` that nothing looks up: they would change the run's name, and nothing else."""
    if any(key_of(word) == "recipe" and "{" in word for word in composed.overrides):
        yield "recipe is a group of files: set a key of it, recipe.KEY=…"
    typed = [key for key in map(key_of, composed.overrides) if key.startswith("recipe.")]
    looked_up = OmegaConf.to_yaml(composed.config) if typed else ""
    for key in typed:
        if f"${{{key}}}" not in looked_up and f"oc.select:{key}," not in looked_up:
            yield f"{key}: nothing of this model and data set looks it up; leave it out"


# The second stage


def constructor_problems(composed: Composed, schema: str = "train", only: Sequence[str] | None = None) -> Iterator[str]:
    """What the constructors of all parts (or ``only`` of some) would not take."""
    settings = composed.settings
    for key, option in options_of(SCHEMAS[schema]).items():
        if only is not None and key not in only:
            continue
        kind, _ = _section(option.annotation)
        node = settings.get(key)
        if kind is Part and isinstance(node, dict):
            inner = {k: v for k, v in node.items() if k not in settings["variants"]} if key == "model" else node
            yield from part_problems(inner, key, supplied={"model"} if key == "task" else None)
        elif kind is Parts and isinstance(node, dict):
            for name, part in node.items():
                yield from part_problems(part, f"{key}.{name}")
        elif isinstance(node, dict) and hasattr(kind, "built"):  # a section that is a library's class' options too
            yield from _library_problems(node, key, kind)
    if only is None:
        for axis in settings["variants"]:
            yield from part_problems(settings[axis], axis, in_parent=True)
    yield from _named_metrics(settings)


def part_problems(
    node: dict[str, Any], key: str, supplied: set[str] | None = None, in_parent: bool = False
) -> list[str]:
    """What the constructor that ``node["_target_"]`` names would not take.

    Args:
        key: where the part stands.
        supplied: options that its parent gives it; None: not known here, so none counts as missing.
        in_parent: it is handed to what builds it; then ``_partial_`` is true where that has to give it something.
    """
    try:
        target = locate(node.get("_target_"), f"{key}._target_")
        options = options_of(target)
    except InputError as error:
        return [str(error)]
    problems = []
    for name, value in node.items():
        if name.startswith("_"):
            if name not in ("_target_", "_partial_") or (name == "_partial_" and not isinstance(value, bool)):
                problems.append(f"{key}.{name}={value} is not to be set: only _target_ and a boolean _partial_ are")
            continue
        where, option = f"{key}.{name}", options.get(name)
        if option is None:
            what = f"{target.__qualname__} takes no such option"
            problems.append(f"no key {where}: {what}{_close(name, options, f'{key}.')}")
        elif option.mark is SUPPLIED:
            problems.append(f"{where} is not to be set: what builds {target.__qualname__} gives it; leave it out")
        elif isinstance(value, dict) and "_target_" in value:
            problems += part_problems(value, where)
        elif problem := option.problem(value, where):
            problems.append(problem)
    if in_parent and not node.get("_partial_") and any(o.required and o.mark is SUPPLIED for o in options.values()):
        problems.append(f"{key}._partial_ has to be true: what builds {target.__qualname__} completes it")
    if supplied is not None and not node.get("_partial_"):
        given = {*node, *supplied}
        problems += [
            f"{key}.{name} has no value; give one, {key}.{name}=…"
            for name, option in options.items()
            if option.required and option.mark is not SUPPLIED and name not in given
        ]
    return problems


def _library_problems(node: dict[str, Any], key: str, kind: type) -> Iterator[str]:
    """What the library's class of a section would not take, of the keys that the project does not judge."""
    own, base = options_of(kind), locate(kind.built)
    try:
        target = locate(node.get("_target_"), f"{key}._target_")
    except InputError as error:
        yield str(error)
        return
    if not (inspect.isclass(target) and issubclass(target, base)):
        yield f"{key}._target_={node['_target_']} is no {kind.built}"
        return
    known, hints = inspect.signature(target).parameters, get_type_hints(base.__init__)
    for name, value in node.items():
        if (
            name not in own
            and name in hints
            and (problem := Option(name, hints[name], False).problem(value, f"{key}.{name}"))
        ):
            yield problem
        if not name.startswith("_") and name not in own and name not in known:
            yield f"no key {key}.{name}: {target.__qualname__} takes no such option{_close(name, known, f'{key}.')}"
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, dict) and "_target_" in part:
                where = f"{key}.{name}" + (f"[{number}]" if isinstance(value, list) else "")
                yield from part_problems(part, where)


def _named_metrics(settings: dict[str, Any]) -> Iterator[str]:
    from neutreno.callbacks.probe import probed

    try:
        probed(settings["probe"].get("measures", []))
    except InputError as error:
        yield str(error)


# What a key is to a run


def mark_of(key: str, settings: dict[str, Any], schema: str = "train") -> Mark:
    """The mark of a key, or of a group as the choice of another option; one that nothing describes is ``IDENTITY``."""
    head, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    option = options_of(SCHEMAS[schema]).get(head)
    if option is None:
        return _mark_in_part(settings.get(head), name) if name else IDENTITY
    kind, _ = _section(option.annotation)
    if not name or (kind in (None, Parts)):
        return option.mark
    if kind is Part:
        return EXECUTION if option.mark is EXECUTION else _mark_in_part(settings.get(head), name)
    inner = options_of(kind).get(name)
    return inner.mark if inner is not None else IDENTITY


def _mark_in_part(node: Any, name: str) -> Mark:
    if not isinstance(node, dict) or "_target_" not in node:
        return IDENTITY
    option = options_of(locate(node["_target_"])).get(name)
    return option.mark if option is not None else IDENTITY


def ways_of_execution(schema: str = "train") -> list[str]:
    """Groups and keys at the top of a config that only say where and how a run is executed."""
    return [name for name, option in options_of(SCHEMAS[schema]).items() if option.mark is EXECUTION]


def key_of(word: str) -> str:
    """The key or group that a word of the command line sets: ``+data.root=x`` → ``data.root``."""
    group, _, package = word.lstrip("+~").partition("=")[0].partition("@")
    return package or group


# What Hydra could not compose


def explained(
    error: Exception, words: Sequence[str], schema: str = "train", config_dirs: Sequence[str] = ()
) -> InputError:
    """All that is wrong with what was typed, where Hydra names the first problem alone, in its own words."""
    parser, problems, groups, keys = OverridesParser.create(), [], [], []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as syntax:
            problems.append(
                f"{word} is no KEY=VALUE: {_first_line(syntax).rstrip('.')}; quote what holds , = or spaces"
            )
            continue
        if not override.key_or_group.startswith("hydra."):
            (groups if _folders(override.key_or_group, config_dirs) else keys).append((word, override))
    chosen: list[str] = []
    for word, override in groups:
        if found := _choice_problem(override, config_dirs):
            problems.append(found)
            continue
        try:
            compose([*chosen, _first_of_sweep(word, override)], schema, config_dirs)
            chosen.append(_first_of_sweep(word, override))
        except HydraException as wrong:
            problems.append(f"{word}: {_why_not(override, chosen, wrong, schema, config_dirs)}")
    try:
        base = compose(chosen, schema, config_dirs)
    except (HydraException, OmegaConfBaseException):
        return InputError("\n".join(problems) or _first_line(error))
    there = set(flat_keys(OmegaConf.to_container(base.config, resolve=False)))
    for word, override in keys:
        if override.is_add() or override.is_force_add():
            continue
        key = override.key_or_group
        if key not in there:
            hint = f"; its class takes it: +{word}" if _is_option(key, base) else _near(key, base)
            problems.append(f"no key {key}{hint}; --help lists the keys and groups")
    return InputError("\n".join(problems) or _first_line(error))


def _is_option(key: str, composed: Composed) -> bool:
    """Whether a key is an option of the class named there, which the config's file leaves at its default."""
    part, _, name = key.partition(".")
    node = composed.config.get(part)
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        return False
    try:
        option = options_of(locate(node._target_)).get(name)
    except InputError:
        return False
    return option is not None and option.mark is not SUPPLIED


def check_choices(words: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
    """What Hydra stumbles over before it composes: a group that is set to null or to a number.

    Raises:
        InputError: a line for each.
    """
    problems = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:  # said when it is composed
            continue
        if _folders(override.key_or_group, config_dirs) and not override.is_delete():
            odd = [value for value in _choices(override) if not isinstance(value, str | dict)]
            there = ", ".join(options_in(override.key_or_group, config_dirs))
            problems += [
                f"no option {override.key_or_group}={'null' if v is None else v}; there are: {there}" for v in odd
            ]
    if problems:
        raise InputError("\n".join(problems))


def _folders(group: str, config_dirs: Sequence[str]) -> list[Path]:
    return [
        p for f in (*config_dirs, CONFIGS) if "." not in group and (p := Path(f) / group.partition("@")[0]).is_dir()
    ]


def options_in(group: str, config_dirs: Sequence[str] = ()) -> list[str]:
    """All options of a group, those in folders below it as ``folder/option``."""
    return sorted(
        {
            file.relative_to(folder).with_suffix("").as_posix()
            for folder in _folders(group, config_dirs)
            for file in folder.rglob("*.yaml")
        }
    )


def _choice_problem(override: Override, config_dirs: Sequence[str]) -> str | None:
    group, there = override.key_or_group, options_in(override.key_or_group, config_dirs)
    for value in _choices(override):
        if value is None or value in there or str(value).startswith("${"):
            continue
        below = [name for name in there if name.startswith(f"{value}/")]
        if below:
            return f"{group}={value} is a folder of options; there are: {', '.join(below)}"
        ends = [name for name in there if name.rpartition("/")[2] == str(value)]
        near = ends or difflib.get_close_matches(str(value), there, 3)
        if near:
            return f"no option {group}={value}; did you mean {' or '.join(near)}?"
        return f"no option {group}={value}; there are: {', '.join(there)}"
    return None


def _choices(override: Override) -> list[Any]:
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    return value if isinstance(value, list) else [value]


def _first_of_sweep(word: str, override: Override) -> str:
    if not override.is_sweep_override():
        return word
    return f"{word.partition('=')[0]}={next(iter(override.sweep_string_iterator()))}"


def _why_not(override: Override, chosen: list[str], wrong: Exception, schema: str, config_dirs: Sequence[str]) -> str:
    said = _first_line(wrong)
    if "Could not override" not in said:
        return said
    base = compose(chosen, schema, config_dirs)
    axes = base.config.get("variants") or {}
    there = f"its axes are {', '.join(axes)}" if axes else "it has none"
    return f"model={base.choices['model']} has no axis {override.key_or_group}; {there}"


def _near(key: str, composed: Composed) -> str:
    """``; did you mean attention.lam?`` of the keys that there are, or an option of a group that would bring it."""
    settings = OmegaConf.to_container(composed.config, resolve=False)
    there = [k for k in flat_keys(settings) if k.partition(".")[0] not in ("recipe", "labels", "variants") and k != key]
    last = SYNONYMS.get(key.rpartition(".")[2], key.rpartition(".")[2])
    section = key.rpartition(".")[0]
    if section in there:  # where it was looked for, and nowhere else
        there = [k for k in there if k.rpartition(".")[0] == section]
    found = [k for k in there if k.rpartition(".")[2] == last]
    bring = [f"{axis}={o}" for axis in settings.get("variants") or {} for o in _bringing(axis, last, composed)]
    if not found and not bring:
        ends = {k.rpartition(".")[2]: k for k in reversed(there)}
        close = difflib.get_close_matches(key, there, 2, 0.8) or difflib.get_close_matches(last, ends, 2, 0.75)
        found = [ends.get(k, k) for k in close]
    if not found:
        return f"; {', '.join(bring)} would bring {last}" if bring else ""
    return f"; did you mean {' or '.join(dict.fromkeys(found[:3]))}?"


def _bringing(group: str, name: str, composed: Composed) -> list[str]:
    """Options of a group whose file sets ``name``."""
    import yaml

    files = [f for folder in _folders(group, composed.config_dirs) for f in sorted(folder.glob("*.yaml"))]
    return [file.stem for file in files if name in (yaml.safe_load(file.read_text()) or {})]


def flat_keys(node: dict[str, Any], start: str = "") -> Iterator[str]:
    """Dotted keys of all sections and values."""
    for name, value in node.items():
        if not str(name).startswith("_"):
            yield f"{start}{name}"
            if isinstance(value, dict):
                yield from flat_keys(value, f"{start}{name}.")


def _close(name: str, known: Sequence[str] | dict[str, Any], start: str) -> str:
    wanted = SYNONYMS.get(name, name)
    near = [wanted] if wanted in known else difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"; did you mean {start}{near[0]}?" if near else ""


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())


def _full_key(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    return key or str(error).rpartition("full_key: ")[2].split("\n")[0]
