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
    needs       label: {key: ROW or TABLE/ROW}: the row takes the run folder of that row with the same seed as its key
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from neutreno.config.composing import CONFIGS, Composed, compose
from neutreno.config.gate import check, settings_problems
from neutreno.config.options import Option
from neutreno.config.words import check_choices, close, explained, key_of
from neutreno.errors import InputError
from neutreno.runs import RunFolder, default_name
from neutreno.variants import value_at

LABEL = re.compile(r"[\w\u0303+.=-]+( [\w\u0303+.=-]+)*")  # U+0303 is the tilde of λ̃
OF_RUNS = ("seed", "name", "row", "resume")  # keys that no row sets: a table has many runs of each row


@dataclass(frozen=True)
class Table:
    """A table's file, read and checked; ``rows`` holds the words of each row without ``overrides``."""

    name: str
    file: Path
    config_dirs: list[str]
    title: str = ""
    overrides: list[str] = field(default_factory=list)
    metric: str | None = None
    metrics: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)
    paper: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    needs: dict[str, dict[str, str]] = field(default_factory=dict)

    def origin(self, label: str) -> tuple[str, str]:
        """What a run that was started for a row is said to come from, see ``Run.origin`` of reports/reading.py."""
        return "row", f"{self.name}/{label}"

    def words(self, label: str, seed: int = 0, more: Sequence[str] = ()) -> list[str]:
        """All that is typed after ``train.py`` for the run of a row. Of two words for a key the later counts: ``more``
        goes before the row's own, these before those of all rows."""
        own = merged([*self.overrides, *self.rows[label], f"seed={seed}", *more])
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
        kind, name = self.origin(label)
        return [*own, f"{kind}={quoted(name)}"]

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

    def run_of(self, needed: str, seed: int, more: Sequence[str] = ()) -> RunFolder:
        """The run folder of a row of this table, or of ``TABLE/ROW``, where of ``more`` the place alone counts."""
        table, label = self, needed
        if needed not in self.rows:
            table, label = _read(needed.partition("/")[0], self.config_dirs), needed.partition("/")[2]
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

        def problems(more: Sequence[str]) -> tuple[list[str], Composed | None]:
            try:
                composed = self.compose(label, 0, more)
                check(composed)
            except InputError as error:
                return str(error).splitlines(), None
            return [], composed

        found, composed = problems(more)
        if composed is None:
            own = problems(())[0] if more else found
            raise InputError("\n".join(f"{self.file}: rows.{label}: {said}" if said in own else said for said in found))
        return composed


def composed_of(words: Sequence[str], config_dirs: Sequence[str]) -> Composed:
    """A config whose ``settings`` can be read.

    Raises:
        InputError: all that is wrong with the words.
    """
    check_choices(words, config_dirs)
    try:
        composed = compose(words, config_dirs=config_dirs)
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, words, config_dirs=config_dirs) from error
    try:
        composed.settings  # noqa: B018
    except OmegaConfBaseException as error:
        raise InputError("\n".join(settings_problems(composed))) from error
    return composed


def merged(words: Sequence[str]) -> list[str]:
    """The words without those whose key a later one sets."""
    return list({key_of(word): word for word in words}.values())


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
    if problems := list(_wrong_needs(table)):
        raise InputError("\n".join(f"{table.file}: {problem}" for problem in problems))
    return table


def _read(name: str, config_dirs: Sequence[str]) -> Table:
    """The file alone, without what it needs of others."""
    known = tables_in(config_dirs)
    if name not in known:
        raise InputError(f"no table {name}{close(name, known, '')}; available: {', '.join(known)}")
    if len(known[name]) > 1:
        raise InputError(f"table {name} has several files: {', '.join(map(str, known[name]))}; rename one")
    (file,) = known[name]
    content = _content(file)
    if problems := list(_problems(content)):
        raise InputError("\n".join(f"{file}: {problem}" for problem in problems))
    rows = {label: shlex.split(words or "") for label, words in content["rows"].items()}
    overrides = shlex.split(content.get("overrides") or "")
    given = {key: value for key, value in content.items() if value is not None}
    return Table(**{**given, "name": name, "file": file, "config_dirs": list(config_dirs), "rows": rows,
                    "overrides": overrides})  # fmt: skip


