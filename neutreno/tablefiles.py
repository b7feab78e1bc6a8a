"""Tables: a file each, ``table/NAME.yaml`` beside the other config files; a row is a line, its label and its words.

``configs/table/lab.yaml`` has all that most tables need. The keys of a file:

    rows        label: words, as they are typed after train.py; what says which run is meant (seed, name) is not theirs
    overrides   words of every row
    title       stands above the table
    metric      the main one; default: the runs' own, test and validation
    metrics     further ones, shown where runs have them
    columns     further columns: parameters, a metric of probe.metrics after the last layer, or the dotted path of a
                function from a row, its baseline and the packages to trust to what stands there
    paper       label: {metric: {value, provenance}}, the figures of a paper; an experiment's own stand in its file
    absent      label: why there cannot be such a row; it stands in the table with – for its figure
    evaluate    words, as they are typed after evaluate.py RUN, by which it finds the metrics that training does not;
                where runs lack one, the command stands below the table
    needs       label: {key: ROW or TABLE/ROW}: the row takes the run folder of that row with the same seed as its key
    notes       heading: {label: text}, columns of words, after the others; not of every row
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import MinLen
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError, model_validator

from neutreno.config.composing import CONFIGS, Composed
from neutreno.config.gate import check, settings_problems
from neutreno.config.options import in_words
from neutreno.config.words import check_choices, close, compose_typed, key_of
from neutreno.errors import InputError
from neutreno.runs import RunFolder, default_name
from neutreno.variants import value_at

LABEL = re.compile(r"[\w\u0303+.=-]+( [\w\u0303+.=-]+)*")  # U+0303 is the tilde of λ̃
BY_ROW = ("rows", "paper", "needs")
OF_RUNS = ("seed", "name", "row", "resume")  # keys that no row sets: a table has many runs of each row


def _label(label: Any) -> str:
    if not isinstance(label, str) or not LABEL.fullmatch(label):
        raise ValueError("a label is text of letters, digits, single spaces and _ + - . = (quote a number)")
    return label


def _words(text: Any) -> list[str]:
    """Overrides as they are typed, without those that the runs of a row set."""
    if not isinstance(text, str | None):
        raise ValueError(f"{text} is not text: overrides as after train.py")
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise ValueError(f"{text}: {str(error).lower()}") from error
    if fixed := [word for word in words if key_of(word) in OF_RUNS]:
        raise ValueError(f"{' '.join(fixed)}: set by the runs of a row; leave it out")
    return words


def _taking(key: Any) -> Any:
    if key in (*OF_RUNS, "output_dir"):
        raise ValueError("takes no run folder; name a key such as model.weights")
    return key


Label = Annotated[str, BeforeValidator(_label)]


class Figure(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """What a paper found."""

    value: float
    provenance: str


FIGURES = TypeAdapter(dict[str, Figure])  # by metric
Words = Annotated[list[str], BeforeValidator(_words)]


class Content(BaseModel, strict=True, extra="forbid", frozen=True):
    """The keys of a table's file; ``rows`` holds the words of each row without ``overrides``."""

    title: str | None = None
    overrides: Words = []
    metric: str | None = None
    metrics: list[str] = []
    columns: list[str] = []
    rows: dict[Label, Words] = {}
    absent: dict[Label, Annotated[str, MinLen(1)]] = {}
    evaluate: Words = []
    paper: dict[str, dict[str, Figure]] = {}
    needs: dict[str, dict[Annotated[str, BeforeValidator(_taking)], str]] = {}
    notes: dict[str, dict[str, str]] = {}

    @model_validator(mode="after")
    def _are_there(self) -> Content:
        if not self.rows:
            raise ValueError("rows: none given; add a line LABEL: OVERRIDES for each")
        by_row = {"paper": self.paper, "needs": self.needs, **{f"notes.{x}": of for x, of in self.notes.items()}}
        for where, label in ((f"{part}.{label}", label) for part, of in by_row.items() for label in of):
            if label not in self.rows:
                raise ValueError(f"{where}: no such row{close(label, self.rows, '')}; rows: {', '.join(self.rows)}")
        if both := [label for label in self.absent if label in self.rows]:
            raise ValueError(f"absent.{both[0]}: rows has it, too; leave one out")
        return self


