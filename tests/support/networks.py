import pytest
import timm
import torch
from torch import nn

IDS = torch.arange(3, 24).reshape(3, 7)
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 50}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def hugging_face(kind, config, **kwargs):
    """A model with random weights, large enough that layers differ."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**kwargs))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def t5():
    kwargs = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
    return hugging_face("T5Model", "T5Config", **kwargs)


def tiny_timm(name, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, **{"img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 4, **kwargs})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def swin():
    kwargs = {"depth": None, "depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2), "window_size": 4}
    name = "swin_tiny_patch4_window7_224"
    torch.manual_seed(0)
    return timm.create_model(name, img_size=64, **{k: v for k, v in kwargs.items() if v}).eval()