@cache
def _loader() -> type:
    """YAML's, which takes a key that stands twice for a mistake."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        for number, key in enumerate(keys):
            if isinstance(key, list | dict):
                raise InputError(f"line {node.start_mark.line + 1}: a key is not text")
            if key in keys[:number]:
                raise InputError(f"line {node.value[number][0].start_mark.line + 1}: {key} appears twice")
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def _content(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a table: it has no keys; give it rows, a line LABEL: OVERRIDES for each")
    return content


KEYS = {
    "title": str | None,
    "overrides": str | None,
    "metric": str | None,
    "metrics": list[str],
    "columns": list[str],
    "rows": dict,
    "paper": dict,
    "needs": dict,
}
FIGURE = {"value": float, "provenance": str}


def _problems(content: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a file, apart from what its rows compose to and what they need."""
    wrong = [key for key in content if key not in KEYS]
    yield from (f"no key {key}{close(str(key), KEYS, '')}; a table has {', '.join(KEYS)}" for key in wrong)
    known = {key: value for key, value in content.items() if key in KEYS}
    odd = [said for key, value in known.items() if (said := Option(key, KEYS[key], False).problem(value, key))]
    yield from odd
    if odd:
        return
    rows = content.get("rows") or {}
    if not rows:
        yield "rows: none given; add a line LABEL: OVERRIDES for each"
    yield from _wrong_words(content.get("overrides"), "overrides")
    for label, words in rows.items():
        if not isinstance(label, str) or not LABEL.fullmatch(label):
            yield f"rows.{label}: a label is text of letters, digits, single spaces and _ + - . = (quote a number)"
        yield from _wrong_words(words, f"rows.{label}")
    for key, what in (("paper", "metrics"), ("needs", "keys")):
        for label, inner in (content.get(key) or {}).items():
            if label not in rows:
                there = ", ".join(map(str, rows))
                yield f"{key}.{label}: no such row{close(str(label), rows, '')}; rows: {there}"
            if not isinstance(inner, dict) or not all(isinstance(name, str) for name in inner):
                yield f"{key}.{label}={inner} is not a mapping of {what}"
            elif fixed := [name for name in inner if key == "needs" and name in (*OF_RUNS, "output_dir")]:
                yield f"needs.{label}.{fixed[0]}: takes no run folder; name a key such as model.weights"
    for label, figures in (content.get("paper") or {}).items():
        yield from wrong_figures(figures, f"paper.{label}") if isinstance(figures, dict) else ()


def _wrong_words(words: Any, where: str) -> Iterator[str]:
    if problem := Option(where, str | None, False).problem(words, where):
        yield f"{problem}: overrides as after train.py"
        return
    try:
        split = shlex.split(words or "")
    except ValueError as error:
        yield f"{where}: {words}: {str(error).lower()}"
        return
    if fixed := [word for word in split if key_of(word) in OF_RUNS]:
        yield f"{where}: {' '.join(fixed)}: set by the runs of a row; leave it out"


def wrong_figures(figures: Any, where: str) -> Iterator[str]:
    """What is wrong with a paper's figures by metric, ``{metric: {value, provenance}}``."""
    if not isinstance(figures, dict):
        yield f"{where}={figures} is not a mapping of metrics"
        return
    for metric, figure in figures.items():
        yield from _wrong_figure(figure, f"{where}.{metric}")


def _wrong_figure(figure: Any, where: str) -> Iterator[str]:
    if not isinstance(figure, dict) or figure.keys() != FIGURE.keys():
        yield f"{where}: a figure is {{value: NUMBER, provenance: TEXT}}, both of them and no more"
        return
    for key, kind in FIGURE.items():
        if problem := Option(key, kind, False).problem(figure[key], f"{where}.{key}"):
            yield problem


def _wrong_needs(table: Table) -> Iterator[str]:
    """Needed rows that there are not, and rows that need themselves."""

    def rows_needed(at: Table, label: str) -> Iterator[tuple[str, Table, str]]:
        for key, needed in at.needs.get(label, {}).items():
            where = f"needs.{label}.{key}"
            if not isinstance(needed, str):
                raise InputError(f"{where}={needed} is not a row: give ROW or TABLE/ROW")
            if needed in at.rows:
                yield where, at, needed
                continue
            name, slash, row = needed.partition("/")
            if not slash:
                known = ", ".join(at.rows)
                raise InputError(f"{where}: no row {needed}{close(needed, at.rows, '')}; rows: {known}")
            try:
                other = at if name == at.name else _read(name, at.config_dirs)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            if row not in other.rows:
                raise InputError(f"{where}: table {name} has no row {row}{close(row, other.rows, '')}")
            yield where, other, row

    def walk(at: Table, label: str, path: list[str]) -> None:
        for where, other, row in rows_needed(at, label):
            name = f"{other.name}/{row}"
            if name in path:
                circle = [*path[path.index(name) :], name]
                raise InputError(f"{where}: rows need each other in a circle: {' → '.join(circle)}")
            walk(other, row, [*path, name])

    for label in table.needs:
        try:
            walk(table, label, [f"{table.name}/{label}"])
        except InputError as error:
            yield str(error)
            return
