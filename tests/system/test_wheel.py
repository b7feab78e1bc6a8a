"""What is installed from a wheel has the same commands and config files as a checkout, from any folder."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
from support import ROOT, TINY


def call(*words, cwd):
    """What it prints, without ``PYTHONPATH``, by which the checkout might be found."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_checkout(folder):
    return {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob("*") if file.suffix not in ("", ".pyc")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder)
    (wheel,) = folder.glob("neutreno-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The ``bin`` folder of a virtual environment with the wheel and, of all else, what is installed here."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith("-packages")]  # behind the wheel's; no .pth file there is read
    (site / "outer.pth").write_text("\n".join(outer))
    pip = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--no-deps", "--ignore-installed"]
    call(*pip, wheel, cwd=home)
    return home / "bin"


def test_the_wheel_holds_every_module_config_and_part_of_the_dashboard(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert in_checkout("neutreno") <= names and "neutreno/reports/dashboard.js" in names
    assert {f"neutreno/{name}" for name in in_checkout("configs")} == {n for n in names if n.endswith(".yaml")}


def test_the_source_distribution_holds_the_configs(tmp_path):
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert in_checkout("configs") | in_checkout("neutreno") | {"train.py", "pyproject.toml", "README.md"} <= names


# Commands one after the other in one process, whose imports take seconds; an argument is the words of one, as JSON.
IN_TURN = """
import json, sys
import neutreno, neutreno.config.composing as composing
from neutreno.__main__ import main

print(neutreno.__file__, composing.CONFIGS)
for words in map(json.loads, sys.argv[1:]):
    print(end="\\0")
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert not code, (words, code)
"""


def test_a_wheel_runs_the_default_job_from_another_folder(installed, tmp_path):
    call(installed / "neutreno", "train", "-m", "attention.lam=0.6", *TINY, "trainer.max_epochs=1", cwd=tmp_path)
    (run,) = (tmp_path / "outputs").glob("digits-*")
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    expected = {
        ("--help",): "Train a network",
        ("train", "--help"): "Config (key=value)",
        ("evaluate", str(run), "evaluators=[metrics]"): "test/top1",
        ("tables", "outputs"): "digits deit-mini neutreno λ̃=0.6",
        ("dashboard", "outputs"): "outputs/dashboard.html: 1 runs",
        ("reproduce", "small", "--seeds", "1", "--dry-run"): "0 of 6 runs finished",
    }
    where, *said = call(installed / "python", "-c", IN_TURN, *map(json.dumps, expected), cwd=tmp_path).split("\0")
    module, configs = where.split()
    assert str(installed.parent) in module and str(installed.parent) in configs, where
    for (words, part), text in zip(expected.items(), said, strict=True):
        assert part in text, (words, text)
