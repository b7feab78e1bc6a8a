"""Building the parts of a config."""

import pytest
import torch

from neutreno.config.building import build
from neutreno.errors import InputError


class Tensor:
    """Of some TiB, or of a size that no number of 64 bits says."""

    def __init__(self, *size) -> None:
        self.values = torch.empty(*size)


@pytest.mark.parametrize("size", [[2**50], [2**40, 2**40]])
def test_a_part_that_is_too_large_for_memory_is_said_in_a_line(size):
    with pytest.raises(InputError, match=r"Tensor takes more memory than there is; make it smaller$"):
        build({"_target_": f"{__name__}.Tensor", "_args_": size})


def test_another_error_of_a_constructor_is_its_own():
    with pytest.raises(RuntimeError, match="negative dimension"):
        build({"_target_": f"{__name__}.Tensor", "_args_": [-1]})
