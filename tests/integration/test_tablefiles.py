"""A table is one file: its rows are lines, its runs are found again, and what it needs is made first."""

import csv
import json
import re

import pytest
from support import ROOT, TINY, make_run
from support.tables import TWO_ROWS, rows_in, run_of, write

from neutreno.cli.reproduce import plan_runs
from neutreno.config.composing import compose
from neutreno.errors import InputError
from neutreno.reports.tables import print_tables
from neutreno.sweep import plan
from neutreno.tablefiles import read_table, tables_in


def test_rows_stand_in_the_files_order_under_its_labels_and_their_runs_are_found_by_their_settings(tmp_path, capsys):
    write(tmp_path, TWO_ROWS + "  later: model=deit block=featscale\n  never: model=deit attention=xsa\n")
    table = read_table("mine", [str(tmp_path / "conf")])
    for seed in (0, 1):
        run_of(table, "later", tmp_path / "runs", seed)
        run_of(table, "mine + λ̃=0.2", tmp_path / "runs", seed)
    make_run(tmp_path / "runs/typed", "model=deit", "seed=3", "trainer=gpu", "data.num_workers=1")  # no row was said
    make_run(tmp_path / "runs/other", "model=deit", "task.lr=0.1")  # of no row
    run_of(table, "theirs", tmp_path / "runs", 4, ["task.lr=0.2"])
    print_tables([tmp_path / "runs"], table, config_dirs=table.config_dirs)
    page = capsys.readouterr().out
    assert rows_in(page) == [("theirs", "1"), ("theirs *", "1"), ("mine + λ̃=0.2", "2"), ("later", "2")]
    assert "departs: task.lr=0.2 (row: 0.002)" in page and "task.lr=0.1" not in page
    assert "not in the table: never: no finished run" in page


def test_a_table_that_leaves_the_data_set_open_holds_the_rows_of_each(tmp_path, capsys):
    write(tmp_path, "rows: {a: model=deit, b: model=deit_neutreno}")
    table = read_table("mine", [str(tmp_path / "conf")])
    for data in ("digits", "cifar10"):
        for label in table.rows:
            run_of(table, label, tmp_path / "runs", 0, [f"data={data}"])
    print_tables([tmp_path / "runs"], table, config_dirs=table.config_dirs)
    names = [row for row, _ in rows_in(capsys.readouterr().out)]
    assert [name.split(" deit-mini")[0] for name in names] == ["a (cifar10", "b (cifar10", "a (digits", "b (digits"]
    write(tmp_path, "overrides: data=digits\nrows: {a: model=deit, b: model=deit_neutreno}")
    table = read_table("mine", [str(tmp_path / "conf")])
    print_tables([tmp_path / "runs"], table, config_dirs=table.config_dirs)
    names = [row for row, _ in rows_in(capsys.readouterr().out)]
    assert names == ["a", "a *", "b", "b *"]


def test_two_tables_with_the_same_row_share_its_run(tmp_path, capsys):
    write(tmp_path, "rows: {a: model=deit attention=xsa task.lr=0.1}", "one")
    write(tmp_path, "overrides: task.lr=0.1 model=deit\nrows: {b: attention=xsa}", "two")
    one, two = (read_table(name, [str(tmp_path / "conf")]) for name in ("one", "two"))
    run_of(one, "a", tmp_path / "runs")
    assert plan(two.compose("b", 0, [f"output_dir={tmp_path / 'runs'}"])).state == "finished"
    print_tables([tmp_path / "runs"], two, config_dirs=two.config_dirs)
    assert rows_in(capsys.readouterr().out) == [("b", "1")]


