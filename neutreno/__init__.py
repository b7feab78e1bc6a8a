"""NeuTRENO: train, measure and compare deep networks that resist over-smoothing.

Nothing is imported before it is asked for: ``import neutreno`` does not load torch. ``import neutreno.models``
registers the project's models with timm.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
_LAZY = {
    "from_pretrained": "neutreno.hub",
    "load_run": "neutreno.api",
    "load_runs": "neutreno.reports.frame",
    "train": "neutreno.api",
    "profile": "neutreno.oversmoothing.profile",
    "convert": "neutreno.oversmoothing.convert",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
