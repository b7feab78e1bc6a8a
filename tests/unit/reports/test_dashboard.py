"""The dashboard's page: what it holds and names, without a browser."""

import json
import re

import pytest
from support import ROOT, make_run

from neutreno.reports.dashboard import write_dashboard
from neutreno.reports.reading import more_to_come, read_runs


def test_the_page_names_nothing_that_runs_are_compared_by():
    named = (
        r"\blam|λ|attention|\bblock|softmax|\btop-?\d|miou|\bppl|perplexity|accuracy|classif|segment|language|digits"
    )
    for file in (ROOT / "neutreno/reports").glob("dashboard.*"):
        assert not re.findall(named, file.read_text(), re.IGNORECASE), file


def test_a_page_that_watches_loads_itself_anew_until_the_runs_end(tmp_path):
    run = make_run(tmp_path / "runs/a", status="running")
    for reload_s in (10.0, None):
        write_dashboard(read_runs([run])[0], tmp_path / "d.html", reload_s)
        assert f'"reload_s":{json.dumps(reload_s)}' in (tmp_path / "d.html").read_text()


def test_names_cannot_end_the_script_that_carries_them(tmp_path):
    run = make_run(tmp_path / "runs/x")
    text = run / "config.yaml"
    text.write_text(text.read_text().replace("opt: adamw", "opt: </script><script>alert(1)"))
    write_dashboard(read_runs([run])[0], tmp_path / "d.html")
    assert "<script>alert" not in (tmp_path / "d.html").read_text()


@pytest.mark.parametrize(
    ("last", "awaited"),
    [
        ('{"runs": [{"state": "finished"}, {"state": "waiting"}]}', True),
        ('{"runs": [{"state": "running"}]}', True),
        ('{"runs": [{"state": "finished"}, {"state": "failed"}, {"state": "interrupted"}]}', False),
        ('{"runs": [{}]}', False),
        ('["runs"]', False),
        ("{", False),
    ],
)
def test_runs_that_wait_in_the_last_sweep_of_a_folder_are_still_to_come(tmp_path, last, awaited):
    assert not more_to_come([tmp_path, tmp_path / "none"])
    for time, text in {"2001-01-01_00-00-00": '{"runs": [{"state": "waiting"}]}', "2002-01-01_00-00-00": last}.items():
        (tmp_path / ".sweeps" / time).mkdir(parents=True)
        (tmp_path / ".sweeps" / time / "manifest.json").write_text(text)
    assert more_to_come([tmp_path]) is awaited
