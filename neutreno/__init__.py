"""NeuTRENO: train, measure and compare transformers that resist over-smoothing.

Importing the package registers its models with timm. :func:`neutreno.profiling.profile` and
:func:`neutreno.conversion.convert` are found here too, and loaded when they are first asked for.
"""

import importlib
from typing import Any

from neutreno.models import vit as _vit  # noqa: F401  (registers the models)

__version__ = "0.1.0"
_LAZY = {"profile": "neutreno.profiling", "convert": "neutreno.conversion"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
