import pytest
import timm


def test_loads_a_timm_name_from_timms_own_cache(tmp_path):
    """A hub cache as huggingface_hub lays it out, in a separate process: its place is read at import."""
    import os
    import subprocess
    import sys

    from safetensors.torch import save_file

    source = timm.create_model("deit_tiny_patch16_224")
    folder = tmp_path / "hub" / "models--timm--deit_tiny_patch16_224.fb_in1k"
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    save_file(source.state_dict(), folder / "snapshots" / "0123" / "model.safetensors")
    code = (
        "import torch; from neutreno.models.vit import VisionTransformer;"
        "m = VisionTransformer('tiny', weights='deit_tiny_patch16_224');"
        "print(float(sum(v.double().abs().sum() for v in m.state_dict().values())))"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(sum(v.double().abs().sum().item() for v in source.state_dict().values()))
