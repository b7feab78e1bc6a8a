"""Over-smoothing by layer of any network as it is: timm's, Hugging Face's, PyTorch Geometric's, ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neutreno.oversmoothing.measure import measure

if TYPE_CHECKING:
    import pandas as pd


def profile(
    model: nn.Module,
    batches: Tensor | Mapping[str, Any] | Iterable[Any],
    metrics: str | Sequence[str] = ("cosine", "residual", "effective_rank"),
    layers: str | Sequence[str] | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Layer-wise metrics of a model's tokens as a table: :func:`neutreno.oversmoothing.measure.measure`, which says
    what the arguments and the columns are."""
    import pandas as pd  # half a second, for those who want a table

    rows = measure(model, batches, [metrics] if isinstance(metrics, str) else metrics, layers, batch_size)
    return pd.DataFrame(rows).astype({"mean": float, "sd": float})
