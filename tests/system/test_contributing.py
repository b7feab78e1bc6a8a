"""The snippets of CONTRIBUTING.md work, and CITATION.cff and .pre-commit-config.yaml fit the project."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from support import ROOT, TINY, run_forked, runs_are_forks

from neutreno.config.composing import compose

SNIPPET = re.compile(r"^```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of the package ``mine`` and its config folder ``conf``."""
    home = tmp_path_factory.mktemp("contributing")
    for name, text in SNIPPET.findall((ROOT / "CONTRIBUTING.md").read_text()):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "mine/__init__.py").touch()
    return home


def call(script: str, *arguments: str, home: Path, cwd: Path):
    def prepare() -> None:
        sys.path.insert(0, str(home))
        runs_are_forks()

    done = run_forked(script, *arguments, "--config-dir", str(home / "conf"), cwd=cwd, setup=prepare)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_there_is_a_snippet_of_each_addition(home):
    found = {str(file.relative_to(home)) for file in home.rglob("*") if file.is_file() and file.stat().st_size}
    configs = {"attention/uniform", "block/rmsnorm", "data/leaves", "table/mine"}
    configs |= {"model/setnet", "data/sets", "recipe/sets"}
    modules = {"attention", "blocks", "metrics", "sets"}
    assert found == {f"mine/{name}.py" for name in modules} | {f"conf/{name}.yaml" for name in configs}


def test_attention_block_metric_and_table(home, tmp_path):
    small = [*TINY, "trainer.max_epochs=1", "model=deit"]
    measured = "probe.metrics=[cosine,mine.metrics.class_spread]"
    call("train.py", *small, "attention=uniform", "probe.num_samples=64", measured, "name=a", home=home, cwd=tmp_path)
    both = ["block=rmsnorm", "attention=uniform", "attention.lam=0.6", "name=b"]
    call("train.py", *small, *both, home=home, cwd=tmp_path)
    record = json.loads((tmp_path / "outputs/a/result.json").read_text())
    assert record["axes"]["attention"]["class"] == "mine.attention.UniformAttention"
    spread = [row["mean"] for row in record["oversmoothing"] if row["metric"] == "class_spread"]
    assert spread and all(value > 0 for value in spread)

    rows = [*TINY, "trainer.max_epochs=1", "launcher.max_parallel=1"]
    printed = call("scripts/reproduce.py", "mine", "--seeds", "1", *rows, home=home, cwd=tmp_path)
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    labels = [line.split("|")[1].strip(" *") for line in lines[-3:]]  # *: they depart by TINY
    assert labels == ["softmax", "uniform", "rmsnorm"]


def test_data_set(home):
    composed = compose(["data=leaves", "data.root=x"], config_dirs=[str(home / "conf")])
    assert (composed.config.data.num_classes, composed.config.data.img_size) == (5, 64)
    assert composed.config.recipe.patch_size == 4 and composed.config.trainer.max_epochs > 1


def test_task_with_model_and_data(home, tmp_path):
    call("train.py", "model=setnet", "data=sets", "name=x", home=home, cwd=tmp_path)
    record = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert record["status"] == "finished" and 0 < record["metrics"]["test/mae"] < 1
    assert {row["layer"] for row in record["oversmoothing"]} == {0, 1, 2}


def test_pre_commit_runs_the_ruff_of_the_requirements():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert f"ruff=={repo['rev'].removeprefix('v')}\n" in (ROOT / "requirements.txt").read_text()
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff-check", "ruff-format"]


def test_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["authors"] == [{"name": "The neutreno developers"}]
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    (paper,) = citation["references"]
    assert paper["title"] in (ROOT / "README.md").read_text()
    assert all(author["family-names"] in ("Nguyen", "Baraniuk") for author in paper["authors"])
