"""``metrics.csv`` of a run that resumes: its own rows, or one line about a file that no run writes."""

import itertools
import os
import time

import pandas as pd
import pytest

from neutreno.callbacks.metrics_csv import MetricsCSV
from neutreno.errors import InputError

ODD = {
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
    "no text": lambda file: file.write_bytes(b"step,a\n1,\xff\n"),
    "a long row": lambda file: file.write_text("step,a\n1,2,3\n"),
    "a short row": lambda file: file.write_text("step,a\n1\n"),
    "no time": lambda file: file.write_text("step,seconds,a\n1,x,2\n"),
    "no step": lambda file: file.write_text("a,b\n1,2\n"),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_a_file_that_no_run_writes_is_refused_in_a_line(make, tmp_path):
    make(tmp_path / "metrics.csv")
    with pytest.raises(InputError, match=r"metrics\.csv") as caught:
        MetricsCSV(tmp_path / "metrics.csv")
    assert "\n" not in str(caught.value)


def test_a_resumed_run_goes_on_in_its_file_and_in_its_time(tmp_path, monkeypatch):
    ticks = itertools.count(100.0, 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    first = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(3):
        first.log_metrics({"loss": 0.5 * step}, step)
    first.save()
    second = MetricsCSV(tmp_path / "metrics.csv")
    second.rewind(1)
    second.log_metrics({"top1": 3.0}, 2)
    second.save()
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table) == ["step", "epoch", "seconds", "loss", "top1"] and list(table["step"]) == [0, 1, 2]
    assert list(table["loss"].dropna()) == [0, 0.5] and list(table["top1"].dropna()) == [3]
    assert table["seconds"][0] < 1 < table["seconds"][1] < table["seconds"][2] < table["seconds"][1] + 1


def test_a_metric_that_is_called_as_the_clock_is_refused_and_not_overwritten(tmp_path):
    with pytest.raises(InputError, match=r"a metric is called seconds.* log it by another name"):
        MetricsCSV(tmp_path / "metrics.csv").log_metrics({"loss": 1.0, "seconds": 2.0}, 1)
