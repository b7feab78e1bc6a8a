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


def test_a_wheel_runs_the_default_job_from_another_folder(installed, tmp_path):
    def neutreno(*words):
        return call(installed / "neutreno", *words, cwd=tmp_path)

    where = "import neutreno, neutreno.config.composing as c; print(neutreno.__file__, c.CONFIGS)"
    found = call(installed / "python", "-c", where, cwd=tmp_path).split()
    assert all(str(installed.parent) in path for path in found), found
    assert "Train a network" in neutreno("--help") and "Config (key=value)" in neutreno("train", "--help")
    neutreno("train", "-m", "attention.lam=0.6", *TINY, "trainer.max_epochs=1")  # a separate process
    (run,) = (tmp_path / "outputs").glob("digits-*")
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    assert "test/top1" in neutreno("evaluate", str(run), "evaluators=[metrics]")
    assert "digits deit-mini neutreno λ̃=0.6" in neutreno("tables", "outputs")
    assert neutreno("dashboard", "outputs").startswith("outputs/dashboard.html: 1 runs")
    assert "0 of 6 runs finished" in neutreno("reproduce", "small", "--seeds", "1", "--dry-run")
