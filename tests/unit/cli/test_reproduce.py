"""What the plan of a table prints."""

import time

from neutreno.cli import reproduce


def test_a_plan_is_all_that_a_dry_run_prints_however_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "LINE_EVERY_S", 1.0)
    monkeypatch.setattr(reproduce, "plan_runs", lambda *_: time.sleep(2) or ([], None))
    monkeypatch.setattr(reproduce, "unfinished_elsewhere", lambda *_: {})
    assert reproduce.main(["small", "--dry-run"]) == 0
    assert "checking the runs" not in capsys.readouterr().out
