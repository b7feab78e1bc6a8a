"""docs/findings.md says what docs/data gives, and docs/data what runs have recorded."""

import csv
import json
import re
import shutil
import sys

import pytest
from support import ROOT, TINY, assert_one_line_error, run_forked

from neutreno.errors import InputError
from neutreno.tablefiles import read_table

DATA = sorted((ROOT / "docs/data").glob("*.csv"))


@pytest.fixture
def findings(monkeypatch, tmp_path):
    """The script, which reads and writes a copy of what it would in docs."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import findings
    import studies

    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs/data", docs / "data")
    shutil.copy(ROOT / "docs/findings.md", docs)
    (docs / "figures").mkdir()
    monkeypatch.setattr(studies, "DOCS", docs)
    monkeypatch.setattr(sys, "argv", ["findings.py"])
    return findings


def test_every_table_of_the_findings_is_what_its_data_give_and_every_figure_is_drawn(findings):
    page = findings.studies.DOCS / "findings.md"
    written = page.read_text()
    assert set(re.findall(r"<!-- table: (\S+) -->", written)) == {*findings.TABLES}
    page.write_text(re.sub(r"(?<=-->\n)\|.*?(?=<!-- end)", "", written, flags=re.DOTALL))
    findings.main()
    assert page.read_text() == written
    drawn = {file.name for file in (findings.studies.DOCS / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in findings.FIGURES for kind in ("pdf", "png")}
    assert {f"{name}.png" for name in findings.FIGURES} <= set(re.findall(r"\(figures/(\S+?)\)", written))
    assert all((ROOT / "docs/figures" / name).exists() for name in drawn)


@pytest.mark.parametrize("file", DATA, ids=[file.stem for file in DATA])
def test_data_are_small_and_name_the_command_and_the_rows_of_their_table(file):
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert file.stat().st_size <= 200_000
    assert head[0].startswith(f"# python scripts/reproduce.py {file.stem} --seeds ")
    made = [re.match(r"# (\d+) runs, \d+\.\d hours in all; commit \w{7}\b", line) for line in head[1:]]
    rows = [*csv.DictReader(lines)]
    assert sum(int(found[1]) for found in made) == len({(row["row"], row["seed"]) for row in rows})
    assert {row["row"] for row in rows} <= read_table(file.stem).rows.keys()


def test_what_is_collected_is_what_runs_of_that_table_have_recorded(findings, tmp_path, monkeypatch):
    words = ["row='digits_depth/softmax depth 12'", "name=x", "seed=3", "probe.at_steps=[0,2]", "trainer.max_epochs=1"]
    assert run_forked("train.py", *TINY, *words, cwd=tmp_path).returncode == 0
    record = json.loads((tmp_path / "outputs/x/result.json").read_text())
    monkeypatch.setattr(sys, "argv", ["findings.py", "--collect", "digits_depth", str(tmp_path / "outputs")])
    file = findings.studies.DOCS / "data/digits_depth.csv"
    before = file.read_text().splitlines()
    findings.main()
    study = findings.Study.read("digits_depth")
    row = "softmax depth 12"
    assert [*study.values(row, "test/top1").index] == [0, 1, 2, 3]
    after = file.read_text().splitlines()
    assert [line for line in after if line in {*before}] == before  # what was there stays, in its order
    (line,) = [line for line in after if line.startswith("#") and line not in before]
    assert line.startswith("# 1 runs, 0.0 hours in all; commit ")
    findings.main()
    assert file.read_text().splitlines() == after  # a run is collected once
    assert study.values(row, "test/top1")[3] == pytest.approx(record["metrics"]["test/top1"], rel=1e-5)
    assert study.course(row, "cosine").index.tolist()[:2] == [0, 2]
    last = max(r["layer"] for r in record["oversmoothing"])
    (end,) = [
        r["mean"]
        for r in record["oversmoothing"]
        if (r["layer"], r["metric"], r["subset"], r["step"]) == (last, "cosine", "all", record["steps"])
    ]
    assert study.values(row, "cosine")[3] == pytest.approx(end, rel=1e-3)
    assert len(study.course(row, "train/loss")) > 0
    file.write_text("something else\n1\n")
    with pytest.raises(InputError, match=r"digits_depth\.csv has not the columns row, seed"):
        findings.main()
    other = run_forked("scripts/findings.py", "--collect", "lab", str(tmp_path / "outputs"), cwd=tmp_path)
    assert_one_line_error(other, "no finished run of lab in")


def test_the_best_rates_are_those_that_the_data_choose(findings):
    rates = findings.Study.read("collapse_rates")
    for row, chosen in findings.BEST.items():
        of = {rate: rates.values(f"{row} {rate}", "best/val/ppl").mean() for rate in findings.RATES}
        assert min(of, key=of.get) == chosen, row


def test_every_row_that_is_shown_is_one_of_a_table(findings):
    shown = [pair for table in findings.TABLES.values() for pair in rows_of(table)]
    assert len(shown) > 100
    for study, row in shown:
        assert row in read_table(study).rows, (study, row)


def rows_of(table):
    if hasattr(table, "pairs"):
        return [row for _, *pair in table.pairs.values() for row in pair]
    if hasattr(table, "study"):
        return [(table.study, row) for row in table.rows.values()]
    return [row for rows in table.rows.values() for row in rows]


def test_a_row_without_runs_is_named(findings):
    study = findings.Study.read("collapse")
    with pytest.raises(InputError, match="collapse: no run of softmx has been collected"):
        study.values("softmx", "best/test/ppl")
