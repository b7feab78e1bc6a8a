"""Kinds of data, between :class:`~neutreno.data.base.SplitData` and the data sets: bound by steps, and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le
from omegaconf import DictConfig
from torch import nn

from neutreno.config.options import FREE, Count, Size, checked
from neutreno.data.base import SplitData
from neutreno.errors import InputError, check_number


class SteppedData(SplitData):
    """Splits of which a training set's end says nothing: steps, not passes through it, bound a run.

    Args:
        val_every_n_steps: optimizer steps between two validations, which count as an epoch.
        kwargs: of :class:`SplitData`.
    """

    @checked
    def __init__(self, val_every_n_steps: Count, **kwargs) -> None:
        super().__init__(**kwargs)
        self.val_every_n_steps = val_every_n_steps

    @classmethod
    def bound(cls, trainer: DictConfig, data: DictConfig) -> None:
        """Steps bound the run; an epoch of Lightning's loop is what lies between two validations."""
        steps, between = trainer.max_steps, data.val_every_n_steps
        check_number("trainer.max_steps", steps, 1, integer=True)
        if trainer.max_epochs is not None:
            raise InputError(f"trainer.max_epochs={trainer.max_epochs}: steps bound this run; set trainer.max_steps")
        if steps % between:
            raise InputError(
                f"trainer.max_steps={steps} is not a multiple of data.val_every_n_steps={between}; change one of them"
            )
        trainer.max_epochs = steps // between

    @property
    def whole_epoch(self) -> int:
        return self.val_every_n_steps


class ImageData(SplitData):
    """Splits of images.

    Args:
        img_size: side of the square images that the model sees in training, in pixels.
        in_chans, num_classes: of the model that fits the data. num_classes null: as many as the data set holds, which
            it tells the model once it is read.
        kwargs: of :class:`SplitData`.
    """

    samples_are = "images"
    mean: Sequence[float] | None = None  # by which pixels in [0, 1] are normalised, per channel
    std: Sequence[float] | None = None

    @checked
    def __init__(
        self,
        img_size: Annotated[Size, FREE],
        in_chans: Annotated[Size, FREE],
        num_classes: Annotated[Annotated[int, Ge(2), Le(10**7)] | None, FREE],
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.image_shape = in_chans, img_size, img_size
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.mode = "L" if in_chans == 1 else "RGB"
        self._tells = num_classes is None

    def model_arguments(self) -> dict[str, Any]:
        if self.num_classes is None:
            self.setup("validate")
        return {"num_classes": self.num_classes} if self._tells else {}

    def input_facts(self) -> dict[str, Any]:
        """Under timm's names, those of ``create_transform`` among them."""
        normalized = {} if self.mean is None else {"mean": list(self.mean), "std": list(self.std)}
        return {"img_size": self.img_size, "in_chans": self.in_chans, **normalized}

    def check_model(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: a size is not the data's.
        """
        own = {"in_chans": self.in_chans, "num_classes": self.num_classes, "img_size": self.img_size}
        if getattr(model, "dynamic_img_size", False):
            del own["img_size"]
        for name, size in own.items():
            given = settings.get(name, size)
            if given is not None and given != size:
                said = f"model.{name}={given}, but data.{name}={size}"
                raise InputError(f"{said}; leave model.{name} out, or set data.{name}")

    def check_channels(self, **settings: Sequence[float]) -> None:
        """
        Raises:
            InputError: images have no such channels, or one of ``settings`` is not a value for each.
        """
        if self.in_chans not in (1, 3):
            raise InputError(f"data.in_chans={self.in_chans}: images are read with 1 channel (grey) or 3 (RGB)")
        for name, values in settings.items():
            if len(values) != self.in_chans:
                raise InputError(f"data.{name} has {len(values)} values for {self.in_chans} channels")
