"""Additional loggers, besides ``metrics.csv``."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from neutreno.config.building import build
from neutreno.config.options import SUPPLIED, checked
from neutreno.errors import needing
from neutreno.reports.figures import layers_figure
from neutreno.reports.layers import curve, part_of, said_of, title_of

log = logging.getLogger(__name__)


def make_loggers(config: Any, folder: Path, configuration: str, labels: Sequence[str], job: str) -> list[Logger]:
    """The loggers that ``logger=`` asks for.

    Args:
        configuration: what runs of one configuration are called, whatever their seeds: the group that a service puts
            them into, the same whichever service it is. labels: its tags.
        job: ``train`` or ``eval``.
    """
    told = {"configuration": configuration, "labels": [*labels], "job": job}
    return [build(settings, folder=folder, **told) for settings in config.values()]


def log_settings(
    loggers: Sequence[Logger], settings: dict[str, Any], told: dict[str, Any], titles: dict[str, str]
) -> None:
    """Tell the loggers what begins.

    Args:
        settings: all of it. told: the few that tell runs apart, by dotted key.
        titles: the metrics that runs are compared by, and what people call them.
    """
    for logger in loggers:
        if hasattr(logger, "log_comparison"):
            logger.log_comparison(told, titles)
        logger.log_hyperparams(settings)


def log_report(loggers: Sequence[Logger], metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    """Report the end of a run to the loggers: metrics, rows of layer-wise metrics and the figure of the similarity,
    where it was measured.

    A logger that fails costs a warning, never the run: its folder is the record.
    """
    for logger in loggers:
        try:
            if hasattr(logger, "log_report"):
                logger.log_report(metrics, rows, figure)
            else:  # what any of Lightning's loggers takes
                logger.log_metrics(metrics)
        except Exception as error:
            log.warning("%s did not accept the report: %s", type(logger).__name__, " ".join(str(error).split()))


class Wandb(WandbLogger):
    """Weights & Biases with layer-wise values as a chart each."""

    @rank_zero_only
    def log_layers(self, rows: list[dict[str, Any]], step: int) -> None:
        """Of each metric a chart over layers with a line for each stack and token subset, and its value after the last
        layer."""
        table, first = pd.DataFrame(rows), rows[0]["stack"]
        content: dict[str, Any] = after_last_layer(rows)
        for metric, own in table.groupby("metric", sort=False):
            lines = {
                named(stack if stack != first else "", subset): list(line["mean"])
                for (stack, subset), line in own.sort_values("layer").groupby(["stack", "subset"], sort=False)
            }
            content[f"oversmoothing/{metric}/by_layer"] = chart(lines, f"{title_of(metric)} by layer, step {step}")
        self.log_metrics(content, step)

    def log_report(self, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
        import wandb

        run = self.experiment
        content: dict[str, Any] = {} if figure is None else {"oversmoothing/figure": wandb.Image(str(figure))}
        for stack, subset in dict.fromkeys((row["stack"], row["subset"]) for row in rows):
            trained, initial = (curve(rows, when, subset, stack=stack) for when in ("last", "initial"))
            known = {"at initialisation": initial, "trained": trained} if initial != trained else {"trained": trained}
            title = f"Similarity of tokens by layer: {named(stack, subset)}"
            key = "_".join(filter(None, [part_of(stack), subset]))
            content[f"oversmoothing/per_layer/{key}"] = chart(known, title)
        if content:
            run.log(content)
        run.summary.update(metrics)
        run.finish()


class TensorBoard(TensorBoardLogger):
    """TensorBoard with layer-wise values as a figure each, and with its page HParams."""

    def __init__(self, folder: Path, version: str, filed: dict[str, str]) -> None:
        super().__init__(folder, name="", version=version, default_hp_metric=False)
        self.filed = filed

    @rank_zero_only
    def log_comparison(self, told: dict[str, Any], titles: dict[str, str]) -> None:
        """Fill HParams: its columns, and the values that the end will give as ``result/METRIC``.

        Not by ``add_hparams``, which knows no groups of sessions.
        """
        from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb

        told = {key: value for key, value in told.items() if value is not None}
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in told.items()}
        plain |= self.filed
        metrics = [Metric(f"result/{name}", display_name=title) for name, title in titles.items()]
        writer = self.experiment.file_writer
        writer.add_summary(hparams_config_pb([HParam(key) for key in plain], metrics))
        writer.add_summary(hparams_pb(plain, trial_id=self.filed["group"]))

    @rank_zero_only
    def log_layers(self, rows: list[dict[str, Any]], step: int) -> None:
        """A figure with all metrics over layers, and each one's value after the last layer."""
        self.log_metrics(after_last_layer(rows), step)
        self.experiment.add_figure("oversmoothing/by_layer", layers_figure(rows, f"after {step:,} steps"), step)

    def log_report(self, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
        from matplotlib.image import imread

        writer = self.experiment
        if figure is not None:
            writer.add_image("oversmoothing/figure", imread(figure)[..., :3], dataformats="HWC")
        for name, value in metrics.items():
            writer.add_scalar(f"result/{name}", value)
        writer.flush()


def named(stack: str, subset: str) -> str:
    return " ".join(filter(None, [part_of(stack), said_of(subset)]))


def chart(lines: dict[str, list[float]], title: str) -> Any:
    """W&B's chart of lines over layers."""
    import wandb

    layers = list(range(max(map(len, lines.values()))))
    return wandb.plot.line_series(layers, list(lines.values()), list(lines), title=title, xname="layer")


def after_last_layer(rows: list[dict[str, Any]]) -> dict[str, float]:
    """``oversmoothing/METRIC`` of the first stack's last layer and all tokens, to compare over time."""
    curves = {metric: curve(rows, metric=metric) for metric in dict.fromkeys(row["metric"] for row in rows)}
    return {f"oversmoothing/{metric}": values[-1] for metric, values in curves.items() if values}


@checked
def wandb_logger(
    folder: Annotated[Path, SUPPLIED],
    configuration: Annotated[str, SUPPLIED],
    labels: Annotated[Sequence[str], SUPPLIED],
    job: Annotated[str, SUPPLIED],
    project: str,
    offline: bool = True,
    group: str | None = None,
    tags: Sequence[str] | None = None,
    entity: str | None = None,
    notes: str | None = None,
    log_model: bool | Literal["all"] = False,
) -> Logger:
    """Weights & Biases under ``folder``: online only if that is asked for and this machine is logged in."""
    with needing("logger=wandb", "Weights & Biases", "loggers"):
        importlib.import_module("wandb")  # which Lightning does only when training has begun
        if not offline and not _logged_in_to_wandb():
            log.warning("not logged in to Weights & Biases (`wandb login`): logging offline to %s", folder / "wandb")
            offline = True
        name = folder.name if job == "train" else f"{folder.name}-{job}"
        return Wandb(
            name=name,
            id=name[-128:],  # the same on resume, so that both parts are one run
            save_dir=folder,
            project=project,
            offline=offline,
            resume="allow",
            group=group or configuration,
            job_type=job,
            tags=[tag[:64] for tag in dict.fromkeys([*labels, *(tags or ())])],  # longer ones are refused
            entity=entity,
            notes=notes,
            log_model=log_model,
        )


def _logged_in_to_wandb() -> bool:
    from requests.utils import get_netrc_auth

    site = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(site))


@checked
def tensorboard_logger(
    folder: Annotated[Path, SUPPLIED],
    configuration: Annotated[str, SUPPLIED],
    labels: Annotated[Sequence[str], SUPPLIED],
    job: Annotated[str, SUPPLIED],
    group: str | None = None,
    tags: Sequence[str] | None = None,
) -> Logger:
    """TensorBoard event files in ``folder/tensorboard``."""
    filed = {"group": group or configuration, "tags": ", ".join(dict.fromkeys([*labels, *(tags or ())])), "job": job}
    with needing("logger=tensorboard", "TensorBoard", "loggers"):
        importlib.import_module("tensorboard")  # Lightning also takes tensorboardX, which has no HParams

        return TensorBoard(folder, "tensorboard" if job == "train" else f"tensorboard_{job}", filed)
