"""What a training step takes, counted on tensors without content, against real ones."""

from functools import cache, partial

import pytest
import torch
from benchmarks.scale import counted_step

from neutreno.attention import NeutrenoAttention
from neutreno.evaluation.cost import multiply_adds
from neutreno.models.vit import VisionTransformer

NETWORK = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@cache
def counted(images, lam=0.6, checkpointed=False):
    return counted_step(NETWORK, images, lam, checkpointed, torch.float32)


def kept_bytes(model, images):
    """Of what a real forward pass keeps for the backward pass, weights apart."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.zeros(images, 3, 224, 224)).sum().backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


def test_memory_grows_with_the_images_as_what_real_passes_keep():
    model = VisionTransformer(attention=partial(NeutrenoAttention, lam=0.6), **NETWORK).train()
    kept = kept_bytes(model, 6) - kept_bytes(model, 3)
    assert kept < counted(6).peak - counted(3).peak < 1.1 * kept  # what is made on the way comes on top
    assert counted(3).weights == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_the_term_adds_a_layers_values_for_every_layer_but_the_first():
    values = 197 * NETWORK["embed_dim"] * 4
    added = [counted(images).peak - counted(images, lam=0.0).peak for images in (3, 6)]
    assert added[1] - added[0] == pytest.approx(3 * (NETWORK["depth"] - 1) * values, rel=0.01)


DIM = NETWORK["embed_dim"]
FORWARD = multiply_adds(VisionTransformer(**NETWORK).eval(), torch.zeros(1, 3, 224, 224))
PATCHES, HEAD = 196 * 3 * 16 * 16 * DIM, DIM * 1000


def test_checkpointing_computes_blocks_anew_and_keeps_less():
    plain, again = counted(6), counted(6, checkpointed=True)
    assert again.peak < 0.9 * plain.peak
    last = NETWORK["depth"] * 197 * 4 * DIM * DIM  # of each block, which nothing in it needs
    assert again.operations - plain.operations == 2 * 6 * (FORWARD - PATCHES - HEAD - last)


def test_a_step_takes_three_forward_passes_but_for_images_and_scores():
    """Images have no gradient; fused attention computes its scores again in the backward pass."""
    scores = NETWORK["depth"] * 197 * 197 * DIM
    assert counted(3, lam=0.0).operations == 2 * 3 * (3 * FORWARD - PATCHES + scores)
