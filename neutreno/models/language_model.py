"""The paper's language model, a decoder-only transformer on the project's block, and its released weights' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from neutreno.attention import SoftmaxAttention
from neutreno.checkpoints import by_name, checkpoint_file, load_strictly, read_checkpoint, state_dict_of
from neutreno.config.options import SUPPLIED, Count, Depth, DropRate, NonNegative, Ratio, Size, Weights, checked
from neutreno.data.text import Vocabulary
from neutreno.errors import InputError
from neutreno.models.adaptive_softmax import AdaptiveSoftmax
from neutreno.models.transformer import Block, Trunk
from neutreno.models.vit import of_size

SIZES = {
    # For small texts and one CPU. Smaller initial weights let the embeddings drown in the positions at this width.
    "mini": {"embed_dim": 64, "depth": 12, "num_heads": 4, "mlp_ratio": 4, "init_std": 0.07},
    "small": {"embed_dim": 128, "depth": 16, "num_heads": 8, "mlp_ratio": 16},  # the paper's, in the released code
}


def sinusoidal_positions(tokens: int, like: Tensor) -> Tensor:
    """(N, C): sines, then cosines. They count **down**, as in the released code: the last token stands at 0."""
    dim = like.shape[-1]
    frequency = 10000.0 ** -(torch.arange(0, dim, 2, device=like.device, dtype=torch.float64) / dim)
    angle = torch.arange(tokens - 1, -1, -1, device=like.device, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)


class LanguageModel(nn.Module):
    """Causal transformer with sinusoidal positions and a tied adaptive softmax (Vaswani et al., 2017; Baevski & Auli,
    2019), post-norm as in the released code: ReLU, no biases in attention, embeddings scaled by √C.

    ``model(ids)`` gives log-probabilities of each next token, (B, N) → (B, N, V); ``model(ids, targets)`` the negative
    log-likelihood of ``targets`` (B, M), the tokens that follow the last M ≤ N tokens, without holding that tensor.
    There is no memory from one call to the next.

    Args:
        vocabulary: of V tokens, or V alone.
        size: one of :data:`SIZES`, which says what is None of ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio``
            and ``init_std``.
        mlp_ratio: hidden width of the feed-forward part, in units of the tokens'.
        cutoffs: of :class:`neutreno.models.adaptive_softmax.AdaptiveSoftmax`; none: a plain softmax.
        drop_rate: dropout of the embedding, of both parts of a block and of the output. attn_drop_rate: of attention.
        norm_placement: "post", "pre" with a norm after the last block, or "deepnorm": post-norm ``LN(α x + f(x))`` with
            α = (2 L)^¼ for L blocks, whose values, projections and feed-forward weights start at (8 L)^-¼ of the
            others' standard deviation (Wang et al., "DeepNet: Scaling Transformers to 1,000 Layers", 2022, of a
            decoder alone; there the others start as Xavier has them).
        init_std: of all weight matrices at the start (normal); LayerNorm's weights start at N(1, 0.02), as released.
        weights: a run folder or a checkpoint file, under our names or the released code's; loaded strictly.

    Raises:
        InputError: no such size; the weights cannot be read, do not fit, or are for another vocabulary.
    """

    output = "tokens"

    @checked
    def __init__(
        self,
        vocabulary: Annotated[Vocabulary | Count, SUPPLIED],
        embed_dim: Size | None = None,
        depth: Depth | None = None,
        num_heads: Size | None = None,
        mlp_ratio: Ratio | None = None,
        cutoffs: Sequence[Count] | None = None,
        drop_rate: DropRate = 0.1,
        attn_drop_rate: DropRate = 0.0,
        attention: Callable[..., nn.Module] = SoftmaxAttention,
        block: Callable[..., nn.Module] = Block,
        norm_placement: Literal["post", "pre", "deepnorm"] = "post",
        init_std: NonNegative | None = None,
        size: str = "small",
        weights: Weights = None,
    ) -> None:
        super().__init__()
        own = of_size(size, SIZES, locals())
        embed_dim = own["embed_dim"]
        if embed_dim % 2:
            raise InputError(f"model.embed_dim={embed_dim} is odd: positions are pairs of sine and cosine")
        vocab_size = vocabulary if isinstance(vocabulary, int) else len(vocabulary)
        self.softmax = AdaptiveSoftmax(vocab_size, embed_dim, cutoffs)
        self.drop = nn.Dropout(drop_rate)
        self.grad_checkpointing = False
        depth, deepnorm = own["depth"], norm_placement == "deepnorm"
        self.blocks = Trunk.of(
            depth,
            **{name: own[name] for name in ("num_heads", "mlp_ratio", "attention", "block")},
            **{"qkv_bias": False, "proj_bias": False, "norm_eps": 1e-5, "act_layer": nn.ReLU},
            norm_first=norm_placement == "pre",
            residual_scale=(2 * depth) ** 0.25 if deepnorm else 1.0,
            dim=embed_dim,
            proj_drop=drop_rate,
            attn_drop=attn_drop_rate,
            causal=True,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5) if norm_placement == "pre" else nn.Identity()
        self._initialise(own.get("init_std", 0.02))
        if deepnorm:
            self._shrink((8 * depth) ** -0.25)
        if weights is not None:
            self._load(weights, vocabulary)

    def _initialise(self, std: float) -> None:
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, std=0.02)

    @torch.no_grad()
    def _shrink(self, by: float) -> None:
        """DeepNorm's β: of what adds to the residual stream."""
        for block in self.blocks:
            values = block.attn.qkv.weight.chunk(3)[2]
            for weight in (values, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight):
                weight.mul_(by)

    def _load(self, source: str | Path, vocabulary: Vocabulary | int) -> None:
        content = read_checkpoint(checkpoint_file(source))
        if isinstance(vocabulary, Vocabulary):
            vocabulary.check(content.get("vocabulary"), source)
        named, size = own_names(by_name(state_dict_of(content), source)), len(self.softmax.weight)
        if (word := named.get("softmax.weight")) is not None and len(word) != size:
            theirs = f"a vocabulary of {len(word):,} tokens"
            raise InputError(f"the weights of {source} are for {theirs}, the data has {size:,}")
        load_strictly(self, named, source)

    def _embed(self, ids: Tensor) -> Tensor:
        x = self.softmax.embed(ids)
        return self.drop(x + sinusoidal_positions(ids.shape[1], x))

    def hidden_states(self, ids: Tensor) -> list[Tensor]:
        """Tokens (B, N, C) after the embedding (entry 0) and after every block k (entry k)."""
        hidden: list[Tensor] = []
        self.blocks(self._embed(ids), hidden)
        return hidden

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def forward_features(self, ids: Tensor) -> Tensor:
        return self.drop(self.norm(self.blocks(self._embed(ids), checkpointing=self.grad_checkpointing)))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        hidden = self.forward_features(ids)
        if targets is None:
            return self.softmax.log_prob(hidden)
        return self.softmax.nll(hidden[:, -targets.shape[1] :], targets)

    def next_token(self, ids: Tensor) -> Tensor:
        """Log-probabilities of the token after the last one only, (B, N) → (B, V)."""
        return self.softmax.log_prob(self.forward_features(ids)[:, -1])


