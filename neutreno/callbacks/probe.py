"""The over-smoothing probe: how similar the tokens are after every block, before, while and after training."""

from __future__ import annotations

import copy
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from neutreno.errors import check_number
from neutreno.files import replacing
from neutreno.oversmoothing import mean_cosine_similarity
from neutreno.parallel import gathered
from neutreno.reports.figures import plot_similarity

COLUMNS = ("step", "epoch", "when", "tokens", "layer", "mean", "sd", "samples")


@torch.no_grad()
def measure_similarity(model: nn.Module, inputs: Tensor, batch_size: int = 64) -> dict[str, list[tuple[float, float]]]:
    """Mean and standard deviation over samples of the tokens' cosine similarity, per layer (entry 0: the embedding).

    In evaluation mode and float32. Keys: the kinds of tokens of ``model.token_features``.
    """
    was_training = model.training
    if next(model.parameters()).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    model.eval()
    device = next(model.parameters()).device
    try:
        with torch.autocast(device.type, enabled=False):
            samples = defaultdict(list)
            for part in inputs.split(batch_size):
                for tokens, layers in model.token_features(part.to(device)).items():
                    samples[tokens].append(torch.stack([mean_cosine_similarity(x) for x in layers]).cpu())
    finally:
        model.train(was_training)
    joined = {tokens: torch.cat(parts, dim=1) for tokens, parts in samples.items()}
    return {
        tokens: list(zip(s.mean(1).tolist(), s.std(1, correction=min(1, s.shape[1] - 1)).tolist(), strict=True))
        for tokens, s in joined.items()
    }


def curve_rows(similarity: dict[str, list[tuple[float, float]]], samples: int, **fixed: Any) -> list[dict[str, Any]]:
    """What :func:`measure_similarity` gave, as a tidy table: one row per kind of tokens and layer."""
    return [
        {**fixed, "tokens": tokens, "layer": layer, "mean": mean, "sd": sd, "samples": samples}
        for tokens, layers in similarity.items()
        for layer, (mean, sd) in enumerate(layers)
    ]


class OversmoothingProbe(Callback):
    """Measures token similarity by layer on fixed validation samples: at initialisation, every n epochs, at the end.

    Logs ``oversmoothing/cosine/layer_07`` (all tokens; layer_00 is the embedding, layer_k the output of block k) and
    the model's other kinds of tokens, such as ``oversmoothing/cosine_patch/layer_07`` without class token, and writes
    ``oversmoothing.csv`` and ``oversmoothing.png`` into ``folder``. What was measured travels in the checkpoint, so a
    resumed run ends with the same files.
    """

    def __init__(self, folder: str | Path, every_n_epochs: int = 10, num_samples: int = 128) -> None:
        check_number("probe.every_n_epochs", every_n_epochs, 1, integer=True)
        check_number("probe.num_samples", num_samples, 1, integer=True)
        self.folder, self.every_n_epochs, self.num_samples = Path(folder), every_n_epochs, num_samples
        self.rows: list[dict[str, Any]] = []
        self._inputs: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def curve(self, when: str, tokens: str = "all") -> list[float]:
        """Mean similarity by layer, ``when`` being ``initial`` or ``last`` (the latest measurement)."""
        if not self.rows:
            return []
        step = self.rows[0 if when == "initial" else -1]["step"]
        return [r["mean"] for r in self.rows if r["step"] == step and r["tokens"] == tokens]

    def curves(self) -> dict[str, Any]:
        """``{"initial": […], "last": […]}`` of all tokens, and the same for every other kind under its name."""
        found = self.by_kind()
        return found.pop("all", {"initial": [], "last": []}) | found

    def by_kind(self) -> dict[str, dict[str, list[float]]]:
        """``{kind of tokens: {"initial": […], "last": […]}}``."""
        kinds = dict.fromkeys(row["tokens"] for row in self.rows)
        return {kind: {when: self.curve(when, kind) for when in ("initial", "last")} for kind in kinds}

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        if not self.rows:
            self._measure(trainer, task, "initial", 0)

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        done = trainer.current_epoch + 1  # Lightning counts it only after this hook
        last = done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if last or done % self.every_n_epochs == 0:
            self._measure(trainer, task, "final" if last else "training", done)

    def _measure(self, trainer: Trainer, task: LightningModule, when: str, done: int) -> None:
        with gathered(task.model):  # by all processes
            if not trainer.is_global_zero:
                return
            if self._inputs is None:
                self._inputs = trainer.datamodule.probe_batch(self.num_samples)
            fixed = {"step": trainer.global_step, "epoch": done, "when": when}
            rows = curve_rows(measure_similarity(task.model, self._inputs), len(self._inputs), **fixed)
        self.rows += rows
        metrics = {}
        for row in rows:
            name = "cosine" if row["tokens"] == "all" else f"cosine_{row['tokens']}"
            metrics[f"oversmoothing/{name}/layer_{row['layer']:02d}"] = row["mean"]
        task.log_now(metrics)
        self.write()

    def write(self) -> None:
        """Write the table and the figure from what has been measured so far."""
        if not self.rows:
            return
        with replacing(self.folder / "oversmoothing.csv") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        plot_similarity(self.rows, self.folder / "oversmoothing.png", self.folder.name)
