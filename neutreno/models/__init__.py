"""Networks on the project's trunk; importing this package registers its models with timm."""

from neutreno.models import vit as _vit  # noqa: F401
