"""Sinks beside ``metrics.csv``."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger

from neutreno.errors import InputError

log = logging.getLogger(__name__)


def wandb_logger(folder: Path, project: str, offline: bool = True, **kwargs: Any) -> Logger:
    """Weights & Biases under ``folder``: online only if that is asked for and this machine is logged in."""
    try:
        from lightning.pytorch.loggers import WandbLogger

        if not offline and not _logged_in_to_wandb():
            log.warning("not logged in to Weights & Biases (`wandb login`): logging offline to %s", folder / "wandb")
            offline = True
        name = folder.name
        # the same id on resume, so that both parts are one run
        return WandbLogger(
            name=name, id=name[-128:], save_dir=folder, project=project, offline=offline, resume="allow", **kwargs
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


def tensorboard_logger(folder: Path) -> Logger:
    """TensorBoard event files in ``folder/tensorboard``."""
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise InputError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error
