"""Run folders of anybody's: what their files cannot do to who reads them. What commands do: tests/system."""

import io
import json
import os
import re
import shutil
import tomllib

import pandas as pd
import pytest
from support import ROOT, make_run
from support.hostile import HOSTILE, change

from neutreno.cli import figures
from neutreno.config.composing import compose
from neutreno.config.trust import build_trusted, check_reading
from neutreno.data.classification import ImageClassification
from neutreno.errors import InputError
from neutreno.evaluation.opening import run_settings
from neutreno.reports.dashboard import collect, write_dashboard
from neutreno.reports.reading import read_run, read_runs
from neutreno.reports.segmentation import write as write_segmentation
from neutreno.reports.tables import print_tables
from neutreno.runs import RunFolder
from neutreno.sweep import plan


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of classes of images."""
    return make_run(tmp_path_factory.mktemp("made") / "run", "data=cifar10", "data.root=images")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs/run")


def settings_of(run, *typed):
    return run_settings(RunFolder(run), compose([f"++{word}" for word in typed], "evaluate"))


# What reads the data

READS = {
    "a stream": {"data__reader": "wds/x"},
    "the hub": {"data__reader": "hfds/somebody/something"},
    "a builder that unpickles": {"data__reader": "hfds/pandas", "data__reader_args": {"data_files": "x.pkl"}},
    "PyTorch Geometric, which unpickles": {"data__reader": "pyg/WikiCS"},
    "torchvision, which unpickles": {"data__reader": "torch/cifar10"},
    "a class map that is unpickled": {"data__reader": "wds/x", "data__reader_args": {"class_map": "x.pkl"}},
}


@pytest.mark.parametrize("planted", READS.values(), ids=READS.keys())
def test_a_run_does_not_choose_what_reads_its_data(run, planted):
    change(run / "config.yaml", **planted)
    with pytest.raises(InputError, match=r"data\.reader.*decides what reads the data.*trust_readers=true"):
        settings_of(run)
    assert settings_of(run, "trust_readers=true")["data"]["reader"] == planted.get("data__reader")


def test_what_was_typed_again_is_the_users(run):
    change(run / "config.yaml", data__reader="hfds/a/b", data__reader_args={"input_key": "img", "class_map": "x.pkl"})
    with pytest.raises(InputError, match=r"data\.reader_args=.*class_map"):
        settings_of(run, "data.reader=hfds/a/b")
    with pytest.raises(InputError, match=r"data\.reader_args=.*class_map"):
        settings_of(run, "data.reader=hfds/a/b", "data.reader_args.input_key=img")
    found = settings_of(run, "data.reader=hfds/a/b", "data.reader_args={input_key:img}")
    assert found["data"]["reader_args"] == {"input_key": "img"}


ELSEWHERE = [
    "pipe:touch X #",
    "PIPE:x",
    "pi\npe:x",
    " pipe:x",
    "p{i,i}pe:x",
    "a::b",
    "hf://a/b",
    "x/http://y",
    "scp:h/x",
]


@pytest.mark.parametrize("path", ELSEWHERE)
def test_no_path_of_a_run_is_a_url_or_a_command(run, path):
    change(run / "config.yaml", data__root=path)
    with pytest.raises(InputError, match=r"data\.root=.* is no path on this machine") as caught:
        settings_of(run, "trust_readers=true")
    assert "\n" not in str(caught.value)
    assert settings_of(run, "data.root=elsewhere")["data"]["root"] == "elsewhere"


@pytest.mark.parametrize("key", ["data__splits__train", "data__interpolation", "model__size", "task__opt"])
def test_no_text_of_data_model_and_task_is_one_either(run, key):
    change(run / "config.yaml", **{key: "hf://a/b"})
    with pytest.raises(InputError, match=re.escape(key.replace("__", ".") + "=hf://a/b")):
        settings_of(run, "trust_readers=true")


@pytest.mark.parametrize("path", ["/a/b c/~d", "../x", "C:\\data", "images-{0..3}", "a=b,c", "größe"])
def test_paths_of_this_machine_are_none(run, path):
    change(run / "config.yaml", data__root=path)
    assert settings_of(run)["data"]["root"] == path


def test_options_that_read_data_are_told_by_their_annotations():
    node = {"_target_": f"{ImageClassification.__module__}.ImageClassification", "root": "x"}
    check_reading({**node, "reader": None, "reader_args": {"name": "x"}, "splits": {"train": "a"}}, "data")
    with pytest.raises(InputError, match=r"data\.reader=wds/x"):
        build_trusted({**node, "mean": [0.5], "std": [0.5], "reader": "wds/x"}, key="data")


MODELS = {
    "checkpoint_path": "x.pkl",
    "pretrained_cfg": {"file": "x.pkl"},
    "pretrained_cfg_overlay": {},
    "scriptable": True,
}


@pytest.mark.parametrize("key", [*MODELS, "features_only", "cache_dir", "pretrained_strict"])
def test_no_further_key_of_a_model_reaches_timm(tmp_path, key):
    run = make_run(tmp_path / "run", "model=timm", "model.name=test_vit")
    change(run / "config.yaml", **{f"model__{key}": MODELS.get(key, True)})
    with pytest.raises(InputError, match=rf"no key model\.{key}"):
        settings_of(run)


@pytest.mark.parametrize("name", ["hf-hub:somebody/something", "local-dir:/x", "/x", "timm/vit_tiny_patch16_224"])
def test_a_model_of_a_run_is_one_that_timm_knows_by_name(name):
    with pytest.raises(InputError, match=r"not a timm model|no path on this machine"):
        build_trusted({"_target_": "neutreno.models.timm.timm_model", "name": name}, key="model")


def test_weights_that_a_run_started_from_are_not_read(run):
    change(run / "config.yaml", model__weights="/nowhere/x.pth")
    assert "weights" not in settings_of(run)["model"]
    node = {"_target_": "neutreno.models.timm.timm_model", "name": "test_vit", "weights": "/nowhere/x.pth"}
    node["pretrained"] = True  # timm's, of which there are none here either
    build_trusted({**node, "num_classes": 2}, key="model")


def test_lower_bounds_are_the_versions_tested():
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    given = [*bounds["dependencies"], *(line for lines in bounds["optional-dependencies"].values() for line in lines)]
    least = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in given)
    assert {name: least[name] for name in pins.keys() & least} == {name: pins[name] for name in pins.keys() & least}


# Files that a run does not write


SAID = {  # by a bound: without it the file would be refused, or read, for another reason
    "aliases": "uses YAML's aliases",
    "an alias of itself": "uses YAML's aliases",
    "deep yaml": "nested beyond 40 levels",
    "somewhat deep json": "nested beyond 40 levels",
    "deep json": "nested too deep",
    "deep evaluation": "nested too deep",
    **dict.fromkeys(("large yaml", "large json", "large evaluation", "large metrics"), "bytes, more than"),
    **dict.fromkeys(("a long text", "a long text in yaml"), "holds a text of 100,001 characters"),
    "a huge number": "holds a whole number beyond",
    "a huge seed": "holds a whole number beyond",
    "a million columns": "has a first line beyond",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_run_does_not_write_is_named_in_a_line_and_left_out(run, name):
    file, plant = HOSTILE[name]
    other = shutil.copytree(run, run.parent / "other")
    plant(other)
    runs, problems = read_runs([run, other])
    assert [found.path.name for found in runs] == ["run"] and len(problems) == 1, problems
    assert str(other / file) in problems[0] and "\n" not in problems[0] and len(problems[0]) < 600
    assert SAID.get(name, "") in problems[0], problems


AT_A_SWEEP = [
    "an alias of itself",
    "very deep yaml",
    "a key that is a number",
    "a folder as config",
    "a pipe as config",
]
AT_A_SWEEP += ["deep json", "a device", "digests as a list", "a status as a list", "a circle", "a paper's figures"]


@pytest.mark.parametrize("name", AT_A_SWEEP)
def test_a_sweep_survives_a_foreign_folder_in_the_place_of_a_run(tmp_path, name):
    words = ["data=digits", "seed=3", f"output_dir={tmp_path}", "name=x"]
    HOSTILE[name][1](make_run(tmp_path / "x", *words[:2]))
    job = plan(compose([*words]))
    others = {"a paper's figures": "finished", "a circle": "to resume"}  # only tables show them; a link to nothing
    assert job.state == others.get(name, "refused") and bool(job.reason) == (name not in others)
    assert "\n" not in (job.reason or "")


def test_all_reports_are_made_of_what_is_left(run, capsys):
    for name in ("aliases", "deep json", "a device as metrics", "deep evaluation"):
        HOSTILE[name][1](shutil.copytree(run, run.parent / name))
    (run.parent / "file").write_text("x")
    print_tables([run.parent])
    assert figures.main([str(run.parent), "--output", str(run.parent / "f")]) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: ") == 8 and len(said.err.splitlines()) == 8 and "90.00" in said.out


# Names that mean something elsewhere

NAMES = [
    "=1+1",
    "+1",
    "-1",
    "@x",
    '<a href="http://x">y</a>',
    "[y](javascript:x)",
    "a|b",
    r"\input{x}",
    "$\\foo{$",
    "x\ny",
]
NAMES += ["constructor", "__proto__", "\x1b[2Jx", "\u202ex", "%{y}", "{{x}}", "</script>", "`x`"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A run for each name, which stands wherever a record has room for one."""
    folder = tmp_path_factory.mktemp("named")
    for number, name in enumerate(NAMES):
        run = make_run(folder / f"r{number}", "model=deit", f"seed={number}")
        result = json.loads((run / "result.json").read_text())
        result["settings"] |= {"data": name, "attention": name, name: name, f"{name}.x": 1, "attention.lam": 0.5}
        result["labels"] |= {name: name, f"{name}.x": name, "attention.lam": name}
        result["axes"] |= {name: {"class": name, "arguments": {name: name}, "baseline": False}}
        result["baseline"] |= {name: name}
        result["metrics"] |= {name: 1.0, f"test/{name}": 2.0}
        measured = [row | {"subset": name, "stack": name} for row in result["oversmoothing"][:3]]
        measured += [row | {"metric": name} for row in result["oversmoothing"][:3]]
        result["oversmoothing"] += measured
        result["digests"] = {name: name}
        (run / "result.json").write_text(json.dumps(result))
        (run / "evaluation.json").write_text(json.dumps({"metrics": {f"ema/{name}": 3.0}}))
        columns = ["step", "constructor", "__proto__", "=1+1", "<a href=x>"]
        (run / "metrics.csv").write_text(",".join(columns) + "\n1,2,3,4,5\n2,3,4,5,6\n")
    return folder


