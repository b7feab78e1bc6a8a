"""NeuTRENO's fidelity term for a model that somebody else wrote: timm's, Hugging Face's, or your own.

Hooks read the values where they are projected and add the term before the output projection, so nothing of the model
is replaced. V_0 is remembered by the tokens that enter each layer, for as long as those live: activation checkpointing,
which runs a layer once more with the same tokens, so finds the V_0 of the same forward pass among several.
"""

from __future__ import annotations

import inspect
import threading
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from neutreno.attention import SoftmaxAttention, fidelity
from neutreno.errors import InputError, check_number
from neutreno.oversmoothing.layers import Layer, find_layers, first_tensor, self_attentions
from neutreno.oversmoothing.recorder import untouched

_VALUE = ("value", "value_proj", "v_proj", "v_lin", "v", "to_v")
_FUSED = ("qkv", "c_attn", "query_key_value", "qkv_proj", "Wqkv")
_OUTPUT = ("proj", "c_proj", "o_proj", "out_proj", "out_lin", "dense", "o", "Wo")
_HEAD = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
_HEADS = ("num_heads", "num_attention_heads", "n_heads")


def convert(model: nn.Module, lam: float | None = 0.6, layers: str | list[str] | None = None) -> nn.Module:
    """Add NeuTRENO's term ``λ̃ (V_0 − V_l)`` to every self-attention but the first of each stack, in place.

    Per head, before the output projection, after attention dropout, on all tokens; cross-attention is left alone. No
    parameter is added and no name changes, so weights load and save as before. Works with deep copies, key-value caches
    (V_0 of a new token comes from the same call), grouped-query attention and activation checkpointing
    (``use_reentrant=False``). Every attention is tried alone before anything is changed: with values that are the same
    for all tokens, weights that sum to 1 must give those values at the output projection, head by head.

    Args:
        lam: λ̃ ≥ 0; 0 is the model as it was, bit for bit. On a converted model it replaces λ̃. None takes the term out.
        layers: which modules are the layers, as in :func:`neutreno.profile`.

    Returns:
        ``model`` itself.

    Raises:
        InputError: λ̃ is no finite number ≥ 0, no layers were found, or an attention cannot be converted; then nothing
            was changed. Also at a forward pass in which the values of a converted layer are not seen.
    """
    if lam is not None:
        check_number("lam", lam)
    converted = [module for module in model.modules() if hasattr(module, "_fidelity")]
    for module in converted:
        if lam is not None:
            module._fidelity.lam = float(lam)
            continue
        for handle in module._fidelity.handles:
            handle.remove()
        del module._fidelity
    if converted or lam is None:
        return model
    stacks: dict[str, list[_Fidelity]] = defaultdict(list)
    for layer in find_layers(model, layers):
        stacks[layer.stack].append(_planned(model, layer, lam))
    terms = [term for stack in stacks.values() for term in stack]
    for stack in stacks.values():
        for term in stack:
            term.first, term.last = stack[0], stack[-1]
            if term.width != term.first.width:
                widths = f"{term.width} wide in {term.name}, {term.first.width} in {term.first.name}"
                raise InputError(f"convert: V_0 − V_l needs values of one width, they are {widths}")
    for term in terms:
        term.attach()
    return model


class _Running(threading.local):
    """What is known while layers run, in this thread and no longer; no part of the model, so no copy has it."""

    def __init__(self) -> None:
        self.v0: WeakKeyDictionary[_Fidelity, Tensor] = WeakKeyDictionary()  # by the first term of its stack
        self.calls: WeakKeyDictionary[_Fidelity, SimpleNamespace] = WeakKeyDictionary()  # what a layer has seen


_RUNNING = _Running()
# By the first term of a stack, V_0 by the tokens that entered a layer; None: it was the first
_OF_TOKENS: WeakKeyDictionary[_Fidelity, WeakTensorKeyDictionary] = WeakKeyDictionary()


