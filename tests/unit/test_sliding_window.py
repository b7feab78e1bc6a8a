import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neutreno.errors import InputError
from neutreno.sliding_window import SlidingWindow, _resized_rows, probabilities, segment


class PerPixel(nn.Module):
    """Logits that depend on the pixel alone, so that windows must not show; records what it is given."""

    def __init__(self, classes=4):
        super().__init__()
        self.mix, self.shapes = nn.Conv2d(3, classes, 1).double(), []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return self.mix(images)


class PerWindow(nn.Module):
    """Two classes; the logit of the first is the window's own number, everywhere in it."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images):
        numbers = torch.arange(self.seen, self.seen + len(images), dtype=torch.float64)
        self.seen += len(images)
        ones = torch.ones(len(images), 1, *images.shape[-2:], dtype=torch.float64)
        return torch.cat([numbers[:, None, None, None] * ones, 0 * ones], dim=1)


def image(*size, seed=0):
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("stride", [3, 5, 8])
@pytest.mark.parametrize("size", [(8, 8), (9, 20), (31, 17)])
def test_windows_do_not_show_where_logits_depend_on_the_pixel_alone(size, stride):
    model, x = PerPixel(), image(*size)
    (probs,) = probabilities(model, [x], [size], SlidingWindow(8, stride))
    torch.testing.assert_close(probs, model.mix(x[None])[0].softmax(0))


def test_windows_stand_a_stride_apart_the_last_flush_with_the_border_and_overlaps_are_averaged():
    (probs,) = probabilities(PerWindow(), [image(4, 11)], [(4, 11)], SlidingWindow(4, 3))
    logit = (probs[0] / probs[1]).log()[0]  # windows at 0, 3, 6, 7
    expected = torch.tensor([0, 0, 0, 0.5, 1, 1, 1.5, 2.5, 2.5, 2.5, 3], dtype=torch.float64)
    torch.testing.assert_close(logit, expected)


def test_no_more_windows_at_once_than_allowed_whatever_the_image():
    model = PerPixel()
    segment(model, [image(64, 200)], [(64, 200)], SlidingWindow(16, 8, batch=5))
    assert max(shape[0] for shape in model.shapes) == 5
    assert {shape[1:] for shape in model.shapes} == {(3, 16, 16)}
    assert sum(shape[0] for shape in model.shapes) == 7 * 24


def test_windows_of_several_images_share_a_batch():
    model, images = PerPixel(), [image(8, 8, seed=i) for i in range(6)]
    together = segment(model, images, [(8, 8)] * 6, SlidingWindow(8, 8, batch=4))
    assert [shape[0] for shape in model.shapes] == [4, 2]
    alone = [segment(model, [x], [(8, 8)], SlidingWindow(8, 8))[0] for x in images]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("size", [(5, 7), (23, 9), (40, 64), (1, 1)])
@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_rows_at_a_time_equal_resizing_the_whole(monkeypatch, size, at_once):
    monkeypatch.setattr("neutreno.sliding_window.AT_ONCE", at_once)
    logits = image(17, 11)
    rows = torch.cat([part for _, part in _resized_rows(logits, size)], dim=1)
    torch.testing.assert_close(rows, F.interpolate(logits[None], size=size, mode="bilinear")[0], rtol=0, atol=1e-12)


def test_scales_and_flips_are_averaged_as_probabilities():
    model, x = PerPixel(), image(20, 12)
    (probs,) = probabilities(model, [x], [(10, 6)], SlidingWindow(8, 4, scales=(1.0, 2.0), flip=True))
    views = []
    for size in [(20, 12), (40, 24)]:
        for flip in (False, True):
            view = F.interpolate(x[None], size=size, mode="bilinear")
            logits = model.mix(view.flip(-1) if flip else view)
            logits = logits.flip(-1) if flip else logits
            views.append(F.interpolate(logits, size=(10, 6), mode="bilinear")[0].softmax(0))
    torch.testing.assert_close(probs, torch.stack(views).mean(0))
    assert torch.equal(segment(model, [x], [(10, 6)], SlidingWindow(8, 4, (1.0, 2.0), True))[0], probs.argmax(0))


@pytest.mark.parametrize("size, becomes", [((4, 10), (8, 20)), ((30, 6), (40, 8)), ((5, 5), (8, 8))])
def test_an_image_smaller_than_a_window_is_enlarged_to_one(size, becomes):
    model, x = PerPixel(), image(*size)
    (probs,) = probabilities(model, [x], [size], SlidingWindow(8, 8))
    enlarged = F.interpolate(x[None], size=becomes, mode="bilinear")
    expected = F.interpolate(model.mix(enlarged), size=size, mode="bilinear")[0].softmax(0)
    torch.testing.assert_close(probs, expected)


def test_one_view_gives_the_likeliest_class_without_probabilities():
    model, x = PerPixel(), image(19, 33)
    window = SlidingWindow(8, 5)
    (probs,) = probabilities(model, [x], [(25, 40)], window)
    assert torch.equal(segment(model, [x], [(25, 40)], window)[0], probs.argmax(0))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"window": 0, "stride": 1}, "window=0"),
        ({"window": 8, "stride": 9}, "leave gaps"),
        ({"window": 8, "stride": 8, "scales": []}, "not a list of factors"),
        ({"window": 8, "stride": 8, "scales": 1.0}, "not a list of factors"),
        ({"window": 8, "stride": 8, "scales": [0]}, "scales=0"),
        ({"window": 8, "stride": 8, "flip": "yes"}, "flip=yes"),
        ({"window": 8, "stride": 8, "batch": 0}, "batch=0"),
    ],
)
def test_impossible_windows_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        SlidingWindow(**settings)
