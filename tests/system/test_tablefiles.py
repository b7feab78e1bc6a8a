"""A table is one file, through the commands: what it runs and shows, what is wrong with it is said in a line."""

import pytest
from support import TINY, assert_one_line_error, make_run, run_forked, runs_are_forks
from support.tables import TWO_ROWS, rows_in, run_of, write

from neutreno.errors import InputError
from neutreno.tablefiles import read_table


def test_a_row_is_a_line_and_one_that_is_added_is_all_that_runs(tmp_path):
    file = write(tmp_path, TWO_ROWS)
    command = ["scripts/reproduce.py", "mine", "--config-dir", "conf", "--seeds", "1", *TINY, "trainer.max_epochs=1"]
    done = run_forked(*command, cwd=tmp_path, setup=runs_are_forks)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Mine against theirs\n" in done.stdout and done.stdout.count("| theirs") == 1
    assert [row for row, _ in rows_in(done.stdout)] == ["theirs *", "mine + λ̃=0.2 *"]
    assert "theirs departs: " in done.stdout and "trainer.max_epochs=1 (row: 20)" in done.stdout
    file.write_text(f"{TWO_ROWS}  third: model=deit attention=xsa\n")
    again = run_forked(*command, cwd=tmp_path, setup=runs_are_forks)
    assert again.returncode == 0, again.stderr
    skipped = [line for line in again.stdout.splitlines() if line.startswith("skipped ")]
    assert len(skipped) == 2 and all(line.endswith(": finished") for line in skipped)
    assert again.stdout.count(": starts") == 1 and "digits-deit_mini-xsa-seed0" in again.stdout
    assert [row for row, _ in rows_in(again.stdout)] == ["theirs *", "mine + λ̃=0.2 *", "third *"]
    printed = run_forked("scripts/tables.py", "mine", "--config-dir", "conf", cwd=tmp_path)
    assert rows_in(printed.stdout) == rows_in(again.stdout)


def test_the_papers_figures_metrics_and_columns_are_the_files(tmp_path, capsys):
    (tmp_path / "mycolumns.py").write_text(
        "def runs_of_a_row(group, baseline, trust):\n    return f'{len(group.runs)}!'\n"
    )
    write(
        tmp_path,
        TWO_ROWS + "metric: val/loss\nmetrics: [test/top1, test/none]\n"
        "columns: [effective_rank, parameters, mycolumns.runs_of_a_row]\n"
        "paper: {theirs: {test/top1: {value: 71, provenance: 'from memory, unverified'}}}\n",
    )
    table = read_table("mine", [str(tmp_path / "conf")])
    for label in table.rows:
        run_of(table, label, tmp_path / "runs")
    command = ["scripts/tables.py", "mine", "runs", "--config-dir", "conf"]

    def importable():
        import sys

        sys.path.insert(0, str(tmp_path))

    done = run_forked(*command, cwd=tmp_path, setup=importable)
    assert done.returncode == 0, done.stderr
    header, _, first, _ = (line.split("|") for line in done.stdout.splitlines() if line.startswith("|"))
    titles = [title.strip() for title in header[1:-1]]
    assert titles[2] == "val/loss" and titles.index("test/top1") > 2
    assert titles[-3:] == ["effective rank, trained", "parameters", "runs of a row"]
    assert "71.00 (from memory, unverified)" in done.stdout and first[-2].strip() == "1!"
    assert "test/none: no run has this metric" in done.stdout
    assert_one_line_error(run_forked(*command, cwd=tmp_path), "mycolumns.runs_of_a_row", "no module mycolumns")