class _Fidelity:
    """The term of one attention: where its values are, and what happens as its layer runs."""

    first: _Fidelity  # of its stack
    last: _Fidelity
    grouped = False  # the fused projection holds q, k and v of a head (or of a group of them) side by side

    def __init__(self, layer: Layer, name: str, core: nn.Module, lam: float) -> None:
        self.layer, self.name, self.core, self.lam = layer.module, name, core, float(lam)
        self.separate, fused, self.output = (_first(core, names, nn.Module) for names in (_VALUE, _FUSED, _OUTPUT))
        self.projection = self.separate or fused
        total = _size(self.projection, "out")
        self.out = total if self.output is None else _size(self.output, "in")  # width of what is mixed
        self.width = (total if self.separate else 0) or (total - self.out) // 2  # of the values
        self.groups = self.out // max(1, self.width)  # query heads that share a value
        heads = _first(core, _HEADS, int)
        self.head = _first(core, _HEAD, int) or (self.out // heads if heads else 0)  # width of a head
        norm = getattr(core, "norm", None)  # timm's, between attention (and its gate) and output projection
        if self.output is not None and isinstance(norm, nn.Module):
            self.output = norm
        self.handles: list[Any] = []

    def of(self, projected: Tensor) -> Tensor:
        """The values, heads side by side, in what their projection gives; a view where they are written to."""
        if self.grouped:
            return projected.unflatten(-1, (-1, self.groups + 2, self.head))[..., -1, :]
        return projected[..., -self.width :]

    def spread(self, values: Tensor) -> Tensor:
        """(…, width of the values) → (…, width of the attention's output): a value for each of its query heads."""
        if self.groups == 1:
            return values
        return values.unflatten(-1, (-1, self.head)).repeat_interleave(self.groups, -2).flatten(-2)

    def attach(self) -> None:
        self.handles = [
            self.layer.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.layer.register_forward_hook(self.leave),
            self.projection.register_forward_hook(self.take),
            self.core.register_forward_hook(self.add_after)
            if self.output is None
            else self.output.register_forward_pre_hook(self.add_before),
        ]
        # Checkpointing around a layer's forward runs it again without its own hooks: V_0 is looked for further inside.
        self.handles += [m.register_forward_pre_hook(self.again, with_kwargs=True) for m in self.layer.modules()]
        self.core._fidelity = self

    def _fail(self, what: str) -> InputError:
        return InputError(f"convert: {what} in {self.name} ({type(self.core).__name__}); it cannot be converted so")

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A layer is about to run: which V_0 is its?"""
        if _in_backward():
            return
        hidden, v0 = first_tensor((args, kwargs)), None
        known = _OF_TOKENS.setdefault(self.first, WeakTensorKeyDictionary())
        if self.first is self.last:  # a layer that is used again and again is first where its tokens bring nothing
            v0 = known.get(hidden)
        elif self is not self.first and (v0 := _RUNNING.v0.get(self.first)) is None:
            raise self._fail("the first layer has not run before")
        known[hidden] = v0
        self._begin(hidden, v0)

    def again(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A layer, or something within it, is about to run a second time, perhaps on the layer's tokens."""
        if _in_backward():
            call, known = _RUNNING.calls.get(self), _OF_TOKENS.get(self.first, {})
            for x in (*args, *kwargs.values()):
                if isinstance(x, Tensor) and x in known and (call is None or call.v0 is not known[x]):
                    self._begin(x, known[x])

    def _begin(self, hidden: Tensor, v0: Tensor | None) -> None:
        _RUNNING.calls[self] = SimpleNamespace(v0=v0, v=None, shape=hidden.shape[:-1], done=False)

    def take(self, projection: nn.Module, args: tuple, projected: Tensor) -> None:
        call = _RUNNING.calls.get(self)
        if call is None:
            lost = "V_0 is lost; activation checkpointing needs use_reentrant=False"
            raise self._fail(lost if _in_backward() else "values were projected outside of a run of the layer")
        call.v = self.of(projected).flatten(-2) if self.grouped else self.of(projected)
        if call.shape != call.v.shape[:-1]:
            shapes = f"{tuple(call.v.shape[:-1])}, those of the layer {tuple(call.shape)}"
            raise self._fail(f"the tokens of attention have the shape {shapes} (windows?)")

    def _added(self, u: Tensor) -> Tensor:
        call = _RUNNING.calls.get(self)
        if call is None or call.v is None:
            raise self._fail("no values were projected before the output")
        call.done = True
        if _in_backward():  # which may end before the layer does
            del _RUNNING.calls[self]
        v0, v = call.v0, call.v
        if v0 is None or self.lam == 0:
            return u
        if v0.shape != v.shape:
            raise self._fail(f"V_0 has the shape {tuple(v0.shape)}, V_l {tuple(v.shape)}")
        return fidelity(u, self.spread(v), self.spread(v0.to(v.device)), self.lam)

    def add_before(self, output: nn.Module, args: tuple) -> tuple:
        return (self._added(args[0]), *args[1:])

    def add_after(self, core: nn.Module, args: tuple, output: Any) -> Any:
        return self._added(output) if isinstance(output, Tensor) else (self._added(output[0]), *output[1:])

    def leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """A layer has run: V_0 goes on to the next."""
        if _in_backward():
            return
        call = _RUNNING.calls.pop(self)
        if not call.done:
            raise self._fail("the values, or the input of the output projection, were not seen")
        v0 = call.v if call.v0 is None else call.v0
        if self.first is self.last:
            _OF_TOKENS[self][first_tensor(output)] = v0
        elif self is self.first:
            _RUNNING.v0[self] = v0
        elif self is self.last:
            del _RUNNING.v0[self.first]


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _planned(model: nn.Module, layer: Layer, lam: float) -> _Fidelity:
    """Where the values and the output projection of a layer's self-attention are, as a trial confirms.

    Raises:
        InputError: it has none of a known kind, or the trial failed.
    """
    outer = self_attentions(layer.module)
    cores = {
        f"{layer.name}.{name}.{inner}".removesuffix("."): module
        for name, attention in outer.items()
        for inner, module in attention.named_modules()
        if _first(module, _VALUE + _FUSED, nn.Module)
    }
    if len(cores) != 1:
        classes = sorted({type(module).__name__ for module in (cores or outer or {"": layer.module}).values()})
        what = "more than one self-attention" if cores else "no projection of values that can be read"
        raise InputError(
            f"convert: {', '.join(classes)} in {layer.name} has {what} (looked for: {', '.join(_VALUE + _FUSED)}); "
            "it cannot be converted"
        )
    ((name, core),) = cores.items()
    term, kind = _Fidelity(layer, name, core, lam), type(core).__name__
    refused = {
        "is a variant of this project; choose its λ̃ where the model is built": isinstance(core, SoftmaxAttention)
        and type(core) is not SoftmaxAttention,
        "attends within windows that shift from layer to layer; V_0 does not fit them": any(
            word in kind.lower() for word in ("window", "swin")
        ),
        "adds a bias to its values outside of their projection": getattr(core, "v_bias", None) is not None,
        "has projections from whose sizes no heads can be told": term.width < 1 or term.out % term.width,
        "does not say how many heads it has": term.groups > 1 and not term.head,
        "has values that do not divide into heads": term.groups > 1 and term.head and term.width % term.head,
    }
    problem = next((said for said, holds in refused.items() if holds), None)
    if problem is None:
        problem = _trial(model, term)
        if problem and term.separate is None and term.head:
            term.grouped = True
            problem = _trial(model, term) and problem
    if problem:
        raise InputError(f"convert: {kind} ({name}) {problem}; it cannot be converted")
    return term


def _first(module: nn.Module, names: tuple[str, ...], kind: type) -> Any:
    """The first of the attributes so named that is of this kind."""
    return next((x for n in names if isinstance(x := getattr(module, n, None), kind)), None)


def _size(projection: nn.Module, side: str) -> int:
    """Width of what a projection takes ("in") or gives ("out"): nn.Linear, its quantised kin, GPT-2's Conv1D."""
    if hasattr(projection, f"{side}_features"):
        return getattr(projection, f"{side}_features")
    weight = getattr(projection, "weight", None)
    return weight.shape[side == "out"] if isinstance(weight, Tensor) and weight.ndim == 2 else 0


def _trial(model: nn.Module, term: _Fidelity, tokens: int = 5) -> str | None:
    """Run an attention alone on constant values; what is wrong with what arrives, if anything."""
    core, seen = term.core, {}
    weight = next((p for p in core.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    constant = torch.randint(0, 2, (term.width,), generator=generator).mul(2).sub(1).to(weight)
    hidden = torch.randn(1, tokens, _size(term.projection, "in"), generator=generator).to(weight)

    def replaced(projection: nn.Module, args: tuple, projected: Tensor) -> Tensor:
        seen["values"] = projected = projected.clone()
        term.of(projected).copy_(constant.view(-1, term.head) if term.grouped else constant)
        return projected

    def arrived(output: nn.Module, args: tuple) -> None:
        seen["u"] = args[0]

    at_output = nullcontext() if term.output is None else term.output.register_forward_pre_hook(arrived)
    with untouched(core), term.projection.register_forward_hook(replaced), at_output:
        try:
            seen.setdefault("u", first_tensor(core.forward(hidden, **_further_arguments(model, core, hidden))))
        except Exception as error:
            if "u" not in seen:
                return f"could not be tried alone ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    if "values" not in seen:
        return f"does not call {type(term.projection).__name__} for its values, so that they cannot be read"
    expected = term.spread(constant).expand(1, tokens, -1)
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    if seen["u"].shape != expected.shape or not torch.allclose(seen["u"], expected, atol=tolerance):
        return "does not hand weighted means of its values, head by head, to its output projection"
    return None


def _further_arguments(model: nn.Module, core: nn.Module, hidden: Tensor) -> dict[str, Any]:
    """What an attention's forward cannot do without beside its tokens."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    makers = {
        "position_embeddings": lambda: _rotary(model, core, hidden, positions),
        "position_ids": lambda: positions,
        "residual": lambda: torch.zeros_like(hidden),
    }
    if getattr(getattr(core, "config", None), "alibi", True):
        makers["alibi"] = lambda: hidden.new_zeros(_first(core, _HEADS, int), 1, hidden.shape[1])
    _, *others = inspect.signature(core.forward).parameters.values()
    named = [p for p in others if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: makers.get(p.name, lambda: None)() for p in named if p.name in makers or p.default is p.empty}


def _rotary(model: nn.Module, core: nn.Module, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor] | None:
    kinds = getattr(getattr(core, "config", None), "layer_types", None)
    kind = kinds[core.layer_idx] if kinds and isinstance(getattr(core, "layer_idx", None), int) else None
    for module in model.modules():
        if "rotary" in type(module).__name__.lower():
            accepts = "layer_type" in inspect.signature(module.forward).parameters
            return module(hidden, positions, **({"layer_type": kind} if accepts else {}))
    return None