_OWN_NAMES = {
    "word_emb.emb_layers.0": "softmax",
    "crit.out_layers.0": "softmax",
    "crit.cluster": "softmax.cluster",
    "layers": "blocks",
    "dec_attn.o_net": "attn.proj",
    "dec_attn.layer_norm": "norm1",
    "pos_ff.CoreNet.0": "mlp.fc1",
    "pos_ff.CoreNet.3": "mlp.fc2",
    "pos_ff.layer_norm": "norm2",
}


def own_name(released: str) -> str:
    """Our name of the released code's parameter, but for queries, keys and values, which are one matrix here."""
    for theirs, ours in _OWN_NAMES.items():
        released = released.replace(theirs, ours)
    return released


def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the released code's names → under ours; weights under our names are returned as they are."""
    if "word_emb.emb_layers.0.weight" not in weights:
        return weights
    left_out = {"crit.out_layers.0.weight", "pos_emb.inv_freq"}  # the embedding again, and a constant
    weights = {own_name(name): value for name, value in weights.items() if name not in left_out}
    for name in [name for name in weights if name.endswith(".dec_attn.q_net.weight")]:
        block = name.removesuffix(".dec_attn.q_net.weight")
        if (kv := weights.pop(f"{block}.dec_attn.kv_net.weight", None)) is not None:  # keys before values
            weights[f"{block}.attn.qkv.weight"] = torch.cat([weights.pop(name), kv])
    return weights
