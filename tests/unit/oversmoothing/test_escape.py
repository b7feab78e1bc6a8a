"""When tokens collapse in training, and when they are free again."""

import pytest
import torch
import torch.nn.functional as F

from neutreno.oversmoothing.escape import collapse
from neutreno.oversmoothing.metrics import layernorm_cosine_similarity, mean_cosine_similarity, named_metrics

STEPS = (0, 10, 20, 50, 100)


def rows(*values, metric="cosine", stack="blocks"):
    """Of a run whose last layer has ``values`` at STEPS; its first, and a subset of its tokens, are another story."""
    other = {"stack": stack, "metric": metric, "subset": "all", "layer": 1, "mean": 0.99}
    return [
        {"step": step, **other, **more}
        for step, value in zip(STEPS, values, strict=True)
        for more in ({}, {"layer": 2, "mean": value}, {"layer": 2, "subset": "patch"})
    ]


COURSES = {  # values, share of the hundred steps, escape
    "never": ((0.5, 0.6, 0.7, 0.6, 0.5), 0.0, 0.0),
    "collapses and escapes": ((0.5, 0.95, 0.99, 0.8, 0.5), (5 + 10 + 15) / 100, 50.0),
    "frees itself for a while": ((0.95, 0.5, 0.95, 0.9, 0.89), (5 + 5 + 30 + 25) / 100, 100.0),
    "is collapsed at the end": ((0.5, 0.5, 0.5, 0.5, 0.9), 25 / 100, None),
    "throughout": ((1.0, 1.0, 1.0, 1.0, 1.0), 1.0, None),
}


@pytest.mark.parametrize("values, share, escape", COURSES.values(), ids=COURSES.keys())
def test_a_network_has_escaped_when_its_tokens_stay_apart_up_to_the_end(values, share, escape):
    found, within = collapse(rows(*values), named_metrics(["cosine"]))
    assert found["collapsed_share/cosine"] == pytest.approx(share)
    assert found.get("escape_step/cosine") == escape and within == {"escape_step/cosine": 100.0}


def test_each_metric_that_says_when_tokens_are_collapsed_is_told_and_no_other():
    course = COURSES["throughout"][0]
    measured = rows(*course) + rows(*COURSES["never"][0], metric="cosine_layernorm") + rows(*course, metric="residual")
    measured += rows(*COURSES["never"][0], stack="decoder.blocks")  # of several stacks the first counts
    found, within = collapse(measured, named_metrics(["cosine", "cosine_layernorm", "residual"]))
    assert found == {
        "collapsed_share/cosine": 1.0,
        "collapsed_share/cosine_layernorm": 0.0,
        "escape_step/cosine_layernorm": 0.0,
    }
    assert within == {"escape_step/cosine": 100.0, "escape_step/cosine_layernorm": 100.0}


def test_what_could_not_be_measured_says_nothing():
    measured = rows(*COURSES["collapses and escapes"][0])
    unknown = [{**row, "mean": None} if row["step"] == 20 else row for row in measured]
    assert collapse(unknown, named_metrics(["cosine"]))[0]["escape_step/cosine"] == 50.0
    assert collapse([], named_metrics(["cosine"])) == ({}, {})


def test_after_layernorm_a_shift_and_a_scale_of_each_token_tell_nothing():
    torch.manual_seed(0)
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    found = layernorm_cosine_similarity(x)
    torch.testing.assert_close(found, mean_cosine_similarity(F.layer_norm(x, (16,), eps=0.0)))
    moved = x * torch.rand(3, 7, 1, dtype=torch.float64) + 100 * torch.rand(3, 7, 1, dtype=torch.float64)
    torch.testing.assert_close(layernorm_cosine_similarity(moved), found)
    assert (mean_cosine_similarity(moved) > 0.9).all()


def test_after_layernorm_a_token_of_equal_channels_is_zero_though_its_mean_is_rounded():
    x = torch.full((1, 5, 3), 0.1, dtype=torch.float64)  # 0.1 + 0.1 + 0.1 is no 0.3
    assert layernorm_cosine_similarity(x).item() == 0 and mean_cosine_similarity(x).item() == pytest.approx(1)
