"""Additional loggers, besides ``metrics.csv``."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch.loggers import Logger

from neutreno.config.building import build
from neutreno.config.options import SUPPLIED, checked
from neutreno.errors import needing
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
            _REPORTS.get(type(logger).__name__, _report)(logger, metrics, rows, figure)
        except Exception as error:
            log.warning("%s did not accept the report: %s", type(logger).__name__, " ".join(str(error).split()))


def _report(logger: Logger, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    """What any of Lightning's loggers takes."""
    logger.log_metrics(metrics)


def _report_to_wandb(logger: Logger, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    import wandb

    run = logger.experiment
    content: dict[str, Any] = {} if figure is None else {"oversmoothing/figure": wandb.Image(str(figure))}
    for stack, subset in dict.fromkeys((row["stack"], row["subset"]) for row in rows):
        trained, initial = (curve(rows, when, subset, stack=stack) for when in ("last", "initial"))
        known = {"at initialisation": initial, "trained": trained} if initial != trained else {"trained": trained}
        title = f"Similarity of tokens by layer: {' '.join(filter(None, [part_of(stack), said_of(subset)]))}"
        layers = list(range(len(trained)))
        series = wandb.plot.line_series(layers, list(known.values()), list(known), title=title, xname="layer")
        content[f"oversmoothing/per_layer/{'_'.join(filter(None, [part_of(stack), subset]))}"] = series
    if content:
        run.log(content)
    run.summary.update(metrics)
    run.finish()


def _report_to_tensorboard(logger: Logger, metrics: dict[str, float], rows: list[dict], figure: Path | None) -> None:
    from matplotlib.image import imread

    writer = logger.experiment
    if figure is not None:
        writer.add_image("oversmoothing/figure", imread(figure)[..., :3], dataformats="HWC")
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
    with needing("logger=wandb", "Weights & Biases", "loggers"):
        importlib.import_module("wandb")  # which Lightning does only when training has begun
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


def _logged_in_to_wandb() -> bool:
    from requests.utils import get_netrc_auth

    site = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(site))


@checked
def tensorboard_logger(
    folder: Annotated[Path, SUPPLIED],
    experiment: Annotated[str | None, SUPPLIED] = None,
    job: Annotated[str, SUPPLIED] = "train",
) -> Logger:
    """TensorBoard event files in ``folder/tensorboard``."""
    version = "tensorboard" if job == "train" else f"tensorboard_{job}"
    with needing("logger=tensorboard", "TensorBoard", "loggers"):
        importlib.import_module("torch.utils.tensorboard")
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version=version, default_hp_metric=False)
