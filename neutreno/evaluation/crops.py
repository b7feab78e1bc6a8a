"""Validation metrics under other crops of the images than the data set's own."""

from __future__ import annotations

import copy
from typing import Annotated

from annotated_types import Ge, Le
from lightning import LightningDataModule
from timm.data import resolve_model_data_config
from torch import nn

from neutreno.config.options import checked
from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject
from neutreno.evaluation.metrics import validate


class Crops(Evaluator):
    """Validation metrics named ``val_crop0.9/top1``.

    Args:
        crop_pcts: the crops beside ``data.crop_pct``; None: 0.9, timm's of DeiT, and the crop that a timm model was
            made for, where the data set crops at all.
    """

    @checked
    def __init__(self, crop_pcts: list[Annotated[float, Ge(0.01), Le(1)]] | None = None) -> None:
        self.crop_pcts = crop_pcts

    def further(self, model: nn.Module, data: LightningDataModule) -> list[float]:
        """The crops that say something new of ``data``.

        Raises:
            NothingToMeasure: there is none.
        """
        if getattr(data, "on_device", False) or not hasattr(data, "crop_pct"):
            raise NothingToMeasure("evaluator.crops: this data set has no data.crop_pct, or lies on the device")
        if self.crop_pcts is None and data.crop_pct == 1:  # CIFAR's small images are not cropped
            raise NothingToMeasure("evaluator.crops: data.crop_pct=1 crops nothing; say evaluator.crops.crop_pcts=[…]")
        net = getattr(model, "net", None)
        own = [resolve_model_data_config(net)["crop_pct"]] if hasattr(net, "pretrained_cfg") else []
        asked = [0.9, *own] if self.crop_pcts is None else self.crop_pcts
        if found := [crop_pct for crop_pct in dict.fromkeys(asked) if crop_pct != data.crop_pct]:
            return found
        same = f"evaluator.crops.crop_pcts={asked} has no other crop than data.crop_pct={data.crop_pct}"
        raise NothingToMeasure(same)

    def check(self, subject: Subject) -> None:
        self.further(subject.task.model, subject.data)

    def run(self, subject: Subject) -> Findings:
        metrics, crop_pcts = {}, self.further(subject.task.model, subject.data)
        for crop_pct in crop_pcts:
            data = copy.copy(subject.data)
            data.crop_pct = crop_pct
            found = validate(subject.trainer, subject.task, data)
            metrics |= {name.replace("val/", f"val_crop{crop_pct:g}/"): value for name, value in found.items()}
        return Findings(metrics=metrics, record={"crop_pcts": crop_pcts})
