"""What is compared: the axes that a model's config declares, their baseline, and the words for them.

A model declares ``variants: {axis: baseline}``. An axis is a config group of that name, and a key of the config that
holds the part built. Where something else equals the baseline, the declaration is a list, ``[softmax, {neutreno: {lam:
0}}]``. ``labels`` are the settings that stand in names, tables and figures, each with what it is called there; one that
is declared as ``[label, VALUE]`` goes without saying at that value.
Nothing here knows the name of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from neutreno.config.building import locate
from neutreno.config.composing import CONFIGS, Composed
from neutreno.config.options import options_of
from neutreno.errors import InputError


def describe(composed: Composed) -> dict[str, Any]:
    """The part of a run's record that tells it from others.

    Returns:
        ``settings``: flat, ``{"data": …, "model": family, "model.size": …, "attention": …, "attention.lam": …, …}``;
        a labelled one that goes without saying is None there;
        ``axes``: by name, the ``class`` built, its ``arguments``, and whether it is at its ``baseline``;
        ``labels``; and ``baseline_values``: which value of a label the baseline is equal to (``{"attention.lam": 0}``).
    """
    config, choices = composed.settings, composed.choices
    unless = {key: label for key, label in config["labels"].items() if isinstance(label, list)}
    labels, axes = config["labels"] | {key: label for key, (label, _) in unless.items()}, {}
    settings: dict[str, Any] = {"data": choices["data"], "model": config["family"] or choices["model"]}
    settings |= {key: value_at(config, key) for key in labels if key.startswith("model.")}
    for axis, declared in config["variants"].items():
        name = chosen(axis, composed)
        axes[axis] = _axis(axis, config.get(axis), [name], declared)
        settings |= {axis: name, **{k: value_at(config, k) for k in labels if k.startswith(f"{axis}.")}}
    settings |= {key: value_at(config, key) for key in labels if key not in settings}
    settings |= {key: None for key, (_, value) in unless.items() if settings[key] == value}
    settings["seed"] = config["seed"]
    equals = {axis: _equals(declared) for axis, declared in config["variants"].items()}
    values = {f"{axis}.{k}": v for axis, pairs in equals.items() for _, wanted in pairs for k, v in wanted.items()}
    return {
        "settings": settings,
        "axes": axes,
        "labels": labels,
        "baseline": {axis: pairs[0][0] for axis, pairs in equals.items()},
        "baseline_values": values,
    }


def chosen(axis: str, composed: Composed) -> str:
    """The option of an axis: that chosen, or where another class was typed, the option that builds it, or its path."""
    choice, built = composed.choices.get(axis), (composed.settings.get(axis) or {}).get("_target_")
    folders = [*composed.config_dirs, CONFIGS]
    if _target_of(axis, choice, folders) in (None, built):
        return choice
    return next(iter(_options_of(axis, built, folders)), str(built))


def _options_of(axis: str, built: str | None, folders: list[str | Path]) -> list[str]:
    """The options of an axis that build the class ``built``."""
    files = [file for folder in folders for file in sorted((Path(folder) / axis).glob("*.yaml"))]
    return [file.stem for file in files if _target_of(axis, file.stem, folders) == built]


def _axis(axis: str, part: Any, options: Sequence[str], declared: str | list[Any]) -> dict[str, Any]:
    """What is built at an axis, and whether it is the baseline by one of its ``options``' names."""
    if not isinstance(part, dict):
        raise InputError(f"variants.{axis}: the config holds no part {axis}")
    arguments = {key: value for key, value in part.items() if not key.startswith("_")}
    at = any(name in options and wanted.items() <= arguments.items() for name, wanted in _equals(declared))
    return {"class": part.get("_target_"), "arguments": arguments, "baseline": at}


def axes_of(settings: dict[str, Any], config_dirs: Sequence[str] = ()) -> dict[str, Any]:
    """``axes`` of :func:`describe`, of a run folder's settings: which options were chosen is told by what they build.

    Raises:
        InputError: the settings hold no part for an axis.
    """
    found, folders = {}, [*config_dirs, CONFIGS]
    for axis, declared in settings["variants"].items():
        part = settings["model"].get(axis, settings.get(axis))  # what is built, in an edited config too
        options = _options_of(axis, part.get("_target_"), folders) if isinstance(part, dict) else []
        found[axis] = _axis(axis, part, options, declared)
    return found


AT_BASELINE = {"class": None, "arguments": {}, "baseline": True}  # of weights from where nothing is varied