def printed(named, style, capsys):
    print_tables([named], style=style, metrics=["test/top1", "=1+1", "a|b"])
    return capsys.readouterr().out


def test_names_do_nothing_in_markdown(named, capsys):
    out = printed(named, "md", capsys)
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == len(NAMES) + 2
    assert "<" not in out and "](" not in out and "`" not in out and "\x1b" not in out and "\u202e" not in out
    out.encode()


def test_names_do_nothing_in_a_spreadsheet(named, capsys):
    out = printed(named, "csv", capsys)
    table = pd.read_csv(io.StringIO(out), dtype=str, keep_default_na=False)
    texts = [*table.columns, *table["runs"]]
    assert len(table) == len(NAMES) and any(text.startswith("'=1+1 mean") for text in texts)
    assert not [text for text in texts if text[:1] in "=+-@\t\r"]
    assert "90.0" in set(table["test/top1 mean"])  # a number stays one


def test_names_do_nothing_in_latex(named, capsys):
    out = printed(named, "latex", capsys)
    assert r"\input" not in out and r"\foo" not in out and r"\textbackslash{}input\{x\}" in out
    assert len(out.splitlines()) == len(NAMES) + 6


def test_a_task_with_a_line_break_stays_within_its_comment(named, tmp_path, capsys):
    other = shutil.copytree(named / "r0", tmp_path / "other")
    change(other / "result.json", task="a.Ab\n\\input{x}", reason="x\n\\input{x}")
    change(shutil.copytree(other, tmp_path / "failed") / "result.json", status="failed")
    print_tables([named / "r1", other, tmp_path / "failed"], style="latex")
    said = capsys.readouterr()
    assert not [line for line in said.out.splitlines() if line.startswith("\\input") or "not in the table" in line]
    assert "failed" in said.err and all(not line.startswith("\\input") for line in said.err.splitlines())


