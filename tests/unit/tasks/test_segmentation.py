"""The segmentation task's scores and its loss."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from neutreno.data.segmentation import IGNORE
from neutreno.errors import InputError
from neutreno.models.segmenter import Segmenter
from neutreno.models.vit import VisionTransformer
from neutreno.tasks.segmentation import Segmentation, scores

CLASSES = 4


def independent(truth, guess):
    """Mean IoU, pixel and mean accuracy in percent from scikit-learn's confusion matrix, over labelled pixels."""
    kept = truth != IGNORE
    table = confusion_matrix(truth[kept], guess[kept], labels=range(CLASSES)).astype(float)
    right, row, column = np.diag(table), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore"):
        iou, recall = right / (row + column - right), right / row
    return [100 * np.nanmean(iou), 100 * right.sum() / table.sum(), 100 * np.nanmean(recall)]


@pytest.mark.parametrize("missing", [None, "from the truth", "from both"])
def test_scores_equal_scikit_learns_on_random_predictions_with_ignored_pixels(monkeypatch, missing):
    """Through the task, batch by batch: images of several sizes, a fifth of the pixels ignored."""
    draw = np.random.default_rng(1)
    sizes = [(7, 9), (12, 5), (30, 31), (1, 4)]
    truths = [draw.choice([0, 1, 2, 3, IGNORE], size) for size in sizes]
    guesses = [draw.integers(0, CLASSES, size) for size in sizes]
    for truth, guess in zip(truths, guesses, strict=True):
        if missing:
            truth[truth == 3] = 1
        if missing == "from both":
            guess[guess == 3] = 0
    answers = iter(guesses)
    monkeypatch.setattr(
        "neutreno.tasks.segmentation.segment",
        lambda network, images, sizes, window: [torch.from_numpy(next(answers)) for _ in images],
    )
    task = small_task()
    reported = {}
    monkeypatch.setattr(task, "report", reported.update)
    pairs = [(torch.zeros(3, 4, 4), torch.from_numpy(truth)) for truth in truths]
    task._evaluate("val_", pairs[:3])
    task._evaluate("val_", [])  # none of its images could be read
    task._evaluate("val_", pairs[3:])
    task._report("val_")
    flat = [np.concatenate([a.ravel() for a in arrays]) for arrays in (truths, guesses)]
    names = ["val/miou", "val/pixel_acc", "val/mean_acc"]
    np.testing.assert_allclose([reported[name] for name in names], independent(*flat), atol=1e-4)


def small_task(**kwargs):
    model = Segmenter("mini", img_size=16, patch_size=8, num_classes=CLASSES, depth=1)
    return Segmentation(model, CLASSES, {"window": 16, "stride": 16}, **kwargs)


def test_a_perfect_prediction_scores_one_and_a_constant_one_its_share():
    assert scores(torch.diag(torch.tensor([5, 2, 9])))["miou"] == 1
    constant = scores(torch.tensor([[6, 0], [2, 0]]))
    assert constant["miou"] == 6 / 8 / 2 and constant["pixel_acc"] == 0.75 and constant["mean_acc"] == 0.5


def test_ignored_pixels_do_not_train():
    task = small_task().eval()
    images, masks = torch.randn(2, 3, 16, 16), torch.randint(0, CLASSES, (2, 16, 16))
    masks[:, :4] = IGNORE
    kept = torch.nn.functional.cross_entropy(task.model(images)[:, :, 4:], masks[:, 4:])
    torch.testing.assert_close(task.loss((images, masks)), kept)
    assert task.loss((images, torch.full_like(masks, IGNORE))) == 0


def test_only_a_segmenter_is_trained_to_segment():
    with pytest.raises(InputError, match="takes a model of masks"):
        Segmentation(VisionTransformer("mini", img_size=16, patch_size=8), CLASSES, {"window": 16, "stride": 16})
