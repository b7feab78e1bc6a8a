"""``metrics.csv``, which survives a kill and a resume."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from neutreno.errors import InputError
from neutreno.files import replacing
from neutreno.records import SECONDS, check_table


class MetricsCSV(Logger):
    """One row per step at which anything was logged; the file is replaced as a whole, so it is never half written.

    Lightning's ``CSVLogger`` deletes what an earlier part of a resumed run had written. ``step`` counts the optimizer
    steps done, ``seconds`` the time since the first row, of all parts of a run together. :meth:`rewind` drops what a
    killed run wrote after its last checkpoint.
    """

    name, version = "csv", ""

    def __init__(self, path: str | Path, write_every_s: float = 5.0) -> None:
        super().__init__()
        self.path, self.write_every_s = Path(path), write_every_s
        self._rows: dict[int, dict[str, str]] = {}
        self._written, self._began = time.monotonic(), None
        there = os.path.lexists(self.path)
        if there:
            check_table(self.path, most=2**33)  # a run may log a million steps
        try:
            text = self.path.read_text(encoding="utf-8") if there else ""
            for row in csv.DictReader(text.splitlines()):
                if None in row or None in row.values():
                    raise ValueError("a row that is longer or shorter than the first")
                float(row.get(SECONDS) or 0)
                self._rows[int(row["step"])] = {k: v for k, v in row.items() if v != ""}
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise InputError(f"{self.path} was not written by a run; remove it to continue without it") from error

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The run folder holds ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if SECONDS in metrics:
            raise InputError(f"a metric is called {SECONDS}, as the clock of metrics.csv is; log it by another name")
        row = self._rows.setdefault(int(step or 0), {"step": str(int(step or 0))})
        row |= {name: f"{value:.8g}" for name, value in metrics.items()} | {SECONDS: f"{self._seconds():.1f}"}
        if time.monotonic() - self._written > self.write_every_s:
            self.save()

    def _seconds(self) -> float:
        if self._began is None:
            spent = max((float(row.get(SECONDS, 0)) for row in self._rows.values()), default=0)
            self._began = time.monotonic() - spent
        return time.monotonic() - self._began

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget rows beyond ``step``, where training goes on."""
        self._rows = {s: row for s, row in self._rows.items() if s <= step}

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        columns = dict.fromkeys(["step", "epoch", SECONDS, *sorted({k for row in self._rows.values() for k in row})])
        with replacing(self.path) as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(row for _, row in sorted(self._rows.items()))
        self._written = time.monotonic()

    def finalize(self, status: str) -> None:
        self.save()
