"""A run's folder, checkpoints and data belong together: what comes from elsewhere is refused by what differs."""

import json
import shutil

import pytest
import torch
import yaml
from support import TINY, assert_one_line_error, make_image, run_forked

SHORT = [*TINY, "trainer.max_epochs=1", "probe.every_n_epochs=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``outputs/`` with a run of NeuTRENO, seed 0, and one of softmax, seed 7."""
    cwd = tmp_path_factory.mktemp("trained")
    for words in (["name=neutreno"], ["model=deit", "seed=7", "name=softmax"]):
        done = run_forked("train.py", *SHORT, *words, cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd / "outputs"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of NeuTRENO's run as one that was interrupted."""
    shutil.copytree(trained / "neutreno", tmp_path / "outputs/neutreno")
    file = tmp_path / "outputs/neutreno/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "interrupted"}))
    return file.parent


def resume(run, *words):
    return run_forked("train.py", *SHORT, "name=neutreno", "resume=true", *words, cwd=run.parents[1])


def evaluate(run, *words):
    return run_forked("evaluate.py", str(run), "evaluators=[metrics]", *words, cwd=run.parents[1])


def rewrite(checkpoint, change):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, checkpoint)


def test_a_checkpoint_of_another_run_is_neither_resumed_nor_evaluated(run, trained):
    shutil.copy(trained / "softmax/checkpoints/last.ckpt", run / "checkpoints/last.ckpt")
    for done in (resume(run), evaluate(run)):
        assert_one_line_error(done, "last.ckpt", "SoftmaxAttention", "NeutrenoAttention")


@pytest.mark.parametrize("command", [resume, evaluate])
def test_the_same_variant_of_another_seed_is_another_run(run, command):
    def change(content):
        content["run"]["settings"]["seed"] = 7

    rewrite(run / "checkpoints/last.ckpt", change)
    assert_one_line_error(command(run), "last.ckpt was written by another run: seed=0 (was 7)")


@pytest.mark.parametrize("command", [resume, evaluate])
def test_a_checkpoint_that_does_not_say_its_run_is_refused(run, command):
    rewrite(run / "checkpoints/last.ckpt", lambda content: content.pop("run"))
    assert_one_line_error(command(run), "last.ckpt does not say which run wrote it")


def test_an_edited_config_is_not_evaluated(run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("num_heads: 2", "num_heads: 4"))
    assert_one_line_error(evaluate(run), "last.ckpt was written by another run: model.num_heads=4 (was 2)")


def test_an_edited_part_of_the_model_is_not_evaluated(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["attention"]["lam"] = 0.2
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert_one_line_error(evaluate(run), "config.yaml: attention and model.attention differ")


def test_a_checkpoint_that_is_gone_does_not_start_the_run_over(run):
    assert json.loads((run / "result.json").read_text())["first_checkpoint"]
    (run / "checkpoints/last.ckpt").unlink()
    assert_one_line_error(resume(run), "last.ckpt is gone", "restore it")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(run):
    file = run / "result.json"
    record = json.loads(file.read_text())
    del record["first_checkpoint"]
    file.write_text(json.dumps(record))
    shutil.rmtree(run / "checkpoints")
    done = resume(run)
    assert done.returncode == 0 and json.loads(file.read_text())["status"] == "finished", done.stderr


@pytest.fixture
def on_images(image_folders, tmp_path):
    """Words of a run on class folders, and the folder of the run once it has finished."""
    small = ["data.num_classes=2", "data.num_workers=0", "data.max_corrupt=0", "data.batch_size=4"]
    words = [*SHORT, "data=cifar10", *small, "task.warmup_epochs=0", "name=x"]
    done = run_forked("train.py", *words, f"data.root={image_folders}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return [*words, "resume=true"], tmp_path / "outputs/x"


def test_other_data_is_refused_and_data_that_moved_is_not(on_images, image_folders, tmp_path):
    words, folder = on_images
    moved = tmp_path / "elsewhere"
    image_folders.rename(moved)
    done = run_forked("train.py", *words, f"data.root={moved}", cwd=tmp_path)
    assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr
    make_image(1234, side=13).save(moved / "train/cat/0.png")  # one image more of other pixels, under the same name
    changed = run_forked("train.py", *words, f"data.root={moved}", cwd=tmp_path)
    assert_one_line_error(changed, f"{folder.relative_to(tmp_path)} is a run on other data: the train split differs")
    sweep = run_forked("train.py", "-m", *words, f"data.root={moved}", cwd=tmp_path)
    assert sweep.returncode == 2 and "is a run on other data" in sweep.stderr and "finished" not in sweep.stdout
    (moved / "val/dog/1.png").rename(moved / "val/dog/2.png")
    changed = run_forked("train.py", *words, f"data.root={moved}", cwd=tmp_path)
    assert_one_line_error(changed, "the train and val splits differ")
