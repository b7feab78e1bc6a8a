"""What the end of a run says."""

import re

from neutreno import results
from neutreno.tasks.segmentation import Segmentation


def test_metrics_with_one_title_have_a_line_each(tmp_path, monkeypatch):
    metrics = {"val/mean_acc": 50.0, "val/mean_accuracy": 0.25, "best/val/mean_acc": 60.0}
    record = {"name": "run", "steps": 8, "wall_clock_s": 61.0, "metrics": metrics, "oversmoothing": []}
    monkeypatch.setattr(results, "read_result", lambda run: {**record, "within": {"escape_step/cosine": 8}})
    said = results.summary(tmp_path, Segmentation.shown).splitlines()
    assert [re.sub(" {2,}", " | ", line).strip(" |") for line in said][3:7] == [
        "last epoch | best epoch",
        "val mean accuracy | 50.00 % | 60.00 %",
        "val mean accuracy | 0.2500",
        "escape step cosine | not within 8",
    ]