def test_the_papers_perplexities_stand_beside_the_sliding_windows(tmp_path, capsys):
    """Training finds that of independent sequences; which evaluation finds the other is said until it is there."""
    table = read_table("table3")
    run = run_of(table, "softmax", tmp_path, more=["data.root=x"], value=35.0)
    print_tables([tmp_path], table)
    page = capsys.readouterr().out
    assert "35.00" in page and "34.29" not in page and "departs" not in page and "neutreno: no finished run" in page
    command = "neutreno evaluate RUN 'evaluators=[perplexity]' 'evaluator.perplexity.sliding=[1]' finds them"
    assert f"test/ppl_stride1, val/ppl_stride1, val/ppl of {run}; {command}" in page
    found = {"test/ppl_stride1": 34.0, "val/ppl_stride1": 33.0, "test/ppl": 35.0, "val/ppl": 36.0}
    (run / "evaluation.json").write_text(json.dumps({"metrics": found}))
    print_tables([tmp_path], table, style="csv")
    captured = capsys.readouterr()
    (row,) = csv.DictReader(captured.out.splitlines())
    figures = {metric: (float(row[f"{metric} mean"]), row.get(f"paper's {metric} paper")) for metric in found}
    assert figures == {
        "test/ppl_stride1": (34.0, "34.29"),
        "val/ppl_stride1": (33.0, "33.15"),
        "test/ppl": (35.0, None),
        "val/ppl": (36.0, None),
    }
    provenance = row["paper's test/ppl_stride1 provenance"]
    assert provenance == "from memory, unverified; protocol inferred from lmtool-fwp"
    assert "evaluate" not in captured.err


def test_the_papers_robustness_stands_beside_what_an_evaluation_finds(tmp_path, capsys):
    table = read_table("robustness")
    run = run_of(read_table("table1"), "deit_tiny_neutreno", tmp_path, more=["data.root=x"])  # the same run
    print_tables([tmp_path], table)
    page = capsys.readouterr().out
    command = "'evaluator.robustness={imagenet_c:FOLDER,imagenet_a:FOLDER,imagenet_r:FOLDER}' finds them"
    assert f"imagenet_c/mce, imagenet_a/top1, imagenet_r/top1 of {run}; " in page and command in page
    found = {"imagenet_c/mce": 71.0, "imagenet_a/top1": 8.0, "imagenet_r/top1": 33.0}
    (run / "evaluation.json").write_text(json.dumps({"metrics": found}))
    print_tables([tmp_path], table)
    page = capsys.readouterr().out
    figures = ("70.10", "8.20", "33.82")
    assert all(f"{figure} (listed, row inferred)" in page for figure in figures) and "finds them" not in page


def test_a_smaller_sliding_perplexity_is_said_to_be_the_better(tmp_path, capsys):
    table = read_table("table3")
    for label, perplexity in (("softmax", 34.0), ("neutreno", 33.0)):
        run = run_of(table, label, tmp_path, more=["data.root=x"])
        (run / "evaluation.json").write_text(json.dumps({"metrics": {"test/ppl_stride1": perplexity}}))
    print_tables([tmp_path], table, metrics=["test/ppl_stride1"])
    page = capsys.readouterr().out
    assert "test/ppl_stride1: difference, 95 % Welch, smaller is better" in page and "| -1.00" in page


def test_what_is_needed_is_made_first_and_its_folder_handed_on():
    table = read_table("proxy")
    jobs, _ = plan_runs(table, range(2), ["trainer=gpu", "data.root=x"])
    rows = [word.removeprefix("row=proxy/") for job in jobs for word in job.overrides if word.startswith("row=")]
    assert len(jobs) == 20 and rows[:2] == ["deit_tiny_softmax", "deit_small_softmax"]
    assert all(row.endswith("adaptation") for row in rows[-4:])
    for job in jobs[-4:]:
        (needed,) = job.needs
        assert needed in jobs[:16] and f"model.weights={needed.run.path}" in job.overrides
        assert needed.name.endswith(job.name.partition("-seed")[2].partition("-")[0]) and "outputs" not in job.name
    given, _ = plan_runs(table, range(1), ["model.weights=null"])
    assert not any(job.needs for job in given)


