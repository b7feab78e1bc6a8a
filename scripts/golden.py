"""Golden outputs: small models run in float64 by the code that the paper's authors released. Ours must agree.

A file is an ``.npz`` with ``meta`` (JSON: kind, λ̃, sizes), the weights as ``w/NAME`` under the released names, an input
and what came out. Which model it holds is read from its keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.errors import InputError
from neutreno.models.graph import GAT, GCN, SGC, GraphNetwork
from neutreno.models.graph_norms import BatchNorm, GroupNorm, NoNorm, PairNorm
from neutreno.models.language_model import LanguageModel, own_name, own_names
from neutreno.models.segmenter import Segmenter
from neutreno.models.vit import VisionTransformer
from neutreno.oversmoothing.groups import information_gain, kernel, squared_distance_ratio, squared_distances
from neutreno.sliding_window import SlidingWindow, probabilities

EXACT, STORED_IN_FLOAT32, OF_GRAPHS = 1e-6, 1e-4, 1e-9


class Comparison(NamedTuple):
    quantity: str
    difference: float  # largest absolute
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


def check(path: str | Path) -> Iterator[Comparison]:
    """Build our model from a golden file and compare everything that the file holds.

    Raises:
        InputError: not a golden file, or one of a model that is not built here.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        meta = json.loads(str(golden["meta"]))
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except (ValueError, OSError, KeyError, EOFError, AttributeError) as error:
        raise InputError(f"{path} is not a golden file ({error})") from error
    checks = {
        "w/patch_embed.proj.weight": _check_vit,
        "w/decoder.cls_emb": _check_segmenter,
        "w/word_emb.emb_layers.0.weight": _check_language_model,
        "edge_index": _check_graph,
    }
    for key, compare in checks.items():
        if key in golden:
            try:
                yield from compare(path, golden, meta)
            except (KeyError, RuntimeError, TypeError) as error:
                raise InputError(f"{path} does not fit the model it names: {' '.join(str(error).split())}") from error
            return
    raise InputError(f"{path} holds a model that is not built here (keys: {', '.join(list(golden)[:6])}, …)")


def _attention(path: str | Path, meta: dict):
    kinds = {"softmax": SoftmaxAttention, "neutreno": partial(NeutrenoAttention, lam=meta.get("lambda_"))}
    if meta.get("kind") not in kinds:
        raise InputError(f"{path} is of kind {meta.get('kind')!r}; known are {', '.join(kinds)}")
    return kinds[meta["kind"]]


def _weights(golden: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("w/"): torch.from_numpy(v).double() for k, v in golden.items() if k.startswith("w/")}


def _difference(ours: torch.Tensor, golden: np.ndarray) -> float:
    if tuple(ours.shape) != golden.shape:
        raise InputError(f"shapes differ: {tuple(ours.shape)} here, {golden.shape} in the golden file")
    return (ours.detach().double() - torch.from_numpy(np.asarray(golden, dtype=np.float64))).abs().max().item()


def _check_vit(path: str | Path, golden: dict[str, np.ndarray], meta: dict) -> Iterator[Comparison]:
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    model = VisionTransformer(**{k: meta[k] for k in sizes}, attention=_attention(path, meta)).double()
    model.load_state_dict(_weights(golden))
    model.eval()
    x = torch.from_numpy(golden["x"]).double()
    yield Comparison(
        "hidden", _difference(torch.stack(model.hidden_states(x)[1:]), golden["hidden"]), STORED_IN_FLOAT32
    )
    logits = model(x)
    yield Comparison("logits", _difference(logits, golden["logits"]), EXACT)
    loss = F.cross_entropy(logits, torch.arange(len(x)) % meta["num_classes"])
    yield Comparison("loss", _difference(loss, golden["loss"]), EXACT)
    loss.backward()
    parameters = dict(model.named_parameters())
    norms = torch.stack([parameters[str(name)].grad.norm() for name in golden["grad_names"]])
    yield Comparison("grad_norms", _difference(norms, golden["grad_norms"]), EXACT)


@torch.no_grad()
def _check_segmenter(path: str | Path, golden: dict[str, np.ndarray], meta: dict) -> Iterator[Comparison]:
    sizes = {"num_classes": "n_cls", "img_size": "crop", "patch_size": "patch", "embed_dim": "d_model"}
    sizes |= {"num_heads": "n_heads", "depth": "n_layers", "decoder_depth": "decoder_layers"}
    model = Segmenter(**{ours: meta[theirs] for ours, theirs in sizes.items()}, attention=_attention(path, meta))
    weights = {k: v for k, v in _weights(golden).items() if not k.startswith("encoder.head.")}  # of no use to it
    model.double().load_state_dict(weights)
    model.eval()
    masks = model(torch.from_numpy(golden["x"]).double())
    yield Comparison("masks", _difference(masks, golden["masks"]), EXACT)
    image = torch.from_numpy(golden["image"]).double()[0]
    scales = {"single_scale_probs": {}, "multi_scale_probs": {"scales": meta["scales"], "flip": meta["flip"]}}
    for quantity, how in scales.items():
        window = SlidingWindow(meta["window_size"], meta["window_stride"], **how)
        (probs,) = probabilities(model, [image], [image.shape[-2:]], window)
        yield Comparison(quantity, _difference(probs, golden[quantity]), EXACT)


