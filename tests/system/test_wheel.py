"""What is installed from a wheel has the same commands and config files as a checkout, from any folder."""

import json
import os
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT, TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The ``bin`` folder of a virtual environment with the wheel and, of all else, what is installed here."""
    pytest.importorskip("hatchling", reason="the wheel is built with the installed hatchling, offline")
    folder = tmp_path_factory.mktemp("wheel")

    def call(*words):
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", "dist", "-q")
    (wheel,) = (folder / "dist").glob("neutreno-*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", "venv")
    python = folder / "venv/bin/python"
    site = call(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    call(sys.executable, "-m", "pip", "install", str(wheel), "--no-deps", "--target", site, "-q")
    with open(os.path.join(site, "here.pth"), "w") as file:  # behind the wheel's own; no .pth file there is read
        file.write(sysconfig.get_path("purelib") + "\n")
    script = folder / "venv/bin/neutreno"
    script.write_text(f"#!{python}\nimport sys\nfrom neutreno.__main__ import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return folder / "venv/bin"


def test_a_wheel_runs_the_default_job_from_another_folder(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def neutreno(*words):
        command = [str(installed / "neutreno"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import neutreno, neutreno.config.composing as c; print(neutreno.__file__, c.CONFIGS)"
    found = subprocess.run(
        [str(installed / "python"), "-c", where], cwd=tmp_path, capture_output=True, text=True, env=environment
    ).stdout.split()
    assert all(str(installed.parent) in path for path in found), found
    assert "Train a network" in neutreno("--help") and "Config (key=value)" in neutreno("train", "--help")
    neutreno("train", *TINY)
    (run,) = (tmp_path / "outputs").iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    assert "test/top1" in neutreno("evaluate", str(run), "cost=null")
    assert "digits deit-mini neutreno λ̃=0.6" in neutreno("tables", "outputs")
    neutreno("train", "-m", "attention.lam=0,0.2", *TINY, "trainer.max_epochs=1")
    assert neutreno("dashboard", "outputs").startswith("dashboard.html: 3 runs")
    assert "of 6 runs finished" not in neutreno("reproduce", "small", "--dry-run")