def test_rows_that_others_need_share_a_row_over_their_seeds(tmp_path, capsys):
    more = "rows: {a: model=deit, b: model=deit task.lr=0.1}\nneeds: {b: {model.weights: a}}\n"
    write(tmp_path, f"overrides: {' '.join(TINY)}\n{more}")  # long names, of which a digest stands
    table = read_table("mine", [str(tmp_path / "conf")])
    for label in table.rows:
        for seed in (0, 1):
            run_of(table, label, tmp_path / "runs", seed)
    print_tables([tmp_path / "runs"], table, config_dirs=table.config_dirs)
    assert rows_in(capsys.readouterr().out) == [("a", "2"), ("b", "2")]


def test_a_finished_run_of_text_is_not_made_again(tmp_path):
    """Its epochs are counted from its steps when it starts."""
    table = read_table("small")
    run = run_of(table, "text_softmax", tmp_path)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("max_epochs: null", "max_epochs: 6"))
    assert plan(table.compose("text_softmax", 0, [f"output_dir={tmp_path}"])).state == "finished"


@pytest.mark.parametrize("name", tables_in())
def test_every_row_of_every_table_passes_the_gate(name):
    table, checked = read_table(name), set()
    for label, words in table.rows.items():
        kind = frozenset(word for word in words if not re.search(r"=(5|15|30|60|120|\de-\d)$", word))
        if kind not in checked:  # of rows that differ in a depth or a rate one
            table.check(label)
        checked.add(kind)


def test_every_row_of_the_paper_stands_in_its_table():
    for name in ("table1", "table2", "table3"):
        files = (ROOT / f"configs/experiment/{name}").glob("*.yaml")
        words = {f"experiment={name}/{file.stem}" for file in files}
        assert {" ".join(row) for row in read_table(name).rows.values()} == words


def test_a_data_set_of_ones_own_names_the_recipe_of_another(tmp_path):
    (tmp_path / "conf/data").mkdir(parents=True)
    lines = ["defaults: [cifar10, override /recipe@_global_.recipe: cifar10, _self_]", "num_classes: 7"]
    (tmp_path / "conf/data/mine.yaml").write_text("\n".join(lines))
    found = compose(["data=mine"], config_dirs=[str(tmp_path / "conf")])
    assert found.choices["recipe"] == "cifar10" and found.settings["model"]["num_classes"] == 7
    other = compose(["data=mine", "recipe=imagenet"], config_dirs=[str(tmp_path / "conf")])
    assert other.settings["data"]["repeats"] == 3


def test_some_rows_of_a_table_are_those_that_match_and_what_they_need():
    whole = read_table("table2")
    assert whole.only("*") == whole and whole.whole
    some = read_table("dgn_gcn").only("pubmed 2 *")
    assert [*some.rows] == [f"pubmed 2 {norm}" for norm in ("none", "batch", "pair", "dgn")] == [*some.paper]
    jobs, _ = plan_runs(some, range(1), ["data.root=x"])  # these rows do not measure each column of the table
    assert len(jobs) == 4
    with pytest.raises(InputError, match="no row of dgn_gcn matches 'cora'; rows: cora 2 none, "):
        read_table("dgn_gcn").only("cora")


