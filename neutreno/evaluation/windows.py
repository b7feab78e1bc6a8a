"""Segmentation of the validation images by the task's further protocols: other windows, several scales, mirrored."""

from __future__ import annotations

from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject
from neutreno.evaluation.metrics import validate
from neutreno.reports.evaluation import Table


class Windows(Evaluator):
    """Validation metrics by ``task.protocols``, such as ``val_multi_scale/miou``, and what each protocol is."""

    def check(self, subject: Subject) -> None:
        if not hasattr(subject.task, "protocols"):
            raise NothingToMeasure("evaluator.windows: this task has no protocols of windows; leave windows out")

    def run(self, subject: Subject) -> Findings:
        task, metrics = subject.task, {}
        for protocol in task.protocols:
            with task.following(protocol):
                metrics |= validate(subject.trainer, task, subject.data)
        how = {"val": task.inference} | {f"val_{name}": window for name, window in task.protocols.items()}
        rows = [[n, str(w.window), str(w.stride), str(list(w.scales)), str(w.flip)] for n, w in how.items()]
        table = Table(["inference", "window", "stride", "scales", "flip"], rows)
        return Findings(metrics=metrics, tables=[table])
