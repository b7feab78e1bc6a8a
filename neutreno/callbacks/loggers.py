"""Additional loggers, besides ``metrics.csv``."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger

from neutreno.config.building import build
from neutreno.config.options import SUPPLIED, checked
from neutreno.errors import InputError
from neutreno.reports.layers import curve, part_of, said_of

log = logging.getLogger(__name__)


def make_loggers(config: Any, folder: Path, experiment: str, job: str) -> list[Logger]:
    """The loggers that ``logger=`` asks for; ``experiment`` groups runs, ``job`` is ``train`` or ``eval``."""
    return [build(settings, folder=folder, experiment=experiment, job=job) for settings in config.values()]


def log_report(loggers: Sequence[Logger], metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    """Report the end of a run to the loggers: metrics, rows of layer-wise metrics and the figure of the similarity,
    where it was measured.

    A logger that fails costs a warning, never the run: its folder is the record.
    """
    for logger in loggers:
        try:
            _REPORTS[type(logger).__name__](logger, metrics, rows, figure)
        except Exception as error:
            log.warning("%s did not accept the report: %s", type(logger).__name__, " ".join(str(error).split()))


def _report_to_wandb(logger: Logger, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    import wandb

    run = logger.experiment
    content: dict[str, Any] = {} if figure is None else {"oversmoothing/figure": wandb.Image(str(figure))}
    for stack, subset in dict.fromkeys((row["stack"], row["subset"]) for row in rows):
        trained = {"trained": curve(rows, "last", subset, stack=stack)}
        before = {"at initialisation": curve(rows, "initial", subset, stack=stack)}
        known = before | trained if before["at initialisation"] != trained["trained"] else trained
        title = f"Similarity of tokens by layer: {' '.join(filter(None, [part_of(stack), said_of(subset)]))}"
        series = wandb.plot.line_series(
            list(range(len(trained["trained"]))), list(known.values()), list(known), title=title, xname="layer"
        )
        content[f"oversmoothing/per_layer/{'_'.join(filter(None, [part_of(stack), subset]))}"] = series
    if content:
        run.log(content)
    run.summary.update(metrics)
    run.finish()


def _report_to_tensorboard(logger: Logger, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    import numpy as np
    from PIL import Image

    writer = logger.experiment
    if figure is not None:
        pixels = np.asarray(Image.open(figure).convert("RGB"))
        writer.add_image("oversmoothing/figure", pixels, dataformats="HWC")
    for name, value in metrics.items():
        writer.add_scalar(f"result/{name}", value)
    writer.flush()


_REPORTS = {"WandbLogger": _report_to_wandb, "TensorBoardLogger": _report_to_tensorboard}


@checked
def wandb_logger(
    folder: Annotated[Path, SUPPLIED],
    project: str,
    offline: bool = True,
    experiment: Annotated[str | None, SUPPLIED] = None,
    job: Annotated[str, SUPPLIED] = "train",
    group: str | None = None,
    tags: Sequence[str] | None = None,
    entity: str | None = None,
    notes: str | None = None,
    log_model: bool | Literal["all"] = False,
) -> Logger:
    """Weights & Biases under ``folder``: online only if that is asked for and this machine is logged in."""
    try:
        from lightning.pytorch.loggers import WandbLogger

        if not offline and not _logged_in_to_wandb():
            log.warning("not logged in to Weights & Biases (`wandb login`): logging offline to %s", folder / "wandb")
            offline = True
        name = folder.name if job == "train" else f"{folder.name}-{job}"
        return WandbLogger(
            name=name,
            id=name[-128:],  # the same on resume, so that both parts are one run
            save_dir=folder,
            project=project,
            offline=offline,
            resume="allow",
            group=group or experiment,
            job_type=job,
            tags=tags,
            entity=entity,
            notes=notes,
            log_model=log_model,
        )
    except ModuleNotFoundError as error:
        raise InputError("logger=wandb needs the package wandb: pip install wandb") from error


def _logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@checked
def tensorboard_logger(
    folder: Annotated[Path, SUPPLIED],
    experiment: Annotated[str | None, SUPPLIED] = None,
    job: Annotated[str, SUPPLIED] = "train",
) -> Logger:
    """TensorBoard event files in ``folder/tensorboard``."""
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(
            folder, name="", version="tensorboard" if job == "train" else f"tensorboard_{job}", default_hp_metric=False
        )
    except ModuleNotFoundError as error:
        raise InputError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error