def check_trained(
    trained: dict[str, Any] | None, now: dict[str, Any], source: Any, remedy: str, other: Sequence[str] = ()
) -> None:
    """Refuse weights that were trained with other variants than they are to be used with: they would fit in silence.

    Args:
        trained, now: axes as :func:`describe` gives them; an axis that one of them lacks is at its baseline there.
            ``trained`` None: nobody knows, so anything goes.
        source: of the weights.
        remedy: how to use them nevertheless; ``{axes}`` in it becomes the axes that differ.
        other: axes where they may differ.

    Raises:
        InputError: names the axes, what they were trained with and what is composed.
    """
    if trained is None:
        return
    differ = {}
    for axis in {**now, **trained}:
        before, after = trained.get(axis, AT_BASELINE), now.get(axis, AT_BASELINE)
        same = before["class"] == after["class"] and _same_arguments(before, after)
        if not same and not (before["baseline"] and after["baseline"]) and axis not in other:
            differ[axis] = before, after
    if differ:
        was, here = (" and ".join(f"{axis} {_built(both[i])}" for axis, both in differ.items()) for i in (0, 1))
        said = remedy.replace("{axes}", ",".join(differ))
        raise InputError(f"the weights of {source} were trained with {was}, but {here} is composed; {said}")


def _same_arguments(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two parts of one class are built alike; an option that one does not name, as older weights do not name
    newer options, is at its default there."""
    given = [before["arguments"], after["arguments"]]
    if given[0] == given[1]:
        return True
    defaults = {name: option.default for name, option in options_of(locate(after["class"])).items()}
    return defaults | given[0] == defaults | given[1]


def _built(part: dict[str, Any]) -> str:
    if part["class"] is None:
        return "at its baseline"
    arguments = ", ".join(f"{key}={value}" for key, value in part["arguments"].items())
    return f"{part['class']}({arguments})"


def recorded_axes(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The axes that a checkpoint's weights were trained with; None if it does not say, as files of others do not."""
    axes = checkpoint.get("variants")
    parts = axes.values() if isinstance(axes, dict) else [None]
    known = all(isinstance(part, dict) and part.keys() == AT_BASELINE.keys() for part in parts)
    return axes if known and all(isinstance(part["arguments"], dict) for part in parts) else None


def _target_of(group: str, option: str, folders: list[str | Path]) -> str | None:
    """``_target_`` as the option's file has it, or the file that it builds upon."""
    files = (Path(folder) / group / f"{option}.yaml" for folder in folders)
    text = next((file.read_text() for file in files if file.is_file()), "")
    content = yaml.safe_load(text) or {}
    if "_target_" in content:
        return content["_target_"]
    below = [name for name in content.get("defaults", []) if isinstance(name, str) and name not in ("_self_", option)]
    return next(filter(None, (_target_of(group, name, folders) for name in below)), None)


def _equals(declared: str | list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """The baseline of an axis and what equals it: options, each with the values of its settings there."""
    entries = declared if isinstance(declared, list) else [declared]
    return [pair for entry in entries for pair in (entry.items() if isinstance(entry, dict) else [(entry, {})])]


def value_at(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def at_baseline(composed: Composed) -> bool:
    """Whether a config is at the baseline of all its axes."""
    return all(axis["baseline"] for axis in describe(composed)["axes"].values())


def equation(key: str, label: str, value: Any) -> str:
    """``λ̃=0.6``, as tables write it; the bare value where a setting has no label."""
    return f"{label}={_short(value)}" if label else _short(value)


def joined(key: str, label: str, value: Any) -> str:
    """``lam0.6``, as names of folders write it."""
    return f"{key.rpartition('.')[2] if label else ''}{_short(value)}"


def words(described: dict[str, Any], join: str = " ", write: Callable[[str, str, Any], str] = equation) -> list[str]:
    """What a run is called beside data and model, ``["neutreno λ̃=0.6", "featscale"]``.

    Each axis that is not at its baseline's name or has labelled settings, with these, or the first axis' baseline; then
    the labelled settings that belong to no axis.
    """
    settings, baseline = described["settings"], described["baseline"]
    labelled = {axis: _labelled(described, axis, write) for axis in baseline}
    shown = [axis for axis in baseline if settings[axis] != baseline[axis] or labelled[axis]] or list(baseline)[:1]
    heads = dict.fromkeys(key.partition(".")[0] for key in described["labels"])
    others = [text for head in heads if head not in ("model", *baseline) for text in _labelled(described, head, write)]
    return [join.join([str(settings[axis]), *labelled[axis]]) for axis in shown] + others


def model_words(described: dict[str, Any], join: str = "-", write: Callable[[str, str, Any], str] = equation) -> str:
    """``deit-mini``: the family and its labelled settings."""
    return join.join([described["settings"]["model"], *_labelled(described, "model", write)])


def _labelled(described: dict[str, Any], part: str, write: Callable[[str, str, Any], str]) -> list[str]:
    settings, labels = described["settings"], described["labels"]
    given = [key for key in labels if key.startswith(f"{part}.") and settings.get(key) is not None]
    return [write(key, labels[key], settings[key]) for key in given]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
