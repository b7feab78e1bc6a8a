"""Which variants weights were trained with, as a run folder or a checkpoint tells it."""

import pytest

from neutreno.config.composing import compose
from neutreno.errors import InputError
from neutreno.variants import axes_of, check_trained, describe, recorded_axes

NEUTRENO = {"class": "neutreno.attention.NeutrenoAttention", "arguments": {"lam": 0.6}, "baseline": False}
SOFTMAX = {"class": "neutreno.attention.SoftmaxAttention", "arguments": {}, "baseline": True}
SWITCHED_OFF = {"class": "neutreno.attention.NeutrenoAttention", "arguments": {"lam": 0}, "baseline": True}


@pytest.mark.parametrize("words", [[], ["model=deit"], ["attention.lam=0"], ["block=featscale"]], ids=str)
def test_the_axes_of_a_run_folder_are_those_that_were_composed(words):
    composed = compose(words)
    assert axes_of(composed.settings) == describe(composed)["axes"]


@pytest.mark.parametrize(
    "before, after, fits",
    [
        (NEUTRENO, NEUTRENO, True),
        (SOFTMAX, SWITCHED_OFF, True),
        (SWITCHED_OFF, SOFTMAX, True),
        (SOFTMAX, NEUTRENO, False),
        (NEUTRENO, SWITCHED_OFF, False),
        (NEUTRENO, {**NEUTRENO, "arguments": {"lam": 0.4}}, False),
        (NEUTRENO, {**NEUTRENO, "arguments": {"lam": 0.6, "anchor": "v0", "pull": True}}, True),  # newer options
        (NEUTRENO, {**NEUTRENO, "arguments": {"lam": 0.6, "anchor": "none", "pull": True}}, False),
        (None, NEUTRENO, False),  # an axis that the other model did not have
        (None, SOFTMAX, True),
    ],
)
def test_weights_fit_their_own_variant_and_at_the_baseline_its_equals(before, after, fits):
    trained = {} if before is None else {"attention": before}
    if fits:
        check_trained(trained, {"attention": after}, "x", "")
    else:
        with pytest.raises(InputError, match="trained with attention"):
            check_trained(trained, {"attention": after}, "x", "")
        check_trained(trained, {"attention": after}, "x", "", other=["attention"])
    check_trained(None, {"attention": after}, "x", "")  # nobody knows


@pytest.mark.parametrize("odd", [3, {"class": 1}, {**SOFTMAX, "arguments": 1}, {**SOFTMAX, "more": 1}], ids=str)
def test_what_no_run_writes_is_no_record_of_variants(odd):
    assert recorded_axes({"variants": {"attention": odd}}) is recorded_axes({"variants": odd}) is None


def test_timms_weights_by_name_are_at_the_baseline_of_every_axis():
    from neutreno.checkpoints import trained_with
    from neutreno.results import initial_weights

    composed = compose(["data=imagenet", "model.weights=deit_tiny_patch16_224", "recipe.model_size=tiny"])
    now = describe(composed)["axes"]
    with pytest.raises(InputError, match="trained with attention at its baseline"):
        check_trained(trained_with("deit_tiny_patch16_224", now), now, "deit_tiny_patch16_224", "")
    found = initial_weights(composed)["model.weights"]
    assert found["source"] == "deit_tiny_patch16_224" and found["sha256"] is None
    assert all(part["baseline"] for part in found["axes"].values()) and found["axes"].keys() == now.keys()
