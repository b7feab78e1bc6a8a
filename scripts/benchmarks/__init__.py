"""Parts of ``scripts/benchmark.py``."""

import torch

DEVICE = torch.device("cpu")  # set by the script
