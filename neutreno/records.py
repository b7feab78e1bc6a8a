"""The files of a run folder, which is data of anybody's: read within bounds, as plain data, or refused in a line.

What passes here can be compared, printed and drawn without a surprise: text keys, no aliases, bounded depth, sizes and
numbers. What a value means is judged by those who use it; that of ``result.json`` here, as all read it.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge

from neutreno.config.options import NonNegative, Option
from neutreno.errors import InputError

MOST_BYTES = 64 * 2**20
MOST_YAML = 4 * 2**20  # a config holds a few hundred lines, and YAML is read slowly
MOST_DEPTH = 40
LONGEST_TEXT = 100_000
LARGEST_NUMBER = 2**64  # beyond it a whole number may not fit a float
LONGEST_HEAD = 2**20  # of a table: the line of its columns
ALL = "all"  # in tables of layers, the subset of all tokens
SECONDS = "seconds"  # a column of metrics.csv: the time since its first row

_SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where many runs are read


def read_json(file: Path) -> Any:
    """
    Raises:
        InputError: the file is not there, broken, or beyond the bounds.
    """
    text = _text(file, MOST_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(file, error) from error
    return _checked(file, content)


def read_yaml(file: Path) -> Any:
    """The same; aliases are refused: a few lines of them stand for any amount of data, or for itself."""
    text = _text(file, MOST_YAML)
    try:
        _check_events(file, text)
        content = yaml.load(text, Loader=_SAFE)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:  # the latter: odd tags
        raise _refused(file, error) from error
    return _checked(file, content)


def check_table(file: Path, most: int = MOST_BYTES) -> None:
    """Refuse a CSV file that is none; rows that are broken are left out where it is read.

    Raises:
        InputError: it is no file, or has more than ``most`` bytes.
    """
    _check_file(file, most)
    with file.open("rb") as content:
        if len(content.readline(LONGEST_HEAD)) == LONGEST_HEAD:
            raise InputError(f"{file} has a first line beyond {LONGEST_HEAD:,} bytes; a run writes no such table")


def _refused(file: Path, error: Exception) -> InputError:
    kind = file.suffix[1:].upper()
    why = " (nested too deep)" if isinstance(error, RecursionError) else ""
    return InputError(f"{file} is not readable {kind}{why}")


def _check_file(file: Path, most: int) -> None:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{file.parent} is not a run folder: it holds no {file.name}") from error
    except (OSError, ValueError) as error:  # no permission, a circle of links
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would never end, a device never stop
        raise InputError(f"{file} is not a regular file")
    if found.st_size > most:
        raise InputError(f"{file} has {found.st_size:,} bytes, more than {most:,}; a run writes no such file")


def _text(file: Path, most: int) -> str:
    _check_file(file, most)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _refused(file, error) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


def _check_events(file: Path, text: str) -> None:
    """What YAML's own recursion would not survive is found before it is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_SAFE):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{file} uses YAML's aliases (*{event.anchor}); a run writes none; refused")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise InputError(f"{file} is nested beyond {MOST_DEPTH} levels; a run writes no such file")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_TEXT:
            raise InputError(f"{file} holds a text of {len(event.value):,} characters; a run writes none")


def _checked(file: Path, content: Any) -> Any:
    if (problem := next(_problems(content), None)) is not None:
        raise InputError(f"{file} {problem}; a run writes no such file")
    return content


def _problems(content: Any) -> Iterator[str]:
    """What is no plain data within the bounds; without recursion."""
    left: list[tuple[Any, int]] = [(content, 0)]
    while left:
        value, depth = left.pop()
        if isinstance(value, dict | list):
            if depth >= MOST_DEPTH:
                yield f"is nested beyond {MOST_DEPTH} levels"
            left += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
            if isinstance(value, dict):
                yield from (f"has the key {key!r}, which is no text" for key in value if not isinstance(key, str))
                left += [(key, depth + 1) for key in value]
        elif isinstance(value, str):
            if len(value) > LONGEST_TEXT:
                yield f"holds a text of {len(value):,} characters"
            elif any("\ud800" <= sign <= "\udfff" for sign in value):
                yield f"holds {ascii(value)[:100]}, which is no Unicode"
        elif isinstance(value, int):
            if abs(value) > LARGEST_NUMBER:
                yield f"holds a whole number beyond {LARGEST_NUMBER:,}"
        elif value is not None and not isinstance(value, float):  # YAML makes dates, bytes and sets, too
            yield f"holds a {type(value).__name__}"


STATUS = ("running", "finished", "failed", "interrupted")
_NEEDED: dict[str, Any] = {
    "status": Literal[STATUS],
    **dict.fromkeys(("settings", "baseline_values"), dict[str, Any]),
    "axes": dict[str, dict[str, Any]],
    **dict.fromkeys(("labels", "baseline"), dict[str, str]),
    **dict.fromkeys(("task", "main_metric"), str),
    "main_metric_mode": Literal["min", "max"],
    **dict.fromkeys(("overrides", "execution"), list[str]),
}
_WHERE_THERE: dict[str, Any] = {
    "metrics": dict[str, Any],
    "within": dict[str, NonNegative],
    "digests": dict[str, str],
    "classes": list[str],
    "oversmoothing": list[dict[str, Any]],
    "parameters": int,
    **dict.fromkeys(("planned_steps", "steps"), Annotated[int, Ge(0)]),
    "wall_clock_s": NonNegative,
    **dict.fromkeys(("row", "group", "reason", "first_checkpoint", "git_commit"), str | None),
    "versions": dict[str, str | None],
    "initial_weights": dict[str, dict[str, Any]],
    "config_dirs": list[str],
}


def record_problem(record: dict[str, Any]) -> str | None:
    """What is wrong with the content of ``result.json``, which may have been edited by hand; None if nothing is."""
    problems = [Option(kind).problem(record.get(key), key) for key, kind in _NEEDED.items()]
    problems += [Option(kind).problem(record[key], key) for key, kind in _WHERE_THERE.items() if key in record]
    if any(problems):
        return next(filter(None, problems))
    axes, settings = record["axes"], record["settings"]
    if wrong := sorted(axes.keys() ^ record["baseline"].keys()):
        return f"axes and baseline differ in {wrong[0]}"
    texts = {key: settings.get(key) for key in ("data", "model", *axes)}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        return f"settings.{wrong[0]} is no text"
    if type(settings.get("seed")) is not int:
        return "settings.seed is no whole number"
    if wrong := [axis for axis, part in axes.items() if not isinstance(part.get("baseline"), bool)]:
        return f"axes.{wrong[0]}.baseline is neither true nor false"
    return next((f"oversmoothing: {r}"[:200] for r in record.get("oversmoothing", []) if not _is_measured(r)), None)


def _is_measured(row: dict[str, Any]) -> bool:
    """Whether a row of layer-wise metrics is what people and figures take."""
    numbers = [row.get("layer"), row.get("step", 0), 0 if row.get("mean", "") is None else row.get("mean")]
    return all(map(is_number, numbers)) and all(isinstance(row.get(key), str) for key in ("stack", "subset", "metric"))


def is_number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
