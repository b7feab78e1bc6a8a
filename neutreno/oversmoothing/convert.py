"""NeuTRENO's fidelity term for a model that somebody else wrote: timm's, Hugging Face's, or your own.

Hooks read the values where they are projected and add the term before the output projection, so nothing of the model
is replaced. V_0 is remembered by the tokens that enter each layer, for as long as those live: activation checkpointing,
which runs a layer once more with the same tokens, so finds the V_0 of the same forward pass among several.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from neutreno.attention import SoftmaxAttention
from neutreno.errors import InputError, check_number
from neutreno.oversmoothing.layers import Layer, find_layers, first_tensor, self_attentions

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
    stacks: dict[str, list[Layer]] = {}
    for layer in find_layers(model, layers):
        stacks.setdefault(layer.stack, []).append(layer)
    plans = []
    for found in stacks.values():
        terms = [_planned(model, layer, lam) for layer in found]
        if different := [t for t in terms if t.width != terms[0].width]:
            widths = f"{different[0].width} wide in {different[0].name}, {terms[0].width} in {terms[0].name}"
            raise InputError(f"convert: V_0 − V_l needs values of one width, they are {widths}")
        for term in terms:
            term.first, term.last, term.alone = term is terms[0], term is terms[-1], len(terms) == 1
            term.stack = terms[0].stack
        plans += zip(found, terms, strict=True)
    for layer, term in plans:
        term.attach(layer.module)
    return model


class _Stack:
    """What the layers of one stack share while they run; a copy of the model starts without it."""

    def __init__(self) -> None:
        self.v0: dict[int, Tensor] = {}  # by thread, from the first layer to the last
        self.of_tokens = WeakTensorKeyDictionary()  # V_0 by the tokens that entered a layer; None: it was the first

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()


class _Fidelity:
    """The term of one attention: where its values are, and what happens as its layer runs."""

    first = last = alone = False  # in its stack

    def __init__(self, name: str, core: nn.Module, values: nn.Module, output: nn.Module | None, lam: float) -> None:
        self.name, self.core, self.projection, self.output = name, core, values, output
        self.lam, self.stack = float(lam), _Stack()
        self.width = self.groups = self.head = 0  # of the values; query heads that share one; width of a head
        self.grouped = False  # the fused projection holds q, k and v of a head (or of a group of them) side by side
        self.handles: list[Any] = []
        self.calls: dict[int, dict[str, Any]] = {}  # by thread: what the layer that runs there has seen so far

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "calls": {}}

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

    def attach(self, layer: nn.Module) -> None:
        before = {"with_kwargs": True}
        self.handles = [
            layer.register_forward_pre_hook(self.enter, **before),
            layer.register_forward_hook(self.leave),
            self.projection.register_forward_hook(self.take),
            self.core.register_forward_hook(self.add_after)
            if self.output is None
            else self.output.register_forward_pre_hook(self.add_before),
        ]
        # Checkpointing around a layer's forward runs it again without its own hooks: V_0 is looked for further inside.
        for module in layer.modules():
            if module is not layer and module is not self.projection:
                self.handles.append(module.register_forward_pre_hook(self.again, **before))
        self.core._fidelity = self

    def _call(self) -> dict[str, Any] | None:
        return self.calls.get(threading.get_ident())

    def _begin(self, v0: Tensor | None, hidden: Tensor | None = None) -> None:
        self.calls[threading.get_ident()] = {"v0": v0, "hidden": None if hidden is None else hidden.shape[:-1]}

    def _fail(self, what: str) -> InputError:
        self.calls.clear()
        return InputError(f"convert: {what} in {self.name} ({type(self.core).__name__}); it cannot be converted so")

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A layer is about to run: which V_0 is its?"""
        hidden, known = first_tensor((args, kwargs)), self.stack.of_tokens
        if self.first and not self.alone:
            v0 = None
        elif _in_backward():
            if hidden not in known:
                raise self._fail("V_0 is lost; activation checkpointing needs use_reentrant=False")
            v0 = known[hidden]
        elif self.alone:  # a layer that is used again and again is first where its tokens bring nothing
            v0 = known.get(hidden)
        elif (v0 := self.stack.v0.get(threading.get_ident())) is None:
            raise self._fail("the first layer has not run before")
        if self.alone or torch.is_grad_enabled():
            known[hidden] = v0
        self._begin(v0, hidden)

    def again(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Something within a layer is about to run: in a second run without ``enter``, perhaps on its tokens."""
        if _in_backward():
            call, known = self._call(), self.stack.of_tokens
            for x in (*args, *kwargs.values()):
                if isinstance(x, Tensor) and x in known and (call is None or call["v0"] is not known[x]):
                    self._begin(known[x])

    def take(self, projection: nn.Module, args: tuple, projected: Tensor) -> None:
        call = self._call()
        if call is None:
            if not self.first or self.alone:
                raise self._fail("values were projected outside of a run of the layer")
            return
        values = self.of(projected)
        values = values.flatten(-2) if self.grouped else values
        if call["hidden"] not in (None, values.shape[:-1]):
            shapes = f"{tuple(values.shape[:-1])}, those of the layer {tuple(call['hidden'])}"
            raise self._fail(f"the tokens of attention have the shape {shapes} (windows?)")
        call["v"] = values

    def _added(self, u: Tensor) -> Tensor:
        call = self._call()
        if call is None:  # the first layer, run again for its gradient
            return u
        if "v" not in call:
            raise self._fail("no values were projected before the output")
        call["done"] = True
        if _in_backward():
            self.calls.pop(threading.get_ident())
        v0, v = call["v0"], call["v"]
        if v0 is None or self.lam == 0:
            return u
        if v0.shape != v.shape:
            raise self._fail(f"V_0 has the shape {tuple(v0.shape)}, V_l {tuple(v.shape)}")
        return torch.add(u, self.spread(v0.to(v.device) - v), alpha=self.lam)

    def add_before(self, output: nn.Module, args: tuple) -> tuple:
        return (self._added(args[0]), *args[1:])

    def add_after(self, core: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, Tensor):
            return self._added(output)
        return (self._added(output[0]), *output[1:])

    def leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """A layer has run: V_0 goes on to the next."""
        call = self.calls.pop(threading.get_ident(), None)
        if call is None and _in_backward():
            return
        if call is None or "done" not in call:
            raise self._fail("the values, or the input of the output projection, were not seen")
        v0 = call["v"] if call["v0"] is None else call["v0"]
        if self.alone:
            self.stack.of_tokens[first_tensor(output)] = v0
        elif self.first:
            self.stack.v0[threading.get_ident()] = v0
        elif self.last:
            self.stack.v0.pop(threading.get_ident(), None)


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
        if _child(module, _VALUE + _FUSED) is not None
    }
    if len(cores) != 1:
        classes = (
            ", ".join(sorted({type(m).__name__ for m in (cores or outer).values()})) or type(layer.module).__name__
        )
        what = "more than one self-attention" if cores else "no projection of values that can be read"
        known = ", ".join(_VALUE + _FUSED)
        raise InputError(f"convert: {classes} in {layer.name} has {what} (looked for: {known}); it cannot be converted")
    name, core = next(iter(cores.items()))
    refuse = f"convert: {type(core).__name__} ({name})"
    if isinstance(core, SoftmaxAttention) and type(core) is not SoftmaxAttention:
        raise InputError(f"{refuse} is a variant of this project; choose its λ̃ where the model is built")
    if "window" in type(core).__name__.lower() or "swin" in type(core).__name__.lower():
        raise InputError(f"{refuse} attends within windows that shift from layer to layer; V_0 does not fit them")
    if getattr(core, "v_bias", None) is not None:
        raise InputError(f"{refuse} adds a bias to its values outside of their projection; it cannot be converted")
    separate, fused = _child(core, _VALUE), _child(core, _FUSED)
    values, output = separate or fused, _child(core, _OUTPUT)
    term = _Fidelity(name, core, values, output, lam)
    wide = _size(values, "out") if separate else None
    total, width = _size(values, "out"), _size(values, "out") if output is None else _size(output, "in")
    term.width = wide or (total - width) // 2
    if term.width < 1 or width % term.width:
        raise InputError(f"{refuse} has projections from whose sizes no heads can be told; it cannot be converted")
    term.groups = width // term.width
    heads = next((getattr(core, n) for n in _HEADS if isinstance(getattr(core, n, None), int)), 0)
    term.head = next((getattr(core, n) for n in _HEAD if isinstance(getattr(core, n, None), int)), 0)
    term.head = term.head or (width // heads if heads else 0)
    if term.groups > 1 and not term.head:
        raise InputError(f"{refuse} does not say how many heads it has; it cannot be converted")
    norm = getattr(core, "norm", None)  # timm's, between attention (and its gate) and output projection
    if output is not None and isinstance(norm, nn.Module):
        term.output = norm
    problem = _trial(model, term)
    if problem and fused is not None and separate is None and term.head:
        term.grouped = True
        problem = _trial(model, term) and problem
    if problem:
        raise InputError(f"{refuse} {problem}; it cannot be converted")
    return term


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((m for n in names if isinstance(m := getattr(module, n, None), nn.Module)), None)


def _size(projection: nn.Module, side: str) -> int:
    """Width of what a projection takes ("in") or gives ("out"): nn.Linear, its quantised kin, GPT-2's Conv1D."""
    if hasattr(projection, f"{side}_features"):
        return getattr(projection, f"{side}_features")
    weight = getattr(projection, "weight", None)
    return weight.shape[side == "out"] if isinstance(weight, Tensor) and weight.ndim == 2 else 0


class _Seen(Exception):
    """Ends a trial once the input of the output projection is known."""


@torch.no_grad()
def _trial(model: nn.Module, term: _Fidelity, tokens: int = 5) -> str | None:
    """Run an attention alone on constant values; what is wrong with what arrives, if anything."""
    core, seen = term.core, {}
    weight = next((p for p in core.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    constant = torch.randint(0, 2, (term.width,), generator=generator).mul(2).sub(1).to(weight)
    hidden = torch.randn(1, tokens, _size(term.projection, "in"), generator=generator).to(weight)

    def replaced(projection: nn.Module, args: tuple, projected: Tensor) -> Tensor:
        seen["values"] = True
        projected = projected.clone()
        term.of(projected).copy_(constant.view(-1, term.head) if term.grouped else constant)
        return projected

    def before(output: nn.Module, args: tuple) -> None:
        seen["u"] = args[0]
        raise _Seen

    handles = [term.projection.register_forward_hook(replaced)]
    if term.output is not None:
        handles.append(term.output.register_forward_pre_hook(before))
    training = {module: module.training for module in core.modules()}
    core.eval()
    try:
        if term.groups > 1 and term.width % term.head:
            return "has values that do not divide into heads"
        seen["u"] = first_tensor(core.forward(hidden, **_further_arguments(model, core, hidden)))
    except _Seen:
        pass
    except Exception as error:
        return f"could not be tried alone ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    if "values" not in seen:
        return f"does not call {type(term.projection).__name__} for its values, so that they cannot be read"
    expected = term.spread(constant).expand(1, tokens, -1)
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    if seen["u"].shape != expected.shape or not torch.allclose(seen["u"], expected, atol=tolerance):
        return "does not hand weighted means of its values, head by head, to its output projection"
    return None


def _further_arguments(model: nn.Module, core: nn.Module, hidden: Tensor) -> dict[str, Any]:
    """What an attention's forward cannot do without beside its tokens."""
    _, *parameters = inspect.signature(core.forward).parameters.values()
    given: dict[str, Any] = {}
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    config = getattr(core, "config", None)
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name == "position_embeddings":
            given[name] = _rotary(model, core, hidden, positions)
        elif name == "position_ids":
            given[name] = positions
        elif name == "residual":
            given[name] = torch.zeros_like(hidden)
        elif name == "alibi" and getattr(config, "alibi", True):
            heads = next(getattr(core, n) for n in _HEADS if hasattr(core, n))
            given[name] = hidden.new_zeros(heads, 1, hidden.shape[1])
        elif parameter.default is parameter.empty:
            given[name] = None
    return given


def _rotary(model: nn.Module, core: nn.Module, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor] | None:
    kinds = getattr(getattr(core, "config", None), "layer_types", None)
    kind = kinds[core.layer_idx] if kinds and isinstance(getattr(core, "layer_idx", None), int) else None
    for module in model.modules():
        if "rotary" in type(module).__name__.lower():
            accepts = "layer_type" in inspect.signature(module.forward).parameters
            return module(hidden, positions, **({"layer_type": kind} if accepts else {}))
    return None
