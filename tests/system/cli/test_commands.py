"""The command lines: a file is a command, and none imports more than it needs."""

import subprocess
import sys

import pytest
from support import ROOT, make_run, run_forked, run_script


def neutreno(*words, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "neutreno", *words], cwd=cwd, capture_output=True, text=True)


def test_the_commands_are_the_files():
    done = neutreno("--help")
    shown = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    wanted = ["dashboard", "evaluate", "figures", "generate", "profile", "reproduce", "tables", "theory", "train"]
    assert done.returncode == 0 and shown == wanted
    assert neutreno("--version").stdout.strip()


def test_an_unknown_command_is_one_line():
    done = neutreno("tabels")
    assert done.returncode == 2 and done.stderr == "error: no command tabels; did you mean tables?\n"


@pytest.mark.parametrize("words", [["train.py"], ["-m", "neutreno", "train"], ["evaluate.py"], ["-m", "neutreno"]])
def test_help_imports_nothing_that_takes_seconds(words):
    command = [sys.executable, "-X", "importtime", *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported or words[-1] == "neutreno"
    assert not {"torch", "timm", "lightning", "pandas", "pydantic", "matplotlib"} & imported


def test_importing_the_package_loads_no_torch():
    code = "import sys, neutreno; print(neutreno.__version__, sorted({'torch', 'hydra', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stderr
    code = "import neutreno, neutreno.models, timm; print(timm.is_model('deit_tiny_neutreno_patch16_224'))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("name", ["reproduce", "tables", "figures", "dashboard", "theory", "generate", "profile_model"])
def test_the_scripts_are_doors(name):
    done = run_script(f"scripts/{name}.py", "--help", cwd=ROOT)
    assert done.returncode == 0 and f"usage: neutreno {name.removesuffix('_model')}" in done.stdout


def test_what_a_command_writes_does_not_land_where_it_was_typed(tmp_path):
    make_run(tmp_path / "outputs/a")
    words = {"figures": ["outputs"], "dashboard": ["outputs"], "theory": ["--steps", "2"]}
    for name, typed in words.items():
        done = run_forked(f"scripts/{name}.py", *typed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["outputs"]
    written = {file.name for file in (tmp_path / "outputs").iterdir()} - {"a"}
    assert written == {"dashboard.html", *(f"{n}.{kind}" for n in ("similarity", "theory") for kind in ("pdf", "png"))}