class Table(Content):
    """A table's file, read and checked."""

    name: str
    file: Path
    config_dirs: list[str]
    whole: bool = True  # all rows of the file are there

    def only(self, pattern: str) -> Table:
        """The same with the rows whose labels match, as file names match ``*`` and ``?``, and those that they need.

        Raises:
            InputError: none does.
        """
        chosen = set(fnmatch.filter(self.rows, pattern))
        if not chosen and (absent := fnmatch.filter(self.absent, pattern)):
            raise InputError(f"{self.name} cannot have the row {absent[0]}: {self.absent[absent[0]]}")
        if not chosen:
            raise InputError(f"no row of {self.name} matches {pattern!r}; rows: {', '.join(self.rows)}")
        todo = [*chosen]
        while todo:
            more = {*self.needs.get(todo.pop(), {}).values()} & self.rows.keys() - chosen
            chosen |= more
            todo += more
        own = {name: {label: x for label, x in getattr(self, name).items() if label in chosen} for name in BY_ROW}
        own["absent"] = {label: self.absent[label] for label in fnmatch.filter(self.absent, pattern)}
        return self.model_copy(update={**own, "whole": self.whole and chosen == self.rows.keys()})

    def origin(self, label: str) -> tuple[str, str]:
        """What a run that was started for a row is said to come from, see ``Run.origin`` of reports/reading.py."""
        return "row", f"{self.name}/{label}"

    def words(self, label: str, seed: int = 0, more: Sequence[str] = ()) -> list[str]:
        """All that is typed after ``train.py`` for the run of a row. Of two words for a key the later counts: ``more``
        goes before the row's own, these before those of all rows."""
        own = [*{key_of(word): word for word in (*self.overrides, *self.rows[label], f"seed={seed}", *more)}.values()]
        if "preflight=true" in own:  # the cost is that of any weights
            own += [f"{key}=null" for key in self.needs.get(label, {})]
        for key, needed in self.needed(label, more).items():
            start = str(self.run_of(needed, seed, more).path)
            try:
                there = value_at(composed_of(own, self.config_dirs).settings, key)
            except InputError:
                there = None  # said when the whole is composed
            if there != start:  # an experiment may say the same by itself
                own.append(f"{key}={quoted(start)}")
        return [*own, f"row={quoted(f'{self.name}/{label}')}"]

    def compose(self, label: str, seed: int = 0, more: Sequence[str] = ()) -> Composed:
        """
        Raises:
            InputError: all that is wrong with the row's words.
        """
        return composed_of(self.words(label, seed, more), self.config_dirs)

    def needed(self, label: str, more: Sequence[str] = ()) -> dict[str, str]:
        """What a row needs, by the key that takes it, apart from what ``more`` gives."""
        given = [key_of(word) for word in more]
        needs = {} if "preflight=true" in more else self.needs.get(label, {})
        return {key: row for key, row in needs.items() if key not in given}

    def row(self, needed: str) -> tuple[Table, str]:
        """The table and the label of what a row needs: ``ROW`` of this table, or ``TABLE/ROW``.

        Raises:
            InputError: there is none.
        """
        if needed in self.rows:
            return self, needed
        name, slash, label = needed.partition("/")
        if not slash:
            raise InputError(f"no row {needed}{close(needed, self.rows, '')}; rows: {', '.join(self.rows)}")
        table = self if name == self.name else _read(name, self.config_dirs)
        if label not in table.rows:
            raise InputError(f"table {name} has no row {label}{close(label, table.rows, '')}")
        return table, label

    def run_of(self, needed: str, seed: int, more: Sequence[str] = ()) -> RunFolder:
        """The run folder of what a row needs; in another table, of ``more`` the place alone counts."""
        table, label = self.row(needed)
        if needed not in self.rows:
            more = [word for word in more if key_of(word) == "output_dir"]
        composed = table.compose(label, seed, more)
        return RunFolder(str(composed.config.output_dir), default_name(composed))

    def level(self, label: str) -> int:
        """How many rows of this table have to be finished before, one after the other."""
        return max((1 + self.level(row) for row in self.needs.get(label, {}).values() if row in self.rows), default=0)

    def check(self, label: str, more: Sequence[str] = ()) -> Composed:
        """The row's first run, through the gate.

        Raises:
            InputError: all that the gate finds; what is the row's own mistake, and not that of ``more``, names it.
        """
        try:
            composed = self.compose(label, 0, more)
            check(composed)
            return composed
        except InputError as error:
            found = str(error).splitlines()
        where, own = f"{self.file}: rows.{label}: ", found
        if more:
            try:
                self.check(label)
                own = []
            except InputError as error:
                own = [line.removeprefix(where) for line in str(error).splitlines()]
        raise InputError("\n".join(f"{where}{said}" if said in own else said for said in found))


