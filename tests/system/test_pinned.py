"""One short run per embedded task ends with the figures that it had when they were measured, in ``pinned.json``.

A change that is not meant to change a result is seen here to change none. After one that is, measure anew:
``PYTHONPATH=tests python tests/system/test_pinned.py``.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import ROOT, run_forked

from neutreno.reports.layers import curve

FILE = ROOT / "tests/pinned.json"
SMALL = ["model.depth=3", "model.embed_dim=32", "model.num_heads=2", "probe.num_samples=8", "name=x"]
FAST = ["task.lr=3e-3", "task.warmup_epochs=0"]  # a network at chance would show no change
RUNS = {
    "digits": [*SMALL, *FAST, "task.ema_decay=0.9", "data.batch_size=50", "trainer.max_epochs=4"],
    "digits softmax": ["model=deit", *SMALL, *FAST, "data.batch_size=50", "trainer.max_epochs=4"],
    "digit_scenes": [
        *["data=digit_scenes", *SMALL, *FAST, "data.train_scenes=64", "data.val_scenes=16", "data.test_scenes=16"],
        *["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "data.num_workers=0"],
    ],
    "python_docs": ["data=python_docs", *SMALL, "task.lr=3e-3", "trainer.max_steps=60", "data.val_every_n_steps=30"],
}


def measure(name: str, folder: Path) -> dict:
    """Metrics and last similarity by layer of a run, on one thread."""
    done = run_forked("train.py", *RUNS[name], cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "outputs/x/result.json").read_text())
    found = {"metrics": result["metrics"], "similarity": curve(result["oversmoothing"])}
    return found | ({"text": result["text"]["sha256"]} if "text" in result else {})


@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_ends_with_the_pinned_figures(name, tmp_path):
    pinned, found = json.loads(FILE.read_text())[name], measure(name, tmp_path)
    if found.get("text") != pinned.get("text"):
        pytest.skip("this Python's own documentation, the text of the run, is another")
    assert found["metrics"].keys() == pinned["metrics"].keys()
    for metric, value in pinned["metrics"].items():
        # rounding differs between processors; a percentage may then differ by a sample or some pixels
        tolerance = {"rel": 1e-3} if metric.endswith(("loss", "ppl")) else {"abs": 0.8}
        assert found["metrics"][metric] == pytest.approx(value, **tolerance), metric
    assert found["similarity"] == pytest.approx(pinned["similarity"], abs=2e-3)
    assert all(map(math.isfinite, found["similarity"]))


if __name__ == "__main__":
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    figures = {}
    for run in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            figures[run] = measure(run, Path(folder))
    FILE.write_text(json.dumps({"measured at": commit, **figures}, indent=1) + "\n")
    sys.exit(0)