@pytest.mark.filterwarnings("ignore:No artists", "ignore:constrained_layout")
def test_names_do_nothing_in_figures(named, tmp_path):
    assert figures.main([str(named), "--output", str(tmp_path / "f")]) == 0
    assert figures.main([str(named), "--output", str(tmp_path / "g"), "--metric", "$\\foo{$"]) == 0
    assert (tmp_path / "g.png").stat().st_size > 0


def test_names_do_nothing_in_the_pages_data(named, tmp_path):
    runs, problems = read_runs([named])
    assert not problems
    write_dashboard(runs, tmp_path / "d.html")
    page = (tmp_path / "d.html").read_text()
    data = page.rpartition('id="data">')[2].partition("</script>")[0]
    assert "<" not in data and len(json.loads(data)["runs"]) == len(NAMES)


def test_folders_may_be_called_anything(run, tmp_path, capsys):
    names = [b"javascript:alert(1)", b"\xff\xfe", b"x\ny", b"<a href=x>"]
    for name in names:
        shutil.copytree(run, tmp_path / "named" / os.fsdecode(name))
        (tmp_path / "named" / os.fsdecode(name) / "evaluation.json").write_text("[")
    (tmp_path / "named" / "\udcff\udcfe" / "evaluation.json").unlink()
    runs, problems = read_runs([tmp_path / "named"])
    assert len(runs) == 1 and len(problems) == 3 and not any("\n" in problem for problem in problems)
    write_dashboard(runs, tmp_path / "named/d.html")
    assert '"link":"%FF%FE/"' in (tmp_path / "named/d.html").read_text()
    for name in names:
        (tmp_path / "named" / os.fsdecode(name) / "evaluation.json").unlink(missing_ok=True)
    runs, _ = read_runs([tmp_path / "named"])
    write_dashboard(runs, tmp_path / "named/d.html")
    assert '"link":"javascript%3Aalert%281%29/"' in (tmp_path / "named/d.html").read_text()
    print_tables([tmp_path / "named"])
    assert len([line for line in capsys.readouterr().out.splitlines() if "is the same run as" in line]) == 3


def test_names_of_classes_do_nothing_in_a_spreadsheet(tmp_path):
    found = {"iou": [0.5, 0.5], "acc": [-0.5, 0.5], "pixels": [1, 1]}
    write_segmentation({"names": ["=1+1", "$\\foo{$"], "by_class": {"val": found}, "shown": []}, tmp_path)
    table = pd.read_csv(tmp_path / "class_iou.csv")
    assert list(table["name"]) == ["'=1+1", "$\\foo{$"] and list(table["acc"]) == [-50, 50]


def test_a_table_of_curves_that_is_none_is_absent(run):
    (run / "metrics.csv").write_bytes(b"step\xff,a\n1e999,2\nx,y,z\n")
    (run / "oversmoothing.csv").write_text("stack,subset,step,layer,metric,mean\nb,all,1e999,1,c,1\n")
    found = collect(read_run(run), run)
    assert found["curves"] == {}
    measured = found["byLayer"]["cosine"]["all"]  # the record's first and last measurement
    assert [at["step"] for at in measured] == [0, read_run(run).result["steps"]]
