"""The dashboard's page: what it holds and names, without a browser."""

import json
import re

from support import ROOT, make_run

from neutreno.reports.dashboard import write_dashboard
from neutreno.reports.reading import read_runs


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
