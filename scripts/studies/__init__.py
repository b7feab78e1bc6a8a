"""Parts of ``scripts/findings.py``."""

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
COSINE, LOST = "cosine", "train/loss"  # after the last layer; of training
