"""Which runs belong to a row of a table, and what those that were started for it do otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neutreno.config.composing import CONFIGS
from neutreno.config.gate import ways_of_execution
from neutreno.config.words import key_of, options_in
from neutreno.errors import InputError
from neutreno.reports.reading import Run
from neutreno.runs import shared
from neutreno.tablefiles import Table, composed_of, read_table

Origin = tuple[str, str]  # see Run.origin


class Origins:
    """Rows of tables and experiments as their files stand now, each composed once.

    A record is data of anybody's: nothing of it is composed but names of options that there are.
    """

    def __init__(self, config_dirs: Sequence[str] = ()) -> None:
        self.config_dirs = list(config_dirs)
        self._known: dict[Any, Any] = {}

    def differing(self, run: Run, origin: Origin | None = None) -> list[str]:
        """Where a run's settings differ from those of ``origin`` (default: the run's own), beyond seed and execution,
        and beyond the data set where that leaves it open."""
        origin = origin or run.origin
        if origin is None:
            return []
        try:
            own = self._shared(run, origin)
        except InputError as error:
            return [str(error).splitlines()[0]]
        keys = sorted({*own, *run.shared}) if own != run.shared else []
        return [f"{k}={run.shared.get(k)} ({origin[0]}: {own.get(k)})" for k in keys if own.get(k) != run.shared.get(k)]

    def broken(self, table: Table) -> list[str]:
        """Rows of a table that could not be composed for any run."""
        found = []
        for label in table.rows:
            tried = [v for k, v in self._known.items() if isinstance(k, tuple) and k[0] == table.origin(label)]
            if tried and all(isinstance(known, InputError) for known in tried):
                found.append(f"{table.file}: rows.{label}: {str(tried[0]).splitlines()[0]}")
        return found

    def packages(self) -> list[str]:
        """Those that hold the classes of what was composed: files of other packages name them."""
        found = [v for known in self._known.values() if isinstance(known, dict) for k, v in known.items()
                 if k.endswith("_target_") and isinstance(v, str)]  # fmt: skip
        return sorted({path.partition(".")[0] for path in found})

    def leaves_data_open(self, origin: Origin) -> bool:
        return self._once(("leaves data open", origin), lambda: not self._fixes_data(*origin))

    def _shared(self, run: Run, origin: Origin) -> dict[str, Any]:
        """What the runs of ``origin`` share, of the run's data set and ways of execution."""
        more = []
        if self.leaves_data_open(origin) and run.settings["data"] in self._options("data"):
            more.append(f"data={run.settings['data']}")
        for key, _, value in (word.partition("=") for word in run.result["overrides"]):
            brings = any(name.startswith(f"{key}.") for name in run.shared)  # trainer=gpu sets the precision
            if key in ways_of_execution() and brings and value in self._options(key):
                more.append(f"{key}={value}")
        execution = frozenset([*run.result["execution"], *ways_of_execution()])
        settings = self._once(
            (origin, *more), lambda: composed_of(self._words(origin, more), self.config_dirs).settings
        )
        return self._once((origin, *more, execution), lambda: shared(settings, execution.__contains__))

    def _words(self, origin: Origin, more: Sequence[str]) -> list[str]:
        kind, name = origin
        if kind == "row":
            return self._table(name).words(name.partition("/")[2], 0, more)
        if name not in self._options("experiment"):
            raise InputError("its experiment is not among the files read (--config-dir DIR reads a package's)")
        return [f"experiment={name}", "seed=0", *more]

    def _table(self, row: str) -> Table:
        name, _, label = row.partition("/")
        table = self._once(("table", name), lambda: read_table(name, self.config_dirs))
        if label not in table.rows:
            raise InputError(f"{table.file} has no row {label}")
        return table

    def _fixes_data(self, kind: str, name: str) -> bool:
        words = [f"experiment={name}"]
        if kind == "row":
            table = self._table(name)
            words = [*table.overrides, *table.rows[name.partition("/")[2]]]
        if any(key_of(word) == "data" for word in words):
            return True
        named = [word.partition("=")[2] for word in words if key_of(word) == "experiment"]
        folders = [Path(folder) / "experiment" for folder in (*self.config_dirs, CONFIGS)]
        files = [folder / f"{name}.yaml" for name in named for folder in folders if name in self._options("experiment")]
        return any("override /data:" in file.read_text() for file in files if file.is_file())

    def _options(self, group: str) -> list[str]:
        return self._once(("options", group), lambda: options_in(group, self.config_dirs))

    def _once(self, key: Any, find: Any) -> Any:
        """What ``find`` gives, or raises, the first time."""
        if key not in self._known:
            try:
                self._known[key] = find()
            except InputError as error:
                self._known[key] = error
        if isinstance(self._known[key], InputError):
            raise self._known[key]
        return self._known[key]


def labels_of(run: Run, table: Table, origins: Origins) -> list[tuple[str, list[str]]]:
    """The rows of ``table`` that a run belongs to, each with what the run does otherwise.

    Those whose settings it has; else the one it was started for.
    """
    if equal := [label for label in table.rows if not origins.differing(run, table.origin(label))]:
        return [(label, []) for label in equal]
    return [(label, origins.differing(run)) for label in table.rows if run.origin == table.origin(label)]
