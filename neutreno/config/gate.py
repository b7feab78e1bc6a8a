"""The gate: what is wrong with a config is said before anything is built of it, all that is found together.

Two stages. The first needs no torch: groups, keys, and the settings that the project owns. The second imports the
classes that the config names and checks the options of their constructors, without calling one. Only what is said here,
or by an :class:`~neutreno.errors.InputError`, is a user's mistake; every other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from neutreno.config.building import locate
from neutreno.config.composing import Composed
from neutreno.config.options import EXECUTION, IDENTITY, SUPPLIED, Mark, Option, options_of
from neutreno.config.settings import SCHEMAS, CheckedBy, Part, Parts
from neutreno.config.words import close, first_line, full_key, key_of, near
from neutreno.errors import InputError


def check(composed: Composed, schema: str = "train", only: Sequence[str] | None = None) -> None:
    """Both stages, the second of all parts or ``only`` of some.

    Raises:
        InputError: a line for every problem that a stage finds.
    """
    check_settings(composed, schema)
    refuse(constructor_problems(composed, schema, only))


def check_settings(composed: Composed, schema: str = "train") -> None:
    """The first stage alone.

    Raises:
        InputError: a line for every problem.
    """
    refuse(settings_problems(composed, schema))


def refuse(problems: Iterable[str]) -> None:
    """
    Raises:
        InputError: a line for every one of the problems, where there are any.
    """
    if told := list(dict.fromkeys(problems)):
        raise InputError("\n".join(told))


# The first stage


def settings_problems(composed: Composed, schema: str = "train") -> Iterator[str]:
    """Keys that nothing takes, values that have none, and the project's settings out of bounds."""
    try:
        settings = composed.settings
    except InterpolationKeyError as error:
        wanted, key = str(error).partition("'")[2].partition("'")[0], full_key(error)
        if key in map(key_of, composed.overrides):
            yield f"{key} refers to {wanted}, which does not exist"
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
        yield f"{full_key(error)}: {first_line(error)}"
        return
    own = options_of(SCHEMAS[schema])
    if problem := own["variants"].problem(settings.get("variants"), "variants"):
        yield problem  # else every axis would be a key that nothing takes
        return
    known = {**own, **dict.fromkeys(settings["variants"])}
    for key, value in settings.items():
        if key not in known:
            yield f"no key {key}: nothing takes it{near(key, composed)}"
        elif key in own:
            yield from _setting_problems(own[key], value, key)
    for axis in known.keys() - own.keys():
        if composed.choices.get(axis) is None or not isinstance(settings.get(axis), dict):
            yield f"variants.{axis}: the model declares this axis, but has no group {axis} in its defaults list"
        elif f"${{{axis}}}" not in OmegaConf.to_yaml(composed.config.model, resolve=False):
            yield f"model.{axis} is what {axis}=… says: set {axis}, or {axis}.KEY, instead"
    for key in map(key_of, composed.overrides):
        if key.partition(".")[0] in ("variants", "labels", "family"):
            yield f"{key} is declared in the model's file and cannot be set on the command line"
    for key in missing(settings):
        yield f"{key} has no value; give one, {key}=…"
    yield from _recipe_problems(composed)


def _setting_problems(option: Option, value: Any, key: str) -> Iterator[str]:
    kind, nullable = _section(option.annotation)
    if option.mark is SUPPLIED:
        yield f"{key} cannot be set: the project sets it"
    elif kind is None:
        if problem := option.problem(value, key):
            yield problem
    elif value is None and nullable:
        return
    elif not isinstance(value, dict):
        yield f"{key}={value} is not a section of settings; choose one of its group, or set its keys ({key}.KEY=…)"
    elif kind is Part:
        if "_target_" not in value:
            yield f"{key}._target_ has no value: it names the class to build"
    elif kind is Parts:
        for name, part in value.items():
            if not isinstance(part, dict) or "_target_" not in part:
                yield f"{key}.{name} does not name a class by _target_"
    else:
        yield from _section_problems(kind, value, key)


def _section_problems(kind: type, value: dict[str, Any], key: str) -> Iterator[str]:
    own = options_of(kind)
    if "_target_" in value and not hasattr(kind, "built"):
        yield f"{key}._target_ cannot be set: {key} is not a class"
    for name, inner in value.items():
        if name == "_target_":
            continue
        if name in own:
            yield from _setting_problems(own[name], inner, f"{key}.{name}")
        elif not hasattr(kind, "built"):  # else the class that is named may take it
            yield f"no key {key}.{name}: nothing takes it{close(name, own, f'{key}.')}"


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
            yield f"{key}: this model and data set do not use it; leave it out"


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
    yield from _judged(SCHEMAS[schema], settings)


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
                problems.append(f"{key}.{name}={value} cannot be set: only _target_ and a boolean _partial_ are")
            continue
        where, option = f"{key}.{name}", options.get(name)
        if option is None:
            what = f"{target.__qualname__} has no such option"
            problems.append(f"no key {where}: {what}{close(name, options, f'{key}.')}")
        elif option.mark is SUPPLIED:
            problems.append(f"{where} cannot be set: what builds {target.__qualname__} gives it; leave it out")
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
            yield f"no key {key}.{name}: {target.__qualname__} has no such option{close(name, known, f'{key}.')}"
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, dict) and "_target_" in part:
                where = f"{key}.{name}" + (f"[{number}]" if isinstance(value, list) else "")
                yield from part_problems(part, where)


def _judged(schema: type, settings: dict[str, Any], start: str = "") -> Iterator[str]:
    """What the functions say that judge settings beyond their types."""
    for name, option in options_of(schema).items():
        kind, _ = _section(option.annotation)
        if hasattr(kind, "__dataclass_fields__") and isinstance(settings.get(name), dict):
            yield from _judged(kind, settings[name], f"{start}{name}.")
        for judge in getattr(option.annotation, "__metadata__", ()):
            if isinstance(judge, CheckedBy) and name in settings:
                try:
                    locate(judge.path)(settings[name], f"{start}{name}")
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
