from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.utils import benchmark

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.errors import InputError
from neutreno.evaluation.cost import Cost, images_per_second, measure_cost, multiply_adds
from neutreno.models.vit import VisionTransformer

IMAGE = torch.zeros(1, 3, 224, 224)


def of_deit_tiny():
    """Multiply-adds of its products of matrices, by hand."""
    tokens, dim, patches = 197, 192, 196
    linear = tokens * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim)
    attention = 2 * tokens * tokens * dim
    return patches * 3 * 16 * 16 * dim + 12 * (linear + attention) + dim * 1000


def test_multiply_adds_of_deit_tiny_are_those_of_its_matrix_products():
    by_hand = of_deit_tiny()
    assert multiply_adds(VisionTransformer("tiny").eval(), IMAGE) == by_hand
    assert by_hand == pytest.approx(1.26e9, rel=0.01)  # what timm publishes


def test_fused_attention_is_counted_like_an_explicit_one():
    model = timm.create_model("deit_tiny_patch16_224").eval()
    fused = multiply_adds(model, IMAGE)
    for block in model.blocks:
        block.attn.fused_attn = False
    assert fused == multiply_adds(model, IMAGE)


def test_neutreno_costs_no_more_multiply_adds_and_no_more_parameters_than_softmax():
    small = {"img_size": 32, "patch_size": 4, "depth": 2, "num_classes": 10}
    models = [
        VisionTransformer("mini", **small, attention=a) for a in (SoftmaxAttention, partial(NeutrenoAttention, lam=0.6))
    ]
    costs = [measure_cost(model, (3, 32, 32), batch_size=2, seconds=0) for model in models]
    assert costs[0]["multiply_adds"] == costs[1]["multiply_adds"]
    assert costs[0]["parameters"] == costs[1]["parameters"] == sum(p.numel() for p in models[0].parameters())


def test_multiply_adds_of_a_convolution():
    assert multiply_adds(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)) == 10 * 10 * 8 * 3 * 9


def test_throughput_counts_images_of_the_median_pass(monkeypatch):
    measured = SimpleNamespace(median=2.0)
    monkeypatch.setattr(benchmark.Timer, "blocked_autorange", lambda timer, min_run_time: measured)
    assert images_per_second(nn.Identity(), torch.zeros(8, 1), seconds=5) == 8 / 2
    monkeypatch.undo()
    threads, grad = [], []
    model = lambda x: (threads.append(torch.get_num_threads()), grad.append(torch.is_grad_enabled()))  # noqa: E731
    assert images_per_second(model, torch.zeros(8, 1), seconds=0) > 0
    assert set(threads) == {torch.get_num_threads()} and set(grad) == {False}  # the timer's own default is one thread


def test_memory_of_the_cpu_is_named_what_it_is():
    result = measure_cost(
        VisionTransformer("mini", img_size=8, patch_size=4, depth=1), (3, 8, 8), batch_size=1, seconds=0
    )
    assert result["peak_cuda_memory_mib"] is None and result["process_peak_rss_mib"] > 10
    assert result["image_size"] == [3, 8, 8] and result["device"] == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_cuda_holds_weights_and_activations():
    model = VisionTransformer("tiny").cuda()
    result = measure_cost(model, (3, 224, 224), batch_size=8, seconds=0)
    assert result["peak_cuda_memory_mib"] * 2**20 > 4 * result["parameters"] + 8 * 4 * 3 * 224 * 224
    assert result["multiply_adds"] == of_deit_tiny()


@pytest.mark.parametrize("wrong, words", [({"batch_size": 0}, "batch_size=0"), ({"seconds": -1}, "seconds=-1")])
def test_settings_that_measure_nothing(wrong, words):
    with pytest.raises(InputError, match=words):
        Cost(**wrong)
