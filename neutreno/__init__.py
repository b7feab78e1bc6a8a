"""NeuTRENO: train, measure and compare transformers that resist over-smoothing.

Importing the package registers its models with timm.
"""

from neutreno.models import vit as _vit  # noqa: F401  (registers the models)

__version__ = "0.1.0"