def test_what_another_table_has_to_make_first_is_named(tmp_path):
    command = ["scripts/reproduce.py", "table2", "--seeds", "2", "data.root=x"]
    done = run_forked(*command, cwd=tmp_path)
    said = ["softmax_deit_tiny needs table1/deit_tiny_softmax", "run first: neutreno reproduce table1 --seeds 2"]
    assert_one_line_error(done, *said)
    dry = run_forked(*command, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0 and dry.stdout.startswith("first      neutreno reproduce table1 --seeds 2 ")
    for label in ("deit_tiny_softmax", "deit_tiny_neutreno"):
        for seed in (0, 1):
            run_of(read_table("table1"), label, tmp_path / "outputs", seed)
    dry = run_forked(*command, "--dry-run", f"output_dir={tmp_path}/outputs", cwd=tmp_path)
    assert "first" not in dry.stdout and dry.stdout.count("to run") == 4
    given = run_forked(*command, "--dry-run", "model.encoder_weights=x.pt", cwd=tmp_path / "outputs")
    assert "first" not in given.stdout


ROWS = "rows: {a: model=deit, b: model=deit_neutreno}\n"
WRONG = {
    "no mapping": ("- a\n- b\n", ["is not a table"]),
    "nothing": ("", ["is not a table"]),
    "no YAML": ("rows: {a: [}\n", ["not readable YAML", "line 1"]),
    "an unknown key": (ROWS + "metirc: val/top1\n", ["no key metirc; did you mean metric?", "title, overrides"]),
    "no rows": ("title: none\n", ["rows: none given"]),
    "empty rows": ("rows: {}\n", ["rows: none given"]),
    "a title that is none": (ROWS + "title: 3\n", ["title=3 should be a valid string"]),
    "metrics that are no list": (ROWS + "metrics: val/top1\n", ["metrics=val/top1 is not a list"]),
    "a label twice": ("rows:\n  a: model=deit\n  a: model=vit\n", ["line 3: a appears twice"]),
    "a label that cannot be a row": ("rows: {a/b: model=deit}\n", ["rows.a/b: a label is text of letters, digits"]),
    "a label that is a number": ("rows: {0.6: model=deit}\n", ["rows.0.6: a label is text", "(quote a number)"]),
    "a row that is no text": ("rows: {a: {model: deit}}\n", ["rows.a: ", "is not text: overrides as after train.py"]),
    "a quote left open": ("rows: {a: \"model='deit\"}\n", ["rows.a", "no closing quotation"]),
    "a seed": ("rows: {a: model=deit seed=3}\n", ["rows.a: seed=3", "leave it out"]),
    "a name": (ROWS + "overrides: name=x resume=true\n", ["overrides: name=x resume=true", "leave it out"]),
    "a row of its own": ("rows: {a: +row=x}\n", ["rows.a: +row=x"]),
    "an unknown option": (ROWS + "overrides: attention=sofmax\n", ["rows.a: no option attention=sofmax; did you mean"]),
    "an unknown key of a row": ("rows: {b: model=deit lr=1}\n", ["rows.b: no key lr; did you mean task.lr?"]),
    "a value out of bounds": (
        "rows: {b: attention.lam=-1}\n", ["rows.b: attention.lam=-1 should be greater than or equal to 0"]),
    "a sweep in a row": ("rows: {b: 'attention.lam=0,0.2'}\n", ["rows.b: ", "attention.lam=0,0.2"]),
    "a word that is none": ("rows: {b: deit}\n", ["rows.b: deit is not KEY=VALUE"]),
    "figures of no row": (
        ROWS + "paper: {c: {val/top1: {value: 1, provenance: x}}}\n", ["paper.c: no such row"]),
    "figures without provenance": (
        ROWS + "paper: {a: {val/top1: {value: 1}}}\n", ["paper.a.val/top1.provenance: a figure is {value"]),
    "figures that are numbers": (
        ROWS + "paper: {a: {val/top1: 71}}\n", ["paper.a.val/top1: a figure is {value"]),
    "figures that are text": (
        ROWS + "paper: {a: {val/top1: {value: good, provenance: x}}}\n", ["top1.value=good should be a valid number"]),
    "needs of no row": (ROWS + "needs: {c: {model.weights: a}}\n", ["needs.c: no such row"]),
    "needs that are a row": (ROWS + "needs: {b: a}\n", ["needs.b=a is not a mapping"]),
    "a needed row that is none": (ROWS + "needs: {b: {model.weights: c}}\n", ["needs.b.model.weights", "no row c"]),
    "a needed table that is none": (
        ROWS + "needs: {b: {model.weights: tabel1/x}}\n", ["needs.b.model.weights: no table tabel1; did you mean"]),
    "a needed row of another table": (
        ROWS + "needs: {b: {model.weights: table1/deit_tiny}}\n", ["table table1 has no row deit_tiny; did you mean"]),
    "needs in a circle": (
        ROWS + "needs: {a: {model.weights: b}, b: {model.weights: a}}\n", ["circle: mine/a → mine/b → mine/a"]),
    "needs of itself": (ROWS + "needs: {a: {model.weights: mine/a}}\n", ["circle: mine/a → mine/a"]),
    "a needing key that is none": (ROWS + "needs: {b: {model.weight: a}}\n", ["rows.b: no key model.weight"]),
    "a needing key that is no text": (ROWS + "needs: {b: {1: a}}\n", ["needs.b", "is not a mapping of keys"]),
    "a needing key of the run itself": (
        ROWS + "needs: {b: {output_dir: a}}\n", ["needs.b.output_dir: takes no run folder"]),
    "two rows that are one run": (
        "rows:\n  a: data=digits model=deit\n  b: data=digits model=deit attention=softmax\n",
        ["the rows a and b are the same run"]),
    "an unknown column": (ROWS + "columns: [step_tiem]\n", ["columns: no run has measured step_tiem", "probe.metrics"]),
    "a column not measured": (
        ROWS + "columns: [attention_entropy]\n", ["columns: no run has measured attention_entropy"]),
    "a column of no module": (ROWS + "columns: [their.column]\n", ["columns: column=their.column", "no module their"]),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(what, tmp_path):
    text, said = WRONG[what]
    write(tmp_path, text)
    done = run_forked("scripts/reproduce.py", "mine", "--config-dir", "conf", cwd=tmp_path)
    assert done.returncode == 2
    assert_one_line_error(done, "conf/table/mine.yaml", *said)
    assert not (tmp_path / "outputs").exists()


def test_words_that_make_two_rows_one_run_are_refused(tmp_path):
    write(tmp_path, "rows:\n  a: data=digits model=deit\n  b: data=digits model=deit_neutreno\n")
    done = run_forked("scripts/reproduce.py", "mine", "--config-dir", "conf", "model=deit_neutreno", cwd=tmp_path)
    assert_one_line_error(done, "the rows a and b are the same run with model=deit_neutreno")
    for word in ("++seed=5", "+name=x", "++resume=false"):
        done = run_forked("scripts/reproduce.py", "mine", "--config-dir", "conf", word, cwd=tmp_path)
        assert_one_line_error(done, word, "the table sets it")


def test_words_of_the_users_that_are_wrong_do_not_blame_the_file(tmp_path):
    write(tmp_path, TWO_ROWS)
    done = run_forked("scripts/reproduce.py", "mine", "--config-dir", "conf", "task.lr=abc", cwd=tmp_path)
    assert_one_line_error(done, "task.lr=abc should be a valid number")
    assert "mine.yaml" not in done.stderr


def test_tables_that_cannot_be_told_are_named(tmp_path):
    assert_one_line_error(run_forked("scripts/reproduce.py", "labb", cwd=tmp_path), "no table labb; did you mean lab?")
    done = run_forked("scripts/tables.py", "labb", cwd=tmp_path)
    assert_one_line_error(done, "labb: no such folder or table; did you mean lab?")
    make_run(tmp_path / "outputs/a", "model=deit", "task.lr=0.1")
    assert_one_line_error(
        run_forked("scripts/tables.py", "lab", cwd=tmp_path), "none of the 1 runs belongs to table lab"
    )
    write(tmp_path, TWO_ROWS, "lab")
    with pytest.raises(InputError, match="table lab has several files"):
        read_table("lab", [str(tmp_path / "conf")])
