import pytest

from support import result
from support.same_run import load


def weights(state):
    """Raw and averaged weights by name, without the keys' biases: the softmax does not feel them, so their gradient is
    rounding alone, which Adam scales to the size of any other."""
    split = {}
    for name, value in state["state_dict"].items():
        if name.endswith("attn.qkv.bias"):
            q, _, v = value.chunk(3)
            split |= {f"{name}/q": q, f"{name}/v": v}
        elif name.startswith(("model.", "ema.")):
            split[name] = value
    return split


TOLERANCE = {"64-true": 1e-13, "32-true": 1e-5}  # relative, of every tensor; seen: 1e-15, 1e-6


def assert_same_run(run, whole, precision="32-true"):
    ours, theirs = weights(load(run)), weights(load(whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = (ours[name] - theirs[name]).norm() / theirs[name].norm()
        assert error < TOLERANCE[precision], (name, error)
    ours, theirs = result(run)["metrics"], result(whole)["metrics"]
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name  # the metrics are float32
        else:
            assert ours[name] == theirs[name], name
