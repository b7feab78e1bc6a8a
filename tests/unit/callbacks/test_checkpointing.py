"""A checkpoint is written whole or not at all."""

import resource

import pytest
import torch

from neutreno.callbacks.checkpointing import AtomicCheckpointIO
from neutreno.checkpoints import read_checkpoint
from neutreno.errors import InputError


def test_no_space_left_keeps_the_previous_checkpoint_and_says_so(tmp_path):
    """A limit on the size of files makes the operating system fail the write in the middle, as a full disk does."""
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": torch.tensor(1)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(InputError, match=r"could not write .*last\.ckpt.*before is intact"):
            writer.save_checkpoint({"step": torch.tensor(2), "large": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_write_that_is_killed_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": torch.tensor(1)}, path)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.save_checkpoint({"step": torch.tensor(2)}, path)
    assert read_checkpoint(path)["step"] == 1
