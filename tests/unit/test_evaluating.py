"""Which further crops are worth an evaluation."""

import pytest
import torch

from neutreno.data.classification import ImageClassification
from neutreno.evaluation.base import NothingToMeasure
from neutreno.evaluation.crops import Crops

NORM = {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_further_crops_are_those_that_change_the_images():
    def further(crop_pcts=None, **settings):
        data = ImageClassification(root=None, img_size=8, in_chans=3, num_classes=2, **NORM, **settings)
        return Crops(crop_pcts).further(torch.nn.Identity(), data)

    assert further(crop_pct=0.875) == [0.9]
    assert further([0.9, 0.875, 0.9, 1.0], crop_pct=0.875) == [0.9, 1.0]
    assert further([0.9], crop_pct=1.0) == [0.9]
    with pytest.raises(NothingToMeasure, match="crops nothing"):  # CIFAR's
        further(crop_pct=1.0)
    with pytest.raises(NothingToMeasure, match="no other crop"):
        further([0.875], crop_pct=0.875)
    with pytest.raises(NothingToMeasure, match="lies on the device"):  # crops there no further
        further([0.9], crop_pct=1.0, on_device=True, crop_padding=1)
