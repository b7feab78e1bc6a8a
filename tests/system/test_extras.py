"""What is installed: the package alone does all but what an extra is for, and says which extra that is."""

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import sys
import tomllib

import pytest
from support import ROOT, TINY, assert_one_line_error, result, run_forked

import neutreno

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OF_TESTS_AND_PAGES = {"dev", "docs"}  # nothing in the package needs them
WANTS = {  # for each extra, command lines that need it
    "loggers": [["train.py", *TINY, "logger=wandb"], ["train.py", *TINY, "logger=tensorboard"]],
    "slurm": [["train.py", "-m", *TINY, "launcher=slurm", "seed=0,1"]],
    "readers": [["train.py", *TINY, "data=cifar10", "data.reader=wds/x", "data.root=.", "data.splits.train=a"]],
    "huggingface": [["scripts/profile_model.py", "hf:none/x"]],
    "graphs": [["train.py", "data=cora", "data.reader=pyg/Planetoid", "data.root=."]],
}


HALVES = {"pydantic_core": "pydantic"}  # distributions that another one installs in a version of its own


def plain(name):
    return re.sub(r"[-_.]+", "_", name).lower()


def distributions(requirements):
    return {plain(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}


CORE = distributions(PROJECT["dependencies"])
OPTIONAL = {extra: distributions(requirements) - CORE for extra, requirements in EXTRAS.items()}


def modules_of(names):
    """What the distributions are imported as; of one that is not installed here, its name."""
    here = importlib.metadata.packages_distributions()
    found = {module for module, owners in here.items() for owner in owners if plain(owner) in names}
    return {module for module in found if module.isidentifier() and module != "neutreno"} | names


def without(*extras):
    """A ``setup`` of a fork, in which nothing of these extras can be imported."""
    hidden = modules_of({name for extra in extras for name in OPTIONAL[extra]})

    def hide():
        for name in [*hidden, *(name for name in sys.modules if name.partition(".")[0] in hidden)]:
            sys.modules[name] = None

    return hide


def test_every_extra_is_known_here():
    assert EXTRAS.keys() == WANTS.keys() | OF_TESTS_AND_PAGES


@pytest.mark.parametrize(
    "extra, words", [(extra, words) for extra in WANTS for words in WANTS[extra]], ids=lambda part: str(part[-1:])
)
def test_what_needs_an_extra_says_so_in_a_line_and_leaves_nothing(extra, words, tmp_path):
    done = run_forked(*words, cwd=tmp_path, setup=without(extra))
    assert_one_line_error(done, f": pip install 'neutreno[{extra}]'", "needs ")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("result.json", "manifest.json")]


def test_without_any_extra_every_module_is_imported_and_a_run_trains(tmp_path):
    hide = without(*EXTRAS)

    def setup():
        hide()
        for name in [name for name in sys.modules if name.partition(".")[0] == "neutreno"]:
            del sys.modules[name]
        for module in pkgutil.walk_packages(neutreno.__path__, "neutreno."):
            if module.name != "neutreno.__main__":
                importlib.import_module(module.name)

    done = run_forked("train.py", *TINY, "name=x", cwd=tmp_path, setup=setup)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "outputs/x")["status"] == "finished"


def test_every_library_that_is_imported_is_declared():
    owners = importlib.metadata.packages_distributions()
    declared = CORE.union(*OPTIONAL.values())
    for file in (ROOT / "neutreno").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "neutreno"}:
                assert {HALVES.get(owner, plain(owner)) for owner in owners[top]} & declared, f"{file} imports {top}"
