"""What the fidelity term adds to a training step, in CPU time, with an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import benchmarks
from benchmarks.cpu import cpu_ratio
from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.evaluation.step_time import training_step
from neutreno.models.vit import VisionTransformer


class PlainTerm(NeutrenoAttention):
    """The term as its formula is read, ``U + λ̃ (V_0 − V_l)``, with the difference in memory."""

    def mix(self, q, k, v, v0):
        out = self.attend(q, k, v, v0)
        return out if v0 is None else torch.add(out, v0 - v, alpha=self.lam)


CASES = {  # a network and its batch
    "the default run (mini, digits)": (
        {"size": "mini", "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10},
        (32, 1, 8, 8),
    ),
    **{
        f"DeiT-tiny, N = {(pixels // 16) ** 2 + 1:,}": ({"size": "tiny", "img_size": pixels}, (1, 3, pixels, pixels))
        for pixels in (224, 512, 1024)
    },
}


def bench_term(repeats: int) -> Iterator[tuple[str, str]]:
    if benchmarks.DEVICE.type != "cpu":
        yield "the fidelity term's CPU time", "measured on the CPU only"
        return
    for name, (network, shape) in CASES.items():
        images = torch.randn(*shape)

        def step(rule: Callable, network: dict = network, images: torch.Tensor = images) -> Callable[[], None]:
            return training_step(VisionTransformer(attention=rule, **network), images)

        softmax = step(SoftmaxAttention)
        for kind, rule in {"the term": NeutrenoAttention, "the term by its formula": PlainTerm}.items():
            found = cpu_ratio(step(partial(rule, lam=0.6)), softmax, repeats)
            yield f"CPU time of a training step, {name}: softmax's over that with {kind}", found
