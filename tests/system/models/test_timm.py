import json

import timm
from support import assert_one_line_error, run_forked

from neutreno.checkpoints import load_weights
from neutreno.reports.layers import curve


def test_a_timm_model_trains_by_name_and_its_run_has_timms_names(image_folders, tmp_path):
    small = ["data=imagenet", f"data.root={image_folders}", "data.num_classes=2", "data.img_size=32"]
    small += ["data.batch_size=4", "data.num_workers=0", "trainer.max_epochs=1", "probe.num_samples=2", "name=x"]
    done = run_forked("train.py", "model=timm", "model.name=test_vit", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "x"
    result = json.loads((run / "result.json").read_text())
    assert result["settings"]["model.name"] == "test_vit" and result["axes"] == {}
    assert len(curve(result["oversmoothing"])) == 7
    net = timm.create_model("test_vit", num_classes=2, img_size=32)
    load_weights(net, run)
    done = run_forked("evaluate.py", str(run), "evaluators=[metrics]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((run / "evaluation.json").read_text())["metrics"]
    assert result["metrics"].items() <= again.items()


def test_another_attention_for_a_timm_model_is_refused(tmp_path):
    done = run_forked("train.py", "model=timm", "model.name=test_vit", "attention=neutreno", cwd=tmp_path)
    assert_one_line_error(done, "model=timm has no axis attention")
