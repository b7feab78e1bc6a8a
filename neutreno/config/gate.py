"""The gate: what is wrong with a config is said before anything is built of it, all that is found together.

Two stages. The first needs no torch: groups, keys, and the settings that the project owns. The second imports the
classes that the config names and checks the options of their constructors, without calling one. Only what is said here,
or by an :class:`~neutreno.errors.InputError`, is a user's mistake; every other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from neutreno.config.building import locate
from neutreno.config.composing import Composed
from neutreno.config.options import EXECUTION, IDENTITY, SUPPLIED, Mark, Option, options_of
from neutreno.config.settings import SCHEMAS, Part, Parts
from neutreno.config.words import close, first_line, full_key, key_of, near
from neutreno.errors import InputError, Together


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
    together = Together()
    together.problems += problems
    together.refuse()


# The first stage


def settings_problems(composed: Composed, schema: str = "train") -> Iterator[str]:
    """Keys that nothing takes, values that have none, and the project's settings out of bounds."""
    try:
        settings = composed.settings
    except OmegaConfBaseException as error:
        yield _unresolved(error, composed)
        return
    own = options_of(SCHEMAS[schema])
    if missing := [name for name, option in own.items() if option.required and name not in settings]:
        yield from (f"{name} is missing, which every config has; leave ~{name} out" for name in missing)
        return
    if problem := own["variants"].problem(settings.get("variants"), "variants"):
        yield problem  # else every axis would be a key that nothing takes
        return
    axes = [axis for axis in settings["variants"] if axis not in own]
    yield from _section_problems(SCHEMAS[schema], {k: v for k, v in settings.items() if k not in axes}, composed)
    model = OmegaConf.to_yaml(composed.config.model) if axes else ""
    for axis in axes:
        if composed.choices.get(axis) is None or not isinstance(settings.get(axis), dict):
            yield f"variants.{axis}: the model declares this axis, but has no group {axis} in its defaults list"
        elif f"${{{axis}}}" not in model:
            yield f"model.{axis} is what {axis}=… says: set {axis}, or {axis}.KEY, instead"
    for key in sorted(_missing(OmegaConf.to_container(composed.config))):
        yield f"{key} has no value; give one, {key}=…"
    yield from _word_problems(composed)


def _missing(node: Any, key: str = "") -> Iterator[str]:
    """Where nothing but ``???`` stands. (``OmegaConf.missing_keys`` resolves every reference once more.)"""
    if node == MISSING:
        yield key
    elif isinstance(node, dict):
        parts = ((f"{key}.{name}" if key else name, value) for name, value in node.items())
        yield from chain.from_iterable(_missing(value, name) for name, value in parts)
    elif isinstance(node, list):
        yield from chain.from_iterable(_missing(value, f"{key}[{place}]") for place, value in enumerate(node))


def _unresolved(error: OmegaConfBaseException, composed: Composed) -> str:
    """Why the config's references to other keys lead nowhere."""
    key = full_key(error)
    if not isinstance(error, InterpolationKeyError):
        return f"{key}: {first_line(error)}"
    wanted = str(error).split("'")[1]
    if key in map(key_of, composed.overrides):
        return f"{key} refers to {wanted}, which does not exist"
    if wanted in (composed.config.get("variants") or {}):
        return f"model={composed.choices['model']} needs the axis {wanted}; choose {wanted}=…, do not remove it"
    said = f"this model is not made for this data set, which has no {wanted} for {key}"
    return f"{said}; leave model=… out, and the data set chooses one that fits"


def _section_problems(kind: type, node: dict[str, Any], composed: Composed, start: str = "") -> Iterator[str]:
    own = options_of(kind)
    for name, value in node.items():
        key = f"{start}{name}"
        if name in getattr(kind, "ours", ()):
            yield f"{key} cannot be set: the project sets it"
        elif name in own:
            yield from _setting_problems(own[name], value, key, composed)
        elif not hasattr(kind, "built"):  # else the class that is named may take it
            no_class = f"{key} cannot be set: there is no class to name"
            yield no_class if name == "_target_" else f"no key {key}: nothing takes it{near(key, composed)}"


def _setting_problems(option: Option, value: Any, key: str, composed: Composed) -> Iterator[str]:
    kind, nullable = _section(option.annotation)
    if kind is None:
        if problem := option.problem(value, key):
            yield problem
    elif value is None and nullable:
        return
    elif not isinstance(value, dict):
        yield f"{key}={value} is not a section of settings; choose one of its group, or set its keys ({key}.KEY=…)"
    elif kind in (Part, Parts):
        for where, part in _parts(kind, value, key).items():
            if not isinstance(part, dict) or "_target_" not in part:
                yield f"{where}._target_ has no value: it names the class to build"
    else:
        yield from _section_problems(kind, value, composed, f"{key}.")


def _parts(kind: type, node: dict[str, Any], key: str) -> dict[str, Any]:
    """What names a class in a section, by its key."""
    return {key: node} if kind is Part else {f"{key}.{name}": part for name, part in node.items()}


