"""evaluate.py as users call it: weights that come from no run, runs and what is typed beside them, checkpoints."""

import json
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F
from support import ROOT, TINY, assert_one_line_error, run_forked, run_script
from timm.data import create_transform

from neutreno.models.vit import VisionTransformer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run."""
    cwd = tmp_path_factory.mktemp("finished")
    done = run_forked("train.py", *TINY, "trainer.max_epochs=1", "name=tiny", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "outputs" / "tiny"


def on_folders(root, *more):
    small = ["data.num_classes=2", "data.batch_size=4", "data.num_workers=0", "probe.num_samples=2"]
    return ["data=imagenet", f"data.root={root}", *small, *more]


def save_test_vit(folder, **kwargs):
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=2, **kwargs).eval()
    torch.save(net.state_dict(), folder / "weights.pth")
    return net


@torch.no_grad()
def plain_loss(net, root, **transform):
    """Cross entropy over ``root/val`` with timm's own evaluation transform."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(str(root / "val"), create_transform(**transform, is_training=False))
    x, y = zip(*images, strict=True)
    return F.cross_entropy(net(torch.stack(x)), torch.tensor(y)).item()


def test_a_timm_name_with_local_weights_is_evaluated_as_timm_would(image_folders, tmp_path):
    """Both crops and the model's own, its own normalisation and size; curve, cost, one JSON, one page, one figure."""
    net = save_test_vit(tmp_path)
    arguments = on_folders(image_folders, "evaluator.cost.batch_size=2", "evaluator.cost.seconds=0")
    done = run_forked(
        "evaluate.py", "model=timm", "model.name=test_vit", "model.weights=weights.pth", *arguments, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "evaluations" / "imagenet-timm_test_vit-weights"
    assert {p.name for p in folder.iterdir()} == {"evaluation.json", "evaluation.md", "evaluation.png"}
    found = json.loads((folder / "evaluation.json").read_text())
    own = timm.data.resolve_model_data_config(net)
    assert own["crop_pct"] == 0.95 and own["mean"] == (0.5, 0.5, 0.5) and own["input_size"] == (3, 160, 160)
    for split, crop_pct in {"val": 0.875, "val_crop0.9": 0.9, "val_crop0.95": 0.95}.items():
        expected = plain_loss(net, image_folders, **{**own, "crop_pct": crop_pct})
        assert found["metrics"][f"{split}/loss"] == pytest.approx(expected, rel=1e-4)
    assert found["settings"]["data"]["mean"] == [0.5] * 3 and found["records"]["crops"] == {"crop_pcts": [0.9, 0.95]}
    cost = found["records"]["cost"]
    assert cost["parameters"] == sum(p.numel() for p in net.parameters())
    assert cost["image_size"] == [3, 160, 160] and cost["precision"] == "32-true"
    for metric in ("cosine", "residual", "effective_rank"):
        rows = [r for r in found["records"]["per_layer"] if (r["subset"], r["metric"]) == ("patch", metric)]
        assert [r["layer"] for r in rows] == list(range(7))
    assert found["versions"]["timm"] and found["hardware"]["cpu"]
    page = (folder / "evaluation.md").read_text()
    assert page in done.stdout and "Weights: weights.pth" in page and "val_crop0.9/top1" in page
    assert "multiply-adds per image, 3 x 160 x 160" in page and "effective rank" in page


def test_what_is_typed_wins_over_what_timm_says(image_folders, tmp_path):
    net = save_test_vit(tmp_path, img_size=32)
    mean = [0.1, 0.2, 0.3]
    typed = ["data.img_size=32", "data.mean=[0.1,0.2,0.3]", "data.crop_pct=1.0", "evaluators=[metrics]", "name=x"]
    arguments = ["model=timm", "model.name=test_vit", "model.weights=weights.pth", *on_folders(image_folders, *typed)]
    done = run_forked("evaluate.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    own = timm.data.resolve_model_data_config(net)
    expected = plain_loss(net, image_folders, **{**own, "mean": mean, "input_size": (3, 32, 32), "crop_pct": 1.0})
    assert found["metrics"].keys() == {"val/top1", "val/loss"} and found["records"] == {}
    assert found["metrics"]["val/loss"] == pytest.approx(expected, rel=1e-4)


def test_a_released_deit_file_is_evaluated(image_folders, tmp_path):
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    net = VisionTransformer(img_size=32, patch_size=16, num_classes=2, **sizes).eval()
    torch.save({"model": net.state_dict(), "epoch": 299}, tmp_path / "deit_release.pth")
    more = ["data.img_size=32", "evaluators=[metrics,crops]", *(f"model.{k}={v}" for k, v in sizes.items())]
    arguments = on_folders(image_folders, *more)
    done = run_forked("evaluate.py", "model=deit", "model.weights=deit_release.pth", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs/evaluations/imagenet-deit_tiny-softmax-deit_release"
    found = json.loads((folder / "evaluation.json").read_text())
    common = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.875}  # and ImageNet's mean and std
    assert found["metrics"]["val/loss"] == pytest.approx(plain_loss(net, image_folders, **common), rel=1e-4)
    assert found["metrics"].keys() == {f"{s}/{m}" for s in ("val", "val_crop0.9") for m in ("top1", "loss")}


def test_beside_a_run_what_is_typed_wins_and_name_keeps_it_apart(finished, tmp_path):
    typed = ["data.eval_batch_size=7", "probe.num_samples=3", "trainer.limit_val_batches=2", "name=apart"]
    typed.append("evaluators=[metrics,per_layer]")
    before = sorted(finished.iterdir())
    done = run_forked("evaluate.py", str(finished), *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(finished.iterdir()) == before
    found = json.loads((tmp_path / "outputs/evaluations/apart/evaluation.json").read_text())
    assert found["settings"]["data"]["eval_batch_size"] == 7 and found["settings"]["limit_val_batches"] == 2
    assert found["settings"]["model"]["depth"] == 2 and {r["samples"] for r in found["records"]["per_layer"]} == {3}
    assert (found["metrics"]["val/top1"] * 14 / 100) % 1 == pytest.approx(0, abs=1e-4)  # two batches of seven


def test_an_evaluation_of_a_part_of_the_data_leaves_the_runs_own_as_it_is(finished, tmp_path):
    before = sorted(finished.iterdir())
    done = run_forked("evaluate.py", str(finished), "trainer.limit_val_batches=1", "evaluators=[metrics]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(finished.iterdir()) == before
    found = json.loads((tmp_path / f"outputs/evaluations/{finished.name}-other/evaluation.json").read_text())
    assert found["settings"]["limit_val_batches"] == 1


def test_the_group_of_a_run_whose_result_cannot_be_read_is_its_name(finished, tmp_path):
    from neutreno.evaluating import filed_as
    from neutreno.runs import RunFolder

    shutil.copytree(finished, tmp_path / "lost")
    group, tags = filed_as(RunFolder(tmp_path / "lost"), {})
    assert group.startswith("digits-deit_mini") and "seed" not in group and tags[:2] == ["digits", "deit-mini"]
    (tmp_path / "lost/result.json").unlink()
    assert filed_as(RunFolder(tmp_path / "lost"), {}) == ("lost", [])


def test_a_run_keeps_its_data_keys_where_another_data_set_is_the_default(finished, image_folders, tmp_path):
    """``data.root`` is no key of the digits, which evaluate.py composes by default."""
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.img_size=32", "trainer.max_epochs=1"]
    done = run_forked("train.py", *on_folders(image_folders, *small, "task.ema_decay=null", "name=x"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    image_folders.rename(tmp_path / "moved")
    run = tmp_path / "outputs" / "x"
    assert_one_line_error(run_forked("evaluate.py", "outputs/x", cwd=tmp_path), str(image_folders))
    done = run_forked("evaluate.py", "outputs/x", "data.root=moved", "evaluators=[metrics,crops]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result, again = (json.loads((run / f).read_text())["metrics"] for f in ("result.json", "evaluation.json"))
    assert result.items() <= again.items() and "val_crop0.9/top1" in again


BAD_INPUT = {
    "nothing": ([], ["nothing trained", "run folder", "model.weights=FILE"]),
    "no weights": (["model=deit", "data=imagenet"], ["nothing trained"]),
    "no name": (["model=timm"], ["model.name has no value"]),
    "unknown name": (["model=timm", "model.name=deit_tiny_patch16_24"], ["near: deit_tiny_patch16_224"]),
    "not pretrained": (["model=timm", "model.name=test_vit", "model.pretrained=false"], ["nothing trained"]),
    "other classes": (
        ["model=timm", "model.name=test_vit", "data=imagenet", "data.num_classes=5"],
        ["trained for 1000 classes, not for 5"],
    ),
    "an untrained head": (["model=deit", "model.weights=x.pth", "model.new_head=true"], ["leaves the head untrained"]),
    "weights are nowhere": (
        ["model=deit", "model.weights=nowhere.pth"],
        ["nowhere.pth is neither a run folder, nor a checkpoint file"],
    ),
    "unknown key": (["imagenet_d=x"], ["no key imagenet_d; did you mean evaluator.robustness.imagenet_c"]),
}


@pytest.mark.parametrize("arguments, words", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gets_one_clear_line_and_leaves_no_folder(arguments, words, tmp_path):
    assert_one_line_error(run_forked("evaluate.py", *arguments, cwd=tmp_path), *words)
    assert not (tmp_path / "outputs").exists()


def test_pretrained_weights_that_are_not_to_be_had(tmp_path):
    def empty_cache():  # its place is read at import
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_CACHE = str(tmp_path / "cache")

    arguments = ["model=timm", "model.name=deit_tiny_patch16_224", "data=imagenet"]
    done = run_forked("evaluate.py", *arguments, cwd=tmp_path, setup=empty_cache)
    assert_one_line_error(done, "no pretrained weights of deit_tiny_patch16_224", "local file")


def metrics_of(folder):
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("spelling", ["{}", "run={}"])
def test_a_checkpoint_in_a_run_folder_is_evaluated_alone_and_apart(finished, tmp_path, spelling, name):
    """With the run's config; the run's own evaluation, which tables read, stays as it is."""
    file = finished / "checkpoints" / f"{name}.ckpt"
    before = sorted(finished.iterdir())
    done = run_forked("evaluate.py", spelling.format(file), "evaluators=[metrics]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(finished.iterdir()) == before
    trained = json.loads((finished / "result.json").read_text())["metrics"]
    prefix = "best/" if name == "best" else ""
    names = ["val/top1", "val/loss", "test/top1", "test/loss"]
    found = metrics_of(tmp_path / f"outputs/evaluations/tiny-{name}")
    assert [found[n] for n in names] == pytest.approx([trained[prefix + n] for n in names])
    assert not any(n.startswith("best/") for n in found) and f"Weights: {file}" in done.stdout


def test_a_checkpoint_is_found_from_within_its_folder(finished, tmp_path):
    words = ["last.ckpt", "evaluators=[metrics]", f"output_dir={tmp_path}"]
    done = run_forked("evaluate.py", *words, cwd=finished / "checkpoints")
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / "evaluations/tiny-last")


def test_a_checkpoint_outside_a_run_folder_is_refused_with_the_words_for_it(finished, tmp_path):
    shutil.copy(finished / "checkpoints/last.ckpt", tmp_path / "alone.ckpt")
    done = run_forked("evaluate.py", "alone.ckpt", cwd=tmp_path)
    assert_one_line_error(done, "alone.ckpt", "outside a run folder", "model=… model.weights=alone.ckpt data=…")
    missing = finished / "checkpoints" / "first.ckpt"
    assert_one_line_error(run_forked("evaluate.py", str(missing), cwd=tmp_path), f"no checkpoint at {missing}")
    assert not (tmp_path / "outputs").exists()


def test_only_the_evaluators_that_were_chosen_run_in_that_order(finished, tmp_path):
    chosen = ["evaluators=[cost,per_layer]", "evaluator.cost.batch_size=3", "evaluator.cost.seconds=0", "name=x"]
    done = run_forked("evaluate.py", str(finished), *chosen, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    assert found["metrics"] == {} and list(found["records"]) == found["settings"]["evaluators"] == ["cost", "per_layer"]
    assert found["records"]["cost"]["batch_size"] == 3


def test_a_task_names_its_evaluators_and_those_that_have_nothing_to_measure_are_left_out(finished, tmp_path):
    done = run_forked("evaluate.py", str(finished), "evaluator.cost.seconds=0", "name=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    assert found["settings"]["evaluators"] == ["metrics", "cost", "per_layer"]  # the digits are not cropped


BESIDE_A_RUN = {
    "model": (["model=deit"], ["model=… is settled by"]),
    "data set": (["data=cifar10"], ["data=… is settled by"]),
    "weights": (["model.weights=x.pth"], ["model.weights=… is settled by"]),
    "key of the data": (["data.crop_pct=0.9"], ["no key data.crop_pct"]),
    "crop": (["evaluator.crops.crop_pcts=[0.9]"], ["no data.crop_pct"]),
    "classes": (
        ["evaluator.robustness.imagenet_a=anywhere"],
        ["imagenet_a needs a model of ImageNet's 1,000 classes; this one has 10"],
    ),
    "cost": (["evaluator.cost.batch_size=0"], ["evaluator.cost.batch_size=0 should be greater than or equal to 1"]),
    "name": (["name=../x"], ["name=../x is not a folder name"]),
}
NOT_EVALUATED = {
    "unknown": (["evaluators=[metrics,per_layr]"], ["evaluators: no evaluator per_layr; did you mean per_layer?"]),
    "nothing like it": (["evaluators=[speed]"], ["no evaluator speed; available: metrics, crops"]),
    "no list": (["evaluators=metrics"], ["write evaluators=[metrics]"]),
    "none": (["evaluators=[]"], ["evaluators=[]", "at least 1 item"]),
    "options of one that does not run": (
        ["evaluators=[metrics]", "evaluator.cost.seconds=1"],
        ["evaluator.cost.seconds: cost is not evaluated here, only metrics", "evaluators=[metrics,cost]"],
    ),
    "one that was not chosen": (
        ["+evaluator.mine._target_=neutreno.evaluation.metrics.Metrics"],
        ["mine is not evaluated here", "evaluators=[metrics,crops,robustness,cost,per_layer,mine]"],
    ),
    "an option that it does not take": (["+evaluator.crops.sizes=[1]"], ["no key evaluator.crops.sizes: Crops has"]),
    "a mistyped option": (["evaluator.cost.batchsize=1"], ["did you mean evaluator.cost.batch_size?"]),
    "the key of earlier": (["sliding=[32]"], ["no key sliding; did you mean evaluator.perplexity.sliding?"]),
    "no class": (["+evaluator.mine.bins=1"], ["evaluator.mine._target_ has no value: it names the class to build"]),
    "no evaluator": (
        ["+evaluator.mine._target_=neutreno.data.digits.Digits", "evaluators=[mine]"],
        ["neutreno.data.digits.Digits is no neutreno.evaluation.base.Evaluator"],
    ),
    "crops of what is not cropped": (["evaluators=[crops]"], ["evaluator.crops: this data set has no data.crop_pct"]),
    "robustness without a folder": (["evaluators=[robustness]"], ["needs a folder", "imagenet_c=FOLDER"]),
    "windows of a classifier": (["evaluators=[windows]"], ["no protocols of windows"]),
    "perplexity of a classifier": (["evaluators=[perplexity]"], ["evaluator.perplexity is for language models"]),
}


REFUSED = {**BESIDE_A_RUN, **NOT_EVALUATED}


@pytest.mark.parametrize("arguments, words", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_evaluated_of_a_run_is_refused_before_anything_is_measured(finished, arguments, words, tmp_path):
    assert_one_line_error(run_forked("evaluate.py", str(finished), *arguments, cwd=tmp_path), *words)
    assert not (finished / "evaluation.json").exists()


@pytest.mark.parametrize("planted", ["{_target_: os.mkdir, path: ran}", "'${oc.env:HOME}'", "[{_target_: os.getcwd}]"])
def test_a_run_folder_cannot_reach_the_trainer_with_other_code(finished, tmp_path, planted):
    shutil.copytree(finished, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("precision: 32-true", f"precision: {planted}"))
    assert planted in config.read_text()
    assert_one_line_error(
        run_forked("evaluate.py", "run", cwd=tmp_path),
        "run/config.yaml: trainer.precision=",
        "should be '32-true'",
        "; refused",
    )
    assert not (tmp_path / "ran").exists()


def test_help_shows_the_spellings_and_the_keys():
    done = run_script("evaluate.py", "--help", cwd=ROOT)
    assert done.returncode == 0
    for words in (
        "evaluate.py outputs/RUN",
        "model=timm model.name=",
        "imagenet_c=FOLDER",
        "evaluator.crops.crop_pcts=null",
        "other_variants",
        "deit_neutreno",
    ):
        assert words in done.stdout