def _check_language_model(path: str | Path, golden: dict[str, np.ndarray], meta: dict) -> Iterator[Comparison]:
    if meta["d_model"] != meta["n_head"] * meta["d_head"]:
        raise InputError(f"{path} has heads that do not make up the width, which is not built here")
    model = LanguageModel(
        meta["vocab"],
        embed_dim=meta["d_model"],
        depth=meta["n_layer"],
        num_heads=meta["n_head"],
        mlp_ratio=meta["d_inner"] / meta["d_model"],
        cutoffs=meta["cutoffs"],
        attention=_attention(path, meta),
    ).double()
    model.load_state_dict(own_names(_weights(golden)))
    model.eval()
    ids, targets = (torch.from_numpy(golden[key]).T for key in ("data", "target"))  # stored with time first
    hidden = torch.stack(model.hidden_states(ids)[1:]).transpose(1, 2)
    yield Comparison("hidden", _difference(hidden, golden["hidden"]), STORED_IN_FLOAT32)
    nll = model(ids, targets)
    yield Comparison("nll", _difference(nll.T, golden["nll"]), EXACT)
    nll.mean().backward()
    parameters = dict(model.named_parameters())

    def gradient(name: str) -> torch.Tensor:
        layer, _, part = name.partition(".dec_attn.")
        if part in ("q_net.weight", "kv_net.weight"):  # rows of one matrix here
            qkv = parameters[f"{layer.replace('layers', 'blocks')}.attn.qkv.weight"].grad
            return qkv[: meta["d_model"]] if part == "q_net.weight" else qkv[meta["d_model"] :]
        return parameters[own_name(name)].grad

    norms = torch.stack([gradient(str(name)).norm() for name in golden["grad_names"]])
    yield Comparison("grad_norms", _difference(norms, golden["grad_norms"]), EXACT)


def own_graph_name(released: str) -> str:
    """Our name of a parameter or buffer of the released graph networks."""
    if released == "weight":
        return "lin.weight"
    name = released.replace("layers_GCN.", "layers.").replace("layers_bn.", "layers.")
    return name.replace(".bn.", ".norm.bn.").replace(".group_func.", ".norm.group_func.")


def _graph_network(golden: dict[str, np.ndarray], meta: dict) -> GraphNetwork:
    group = partial(GroupNorm, groups=meta["groups"], skip_weight=meta["skip_weight"])
    norms = {"none": NoNorm, "batch": BatchNorm, "pair": PairNorm, "group": group}
    hidden = meta["hidden"]
    build = {"gcn": partial(GCN, hidden=hidden), "gat": partial(GAT, hidden=hidden, attn_drop_rate=0.0), "sgc": SGC}
    model = build[meta["model"]](
        meta["num_features"],
        meta["num_classes"],
        torch.from_numpy(golden["edge_index"]),
        num_nodes=len(golden["x"]),
        depth=meta["layers"],
        drop_rate=0.0,
        norm=norms[meta["norm"]],
    ).double()
    weights = {own_graph_name(name): value for name, value in _weights(golden).items()}
    if meta["model"] == "sgc":  # x @ weight
        weights["lin.weight"] = weights["lin.weight"].T
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({k: v.view(shapes[k]) if ".att_" in k else v for k, v in weights.items()})
    return model


def _check_graph(path: str | Path, golden: dict[str, np.ndarray], meta: dict) -> Iterator[Comparison]:
    def compared(quantity: str, ours: torch.Tensor) -> Comparison:
        return Comparison(quantity, _difference(ours, golden[quantity]), OF_GRAPHS)

    model = _graph_network(golden, meta)
    x, labels, train = (torch.from_numpy(golden[key]) for key in ("x", "y", "train_mask"))
    hidden: list[torch.Tensor] = []
    hooks = [layer.norm.register_forward_hook(lambda _, args, out: hidden.append(out[0])) for layer in model.layers]
    logits = model(x[None])[0]
    for hook in hooks:
        hook.remove()
    yield compared("logits_train", logits)
    yield from (compared(f"hidden_train/{i}", out) for i, out in enumerate(hidden))
    loss = F.cross_entropy(logits[train], labels[train])
    yield compared("loss", loss)
    loss.backward()
    parameters, state = dict(model.named_parameters()), model.state_dict()
    gradients = [parameters[own_graph_name(str(name))].grad for name in golden["grad_names"]]
    yield compared("grad_norms", torch.stack([gradient.norm() for gradient in gradients]))
    yield from (compared(k, state[own_graph_name(k.removeprefix("after/"))]) for k in golden if k.startswith("after/"))
    model.eval()
    logits = model(x[None])[0].detach()
    yield compared("logits_eval", logits)
    within, more = squared_distances(logits, labels)
    yield compared("intra", within)
    yield compared("inter", within + more)
    yield compared("group_distance_ratio", squared_distance_ratio(logits, labels))
    yield compared("instance_information_gain", information_gain(logits.argmax(-1), kernel(x)))