def _section(annotation: Any) -> tuple[type | None, bool]:
    """The dataclass of a section, Part or Parts (None: it is a plain value), and whether null is allowed."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = [a for a in (get_args(annotation) or (annotation,)) if inspect.isclass(a)]
    found = next((k for k in kinds if k in (Part, Parts) or hasattr(k, "__dataclass_fields__")), None)
    return found, type(None) in kinds


def _word_problems(composed: Composed) -> Iterator[str]:
    """Typed keys that are the model's file's, and those of ``recipe`` that nothing looks up: they would change the
    run's name, and nothing else."""
    for word in composed.overrides:
        key = key_of(word)
        head, _, name = key.partition(".")
        if head in ("variants", "labels", "family"):
            yield f"{key} is declared in the model's file and cannot be set on the command line"
        elif head == "paper":
            yield f"{key} is what an experiment's file says of the paper, and cannot be set on the command line"
        elif head == "recipe" and not name and "{" in word:
            yield "recipe is a group of files: set a key of it, recipe.KEY=…"
        elif head == "recipe" and name:
            looked_up = OmegaConf.to_yaml(composed.config)
            if f"${{{key}}}" not in looked_up and f"oc.select:{key}," not in looked_up:
                yield f"{key}: this model and data set do not use it; leave it out"


# The second stage


def constructor_problems(composed: Composed, schema: str = "train", only: Sequence[str] | None = None) -> Iterator[str]:
    """What the constructors of all parts (or ``only`` of some) would not take, and what a section's judges say."""
    settings = composed.settings
    for key, option in options_of(SCHEMAS[schema]).items():
        (kind, _), node = _section(option.annotation), settings.get(key)
        if not isinstance(node, dict):
            continue
        for name in getattr(kind, "judges", {}).keys() & node.keys():
            try:
                locate(kind.judges[name])(node[name], f"{key}.{name}")
            except InputError as error:
                yield str(error)
        if only is not None and key not in only:
            continue
        if key == "model":
            node = {name: value for name, value in node.items() if name not in settings["variants"]}
        if hasattr(kind, "built"):
            yield from part_problems(node, key, library=kind)
        elif kind in (Part, Parts):
            for where, part in _parts(kind, node, key).items():
                yield from part_problems(part, where, supplied={"model"} if key == "task" else None)
    if only is None:
        for axis in settings["variants"]:
            yield from part_problems(settings[axis], axis, in_parent=True)


def part_problems(
    node: dict[str, Any], key: str, supplied: set | None = None, in_parent: bool = False, library: type | None = None
) -> list[str]:
    """What the constructor that ``node["_target_"]`` names would not take.

    Args:
        key: where the part stands.
        supplied: options that its parent gives it; None: not known here, so none counts as missing.
        in_parent: it is handed to what builds it; then ``_partial_`` is true where that has to give it something.
        library: settings of which ``built`` names the library's class that the part has to be.
    """
    try:
        target = locate(node.get("_target_"), f"{key}._target_")
        options = options_of(target) if library is None else library_options(target, library, node, key)
    except InputError as error:
        return [str(error)]
    problems = []
    for name, value in node.items():
        where, option = f"{key}.{name}", options.get(name)
        if name == "_target_" or (name == "_partial_" and isinstance(value, bool)):
            continue
        if name.startswith("_"):
            problems.append(f"{where}={value} cannot be set: only _target_ and a boolean _partial_ are")
        elif option is None:
            hint = close(name, options, f"{key}.")
            problems.append(f"no key {where}: {target.__qualname__} has no such option{hint}")
        elif option.mark is SUPPLIED:
            problems.append(f"{where} cannot be set: what builds {target.__qualname__} gives it; leave it out")
        elif parts := parts_within(value, where):
            problems += [problem for place, part in parts.items() for problem in part_problems(part, place)]
        else:
            problems.append(option.problem(value, where))
    if in_parent and not node.get("_partial_") and any(o.required and o.mark is SUPPLIED for o in options.values()):
        problems.append(f"{key}._partial_ has to be true: what builds {target.__qualname__} completes it")
    if supplied is not None and not node.get("_partial_"):
        needed = [name for name, option in options.items() if option.required and option.mark is not SUPPLIED]
        absent = [f"{key}.{name}" for name in needed if name not in node and name not in supplied]
        problems += [f"{where} has no value; give one, {where}=…" for where in absent]
    return [problem for problem in problems if problem]


def library_options(target: Any, kind: type, node: dict[str, Any], key: str) -> dict[str, Option]:
    """Of a library's class: its own options, and in their place those that the project judges.

    Raises:
        InputError: it is another class.
    """
    base = locate(kind.built)
    if not (inspect.isclass(target) and issubclass(target, base)):
        raise InputError(f"{key}._target_={node['_target_']} is no {kind.built}")
    names, hints = inspect.signature(target).parameters, get_type_hints(base.__init__)
    return {name: Option(hints.get(name, inspect.Parameter.empty)) for name in names} | options_of(kind)


def parts_within(value: Any, key: str) -> dict[str, Any]:
    """What names a class in the value of an option, itself or in a list."""
    inner = {f"{key}[{i}]": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
    return {place: part for place, part in inner.items() if isinstance(part, dict) and "_target_" in part}


# What a key is to a run


def mark_of(key: str, settings: dict[str, Any], schema: str = "train") -> Mark:
    """The mark of a key, or of a group as the choice of another option; one that nothing describes is ``IDENTITY``."""
    head, _, rest = key.partition(".")
    option = options_of(SCHEMAS[schema]).get(head, Option(Part))  # an axis is a part
    kind, _ = _section(option.annotation)
    if not rest or kind in (None, Parts) or (kind is Part and option.mark is EXECUTION):
        return option.mark
    if kind is Part:
        node = settings.get(head)
        kind = locate(node["_target_"]) if isinstance(node, dict) and "_target_" in node else None
    inner = options_of(kind).get(rest.partition(".")[0]) if kind is not None else None
    return inner.mark if inner is not None else IDENTITY


def ways_of_execution(schema: str = "train") -> list[str]:
    """Groups and keys at the top of a config that only say where and how a run is executed."""
    return [name for name, option in options_of(SCHEMAS[schema]).items() if option.mark is EXECUTION]