def test_notes_are_columns_of_words_in_every_format(tmp_path, capsys):
    notes = "notes: {who says so: {theirs: 'they, 5 % of the time | or less'}, mind: {mine + λ̃=0.2: untuned}}\n"
    write(tmp_path, TWO_ROWS + "columns: [parameters]\n" + notes)
    table = read_table("mine", [str(tmp_path / "conf")])
    for label in table.rows:
        run_of(table, label, tmp_path / "runs")
    printed = {}
    for style in ("md", "latex", "csv"):
        print_tables([tmp_path / "runs"], table, style=style, config_dirs=table.config_dirs)
        printed[style] = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in printed["md"].splitlines() if line.startswith("| ")]
    header, theirs, mine = ([cell.strip() for cell in line] for line in lines)
    assert header[-3:] == ["parameters", "who says so", "mind"]
    assert theirs[-1] == "they, 5 % of the time &#124; or less" and mine[-1] == "untuned"
    assert r"they, 5 \% of the time" in printed["latex"] and "untuned" in printed["latex"]
    found = [(row["who says so"], row["mind"]) for row in csv.DictReader(printed["csv"].splitlines())]
    assert found == [("they, 5 % of the time | or less", ""), ("", "untuned")]
    print_tables([tmp_path / "runs"], table.only("mine*"), config_dirs=table.config_dirs)
    assert "who says so" not in capsys.readouterr().out


def test_notes_of_no_row_and_notes_that_are_no_words_are_refused(tmp_path):
    for notes, said in (
        ("mind: {their: x}", r"notes\.mind\.their: no such row; did you mean theirs\?"),
        ("mind: {theirs: 3}", r"notes\.mind\.theirs=3 "),
        ("mind: x", r"notes\.mind=x is not a mapping"),
    ):
        write(tmp_path, TWO_ROWS + f"notes: {{{notes}}}\n")
        with pytest.raises(InputError, match=said):
            read_table("mine", [str(tmp_path / "conf")])


def test_every_row_of_the_lab_tells_what_its_authors_claim():
    table = read_table("lab")
    assert table.notes["what its authors claim"].keys() == table.rows.keys()


def test_a_row_that_cannot_be_stands_with_a_dash_and_its_reason(tmp_path, capsys):
    write(tmp_path, TWO_ROWS + "absent: {first alone: its term acts nowhere, third: no such thing}\n")
    table = read_table("mine", [str(tmp_path / "conf")])
    for label in table.rows:
        run_of(table, label, tmp_path / "runs")
    print_tables([tmp_path / "runs"], table, config_dirs=[str(tmp_path / "conf")])
    printed = capsys.readouterr().out
    assert [row for row, _ in rows_in(printed)] == ["theirs", "mine + λ̃=0.2", "first alone", "third"]
    assert "| – " in printed and "–: first alone: its term acts nowhere" in printed
    assert {seeds for _, seeds in rows_in(printed)} == {"1", ""}
    print_tables([tmp_path / "runs"], table, style="csv", config_dirs=[str(tmp_path / "conf")])
    assert "–" not in capsys.readouterr().out
    with pytest.raises(InputError, match="mine cannot have the row first alone: its term acts nowhere"):
        table.only("first*")
    assert [*table.only("th*").absent] == ["third"]
    write(tmp_path, TWO_ROWS + "absent: {theirs: it is there}\n")
    with pytest.raises(InputError, match=r"absent\.theirs: rows has it, too; leave one out"):
        read_table("mine", [str(tmp_path / "conf")])


def test_needed_rows_come_along(tmp_path):
    write(tmp_path, TWO_ROWS + "needs: {theirs: {model.weights: 'mine + λ̃=0.2'}}\n")
    table = read_table("mine", [str(tmp_path / "conf")])
    assert [*table.only("theirs").rows] == [*table.rows] and [*table.only("mine*").rows] == ["mine + λ̃=0.2"]


def test_a_column_that_no_run_has_measured_is_left_out_and_said(tmp_path, capsys):
    write(tmp_path, TWO_ROWS + "columns: [attention_entropy]\n")
    table = read_table("mine", [str(tmp_path / "conf")])
    run_of(table, "theirs", tmp_path / "runs")
    print_tables([tmp_path / "runs"], table, config_dirs=table.config_dirs)
    said = capsys.readouterr().out
    assert "not in the table: attention_entropy: no run has measured it" in said and rows_in(said)
    with pytest.raises(InputError, match="no run has measured attention_entropy"):
        print_tables([tmp_path / "runs"], table, columns=["attention_entropy"], config_dirs=table.config_dirs)
