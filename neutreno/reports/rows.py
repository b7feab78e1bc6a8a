"""Which runs belong to a row of a table, and what those that were started for it do otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from neutreno.config.composing import CONFIGS
from neutreno.config.gate import ways_of_execution
from neutreno.config.words import key_of, options_in
from neutreno.errors import InputError
from neutreno.reports.reading import Run
from neutreno.runs import packages, shared
from neutreno.tablefiles import Table, composed_of, read_table

Origin = tuple[str, str]  # see Run.origin


class Origins:
    """Rows of tables and experiments as their files stand now, each composed once.

    A record is data of anybody's: nothing of it is composed but names of options that there are.
    """

    def __init__(self, config_dirs: Sequence[str] = ()) -> None:
        self.config_dirs = list(config_dirs)
        self._composed: dict[tuple[Origin, str], dict[str, Any] | InputError] = {}  # by what is typed beside an origin
        self._shared = cache(lambda own, execution: shared(self._composed[own], execution.__contains__))
        self._table = cache(lambda name: read_table(name, self.config_dirs))
        self._options = cache(lambda group: options_in(group, self.config_dirs))
        self.leaves_data_open = cache(lambda origin: not self._fixes_data(*origin))

    def differing(self, run: Run, origin: Origin | None = None) -> list[str]:
        """Where a run's settings differ from those of ``origin`` (default: the run's own), beyond seed and execution,
        and beyond the data set where that leaves it open."""
        origin = origin or run.origin
        if origin is None:
            return []
        execution = frozenset([*run.result["execution"], *ways_of_execution()])
        try:
            own = self._shared(self._compose(run, origin), execution)
        except InputError as error:
            return [str(error).splitlines()[0]]
        differ = [key for key in {*own, *run.shared} if own.get(key) != run.shared.get(key)]
        return [f"{key}={run.shared.get(key)} ({origin[0]}: {own.get(key)})" for key in sorted(differ)]

    def broken(self, table: Table) -> list[str]:
        """Rows of a table that could not be composed for any run."""
        found = []
        for label in table.rows:
            tried = [known for (origin, _), known in self._composed.items() if origin == table.origin(label)]
            if tried and all(isinstance(known, InputError) for known in tried):
                found.append(f"{table.file}: rows.{label}: {str(tried[0]).splitlines()[0]}")
        return found

    def packages(self) -> list[str]:
        """Those that hold the classes of what was composed: files of other packages name them."""
        return sorted(set().union(*(packages(known) for known in self._composed.values() if isinstance(known, dict))))

    def _compose(self, run: Run, origin: Origin) -> tuple[Origin, str]:
        """Compose ``origin`` for the run's data set and ways of execution, unless it has been; what it is kept by."""
        more = []
        if self.leaves_data_open(origin) and run.settings["data"] in self._options("data"):
            more.append(f"data={run.settings['data']}")
        for key, _, value in (word.partition("=") for word in run.result["overrides"]):
            brings = any(name.startswith(f"{key}.") for name in run.shared)  # trainer=gpu sets the precision
            if key in ways_of_execution() and brings and value in self._options(key):
                more.append(f"{key}={value}")
        own = origin, " ".join(more)
        if own not in self._composed:
            try:
                self._composed[own] = composed_of(self._words(origin, more), self.config_dirs).settings
            except InputError as error:  # of many runs, and said once
                self._composed[own] = error
        if isinstance(self._composed[own], InputError):
            raise self._composed[own]
        return own

    def _words(self, origin: Origin, more: Sequence[str]) -> list[str]:
        kind, name = origin
        if kind == "row":
            return self._table_of(name).words(name.partition("/")[2], 0, more)
        if name not in self._options("experiment"):
            raise InputError("its experiment is not among the files read (--config-dir DIR reads a package's)")
        return [f"experiment={name}", "seed=0", *more]

    def _table_of(self, row: str) -> Table:
        name, _, label = row.partition("/")
        table = self._table(name)
        if label not in table.rows:
            raise InputError(f"{table.file} has no row {label}")
        return table

    def _fixes_data(self, kind: str, name: str) -> bool:
        words = [f"experiment={name}"]
        if kind == "row":
            table = self._table_of(name)
            words = [*table.overrides, *table.rows[name.partition("/")[2]]]
        named = [word.partition("=")[2] for word in words if key_of(word) == "experiment"]
        known = [f"experiment/{option}.yaml" for option in named if option in self._options("experiment")]
        files = [Path(folder) / file for file in known for folder in (*self.config_dirs, CONFIGS)]
        return any(key_of(word) == "data" for word in words) or any(
            "override /data:" in file.read_text() for file in files if file.is_file()
        )


def labels_of(run: Run, table: Table, origins: Origins) -> list[tuple[str, list[str]]]:
    """The rows of ``table`` that a run belongs to, each with what the run does otherwise.

    Those whose settings it has; else the one it was started for.
    """
    differing = {label: origins.differing(run, table.origin(label)) for label in table.rows}
    equal = [(label, []) for label, departs in differing.items() if not departs]
    return equal or [(label, departs) for label, departs in differing.items() if run.origin == table.origin(label)]
