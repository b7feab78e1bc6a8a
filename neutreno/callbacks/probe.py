"""The over-smoothing probe: what the tokens are like after every block, before, while and after training."""

from __future__ import annotations

import copy
import csv
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from neutreno.attention import SoftmaxAttention
from neutreno.errors import InputError, check_number
from neutreno.files import replacing
from neutreno.models.transformer import attention_layers
from neutreno.oversmoothing import ATTENTION_MEASURES, MEASURES, check_measures
from neutreno.parallel import gathered
from neutreno.reports.figures import plot_similarity

COLUMNS = ("step", "epoch", "when", "measure", "tokens", "layer", "mean", "sd", "samples")


@torch.no_grad()
def measure_tokens(
    model: nn.Module, inputs: Tensor, measures: Sequence[str] = ("cosine",), batch_size: int = 64, **fixed: Any
) -> list[dict[str, Any]]:
    """Measures of over-smoothing by layer, as a tidy table: one row per measure, kind of tokens and layer.

    In evaluation mode and float32. ``mean`` and ``sd`` are over samples. Layer 0 is the embedding, layer k the output
    of block k, or for measures of attention its weights. Kinds of tokens are those of ``model.token_features``.

    Args:
        measures: names of :data:`neutreno.oversmoothing.MEASURES` and ``ATTENTION_MEASURES``.
        fixed: columns to put before.

    Raises:
        InputError: attention is to be measured in a model that does not use the project's.
    """
    was_training = model.training
    if next(model.parameters()).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    model.eval()
    device = next(model.parameters()).device
    of_attention = [name for name in measures if name in ATTENTION_MEASURES]
    found: dict[tuple[str, str, int], list[Tensor]] = defaultdict(list)
    hooks = _hook_attention(model, of_attention, found) if of_attention else []
    try:
        with torch.autocast(device.type, enabled=False):
            for part in inputs.split(batch_size):
                for tokens, layers in model.token_features(part.to(device)).items():
                    for name in measures:
                        for layer, x in enumerate(layers if name in MEASURES else ()):
                            found[name, tokens, layer].append(MEASURES[name](x).cpu())
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    rows = []
    for (name, tokens, layer), parts in sorted(found.items(), key=lambda item: measures.index(item[0][0])):
        samples = torch.cat(parts)
        sd = samples.std(correction=min(1, len(samples) - 1)).item()
        values = {"mean": samples.mean().item(), "sd": sd, "samples": len(samples)}
        rows.append({**fixed, "measure": name, "tokens": tokens, "layer": layer, **values})
    return rows


def _hook_attention(model: nn.Module, measures: list[str], found: dict) -> list[Any]:
    """Have the attention of every block measured as the model runs; the weights are built a layer at a time."""

    def measure(attention: SoftmaxAttention, arguments: tuple, tokens: str, layer: int) -> None:
        q, k, _ = attention.project(arguments[0])
        for name in measures:
            found[name, tokens, layer].append(ATTENTION_MEASURES[name](attention.weights(q, k)).cpu())

    layers = attention_layers(model)
    if not layers:
        raise InputError(
            f"probe.measures: {', '.join(measures)} needs this project's attention, which {type(model).__name__} "
            "does not use; leave it out"
        )
    return [
        attention.register_forward_pre_hook(partial(measure, tokens=tokens, layer=layer))
        for tokens, layer, attention in layers
    ]


def probed(measures: Any) -> list[str]:
    """``probe.measures``, and the cosine similarity before them, which tables and figures always show.

    Raises:
        InputError: they are no list of known names.
    """
    return list(dict.fromkeys(["cosine", *check_measures("probe.measures", measures)]))


class OversmoothingProbe(Callback):
    """Measures tokens by layer on fixed validation samples: at initialisation, every n epochs, at the end.

    Logs ``oversmoothing/cosine/layer_07`` (all tokens; layer_00 is the embedding, layer_k the output of block k) and
    the model's other kinds of tokens, such as ``oversmoothing/cosine_patch/layer_07`` without class token, for every
    measure by its name, and writes ``oversmoothing.csv`` and, of the cosine similarity, ``oversmoothing.png`` into
    ``folder``. What was measured travels in the checkpoint, so a resumed run ends with the same files.

    Args:
        measures: names of :data:`neutreno.oversmoothing.MEASURES` and ``ATTENTION_MEASURES``, see :func:`probed`.
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_epochs: int = 10,
        num_samples: int = 128,
        measures: Sequence[str] = ("cosine", "residual", "effective_rank"),
    ) -> None:
        check_number("probe.every_n_epochs", every_n_epochs, 1, integer=True)
        check_number("probe.num_samples", num_samples, 1, integer=True)
        self.measures = probed(measures)
        self.folder, self.every_n_epochs, self.num_samples = Path(folder), every_n_epochs, num_samples
        self.rows: list[dict[str, Any]] = []
        self._inputs: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [{"measure": "cosine", **row} for row in state_dict["rows"]]  # the only one of earlier versions

    def curve(self, when: str, tokens: str = "all", measure: str = "cosine") -> list[float]:
        """Means by layer, ``when`` being ``initial`` or ``last`` (the latest measurement)."""
        if not self.rows:
            return []
        step = self.rows[0 if when == "initial" else -1]["step"]
        wanted = (step, tokens, measure)
        return [r["mean"] for r in self.rows if (r["step"], r["tokens"], r["measure"]) == wanted]

    def curves(self, measure: str = "cosine") -> dict[str, Any]:
        """``{"initial": […], "last": […]}`` of all tokens, and the same for every other kind under its name."""
        found = self.by_kind(measure)
        return found.pop("all", {"initial": [], "last": []}) | found

    def by_kind(self, measure: str = "cosine") -> dict[str, dict[str, list[float]]]:
        """``{kind of tokens: {"initial": […], "last": […]}}``."""
        kinds = dict.fromkeys(row["tokens"] for row in self.rows if row["measure"] == measure)
        return {kind: {when: self.curve(when, kind, measure) for when in ("initial", "last")} for kind in kinds}

    def further_curves(self) -> dict[str, Any]:
        """:meth:`curves` of every measure but the cosine similarity, by its name."""
        return {
            name: self.curves(name) for name in dict.fromkeys(row["measure"] for row in self.rows) if name != "cosine"
        }

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
            rows = measure_tokens(task.model, self._inputs, self.measures, **fixed)
        self.rows += rows
        metrics = {}
        for row in rows:
            name = row["measure"] if row["tokens"] == "all" else f"{row['measure']}_{row['tokens']}"
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