def composed_of(words: Sequence[str], config_dirs: Sequence[str]) -> Composed:
    """A config whose ``settings`` can be read.

    Raises:
        InputError: all that is wrong with the words.
    """
    check_choices(words, config_dirs)
    composed = compose_typed(words, config_dirs=config_dirs)
    try:
        composed.settings  # noqa: B018
    except OmegaConfBaseException as error:
        raise InputError("\n".join(settings_problems(composed))) from error
    return composed


def quoted(value: str) -> str:
    """A value as Hydra reads it as text."""
    return value if re.fullmatch(r"[A-Za-z0-9_./+-]+", value) else "'" + value.replace("'", r"\'") + "'"


def tables_in(config_dirs: Sequence[str] = ()) -> dict[str, list[Path]]:
    """The files of every table by its name: the project's, and those of the folders of config files."""
    found: dict[str, list[Path]] = {}
    for folder in (CONFIGS, *config_dirs):
        for file in sorted((Path(folder) / "table").glob("*.yaml")):
            found.setdefault(file.stem, []).append(file)
    return dict(sorted(found.items()))


def read_table(name: str, config_dirs: Sequence[str] = ()) -> Table:
    """
    Raises:
        InputError: there is no such table, or a line for all that is wrong with its file.
    """
    table = _read(name, config_dirs)
    for label in table.needs:
        try:
            _check_needs(table, label, [f"{name}/{label}"])
        except InputError as error:
            raise InputError(f"{table.file}: {error}") from error
    return table


def _read(name: str, config_dirs: Sequence[str]) -> Table:
    """The file alone, without what it needs of others."""
    known = tables_in(config_dirs)
    if name not in known:
        raise InputError(f"no table {name}{close(name, known, '')}; available: {', '.join(known)}")
    if len(known[name]) > 1:
        raise InputError(f"table {name} has several files: {', '.join(map(str, known[name]))}; rename one")
    (file,) = known[name]
    try:
        given = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
        content = Content.model_validate(given)
    except (InputError, ValidationError) as error:
        problems = _problems(error) if isinstance(error, ValidationError) else [error]
        raise InputError("\n".join(f"{file}: {problem}" for problem in problems)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that are none, too
        raise InputError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from error
    return Table.model_construct(**content.model_dump(), name=name, file=file, config_dirs=list(config_dirs))


class _Loader(yaml.SafeLoader):
    """YAML's, which takes a key that stands twice for a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise InputError(f"line {key.start_mark.line + 1}: {key.value} appears twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _check_needs(table: Table, label: str, path: list[str]) -> None:
    """Refuse needed rows that there are not, and rows that need themselves."""
    for key, needed in table.needs.get(label, {}).items():
        where = f"needs.{label}.{key}"
        try:
            other, row = table.row(needed)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        name = f"{other.name}/{row}"
        if name in path:
            circle = [*path[path.index(name) :], name]
            raise InputError(f"{where}: rows need each other in a circle: {' → '.join(circle)}")
        _check_needs(other, row, [*path, name])


def wrong_figures(figures: Any, where: str) -> list[str]:
    """What is wrong with a paper's figures by metric, ``{metric: {value, provenance}}``."""
    try:
        FIGURES.validate_python(figures)
    except ValidationError as error:
        return list(_problems(error, where))
    return []


def _problems(error: ValidationError, *start: str) -> Iterator[str]:
    """pydantic's errors in a line each."""
    known = Content.model_fields
    for found in error.errors(include_url=False):
        loc, value = [*start, *found["loc"]], found["input"]
        key = ".".join(str(name) for name in loc if name != "[key]")
        match found["type"]:
            case "value_error":
                yield f"{key}: {found['msg'].removeprefix('Value error, ')}".removeprefix(": ")
            case "extra_forbidden" | "invalid_key" if len(loc) == 1:
                yield f"no key {key}{close(key, known, '')}; a table has {', '.join(known)}"
            case "model_type" if not loc:
                yield "is not a table: it has no keys; give it rows, a line LABEL: OVERRIDES for each"
            case "missing" | "model_type" | "extra_forbidden":
                yield f"{key}: a figure is {{value: NUMBER, provenance: TEXT}}, both of them and no more"
            case "dict_type":
                yield f"{key}={value} is not a mapping"
            case "string_type" if loc[-1] == "[key]":
                yield f"{key.rpartition('.')[0]} is not a mapping of keys: {value} is no text"
            case _:
                yield in_words(key, value, [{**found, "loc": ()}])
