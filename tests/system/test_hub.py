"""Trained networks on the hub: what is pushed is the network that was trained, and what is loaded is nothing else."""

import json
import os
import shutil

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import TEXT, TINY
from support.graphs import GRAPH

import neutreno
from neutreno import hub
from neutreno.checkpoints import load_weights, trained_with
from neutreno.errors import InputError
from neutreno.models.vit import VisionTransformer
from neutreno.variants import AT_BASELINE, check_trained

SCENES = [f"data.{split}_scenes={count}" for split, count in (("train", 8), ("val", 4), ("test", 4))]
BRIEF = [*TINY, "trainer.max_epochs=1"]
RUNS = {
    "vit": [*TINY, "attention.lam=0.4", "task.ema_decay=0.9", "task.warmup_epochs=0"],
    "text": [*TEXT, "name=text"],
    "graph": [*GRAPH, "propagation=neutreno"],
    "scenes": [*BRIEF, "data=digit_scenes", *SCENES, "data.batch_size=4"],
    "timm": [*BRIEF, "model=timm", "model.name=test_vit", "+model.patch_size=2"][3:],
}

SIZES = {"img_size": 8, "in_chans": 1, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}


@pytest.fixture(scope="module")
def trained(cwd):
    """Trains a run of :data:`RUNS` the first time that it is asked for."""
    found = {}

    def run(name):
        if name not in found:
            found[name] = neutreno.train(*RUNS[name], name=name)
        return found[name]

    return run


@pytest.fixture(scope="module")
def written(trained, cwd):
    trained("vit").save_pretrained(cwd / "vit_pushed", license="mit")
    return cwd / "vit_pushed"


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copied")


def rewrite(folder, sign=True, **changes):
    """Changes of ``config.json``, a dotted key's as ``a__b``, which the weights' file vouches for as its author can."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    if sign:
        with safe_open(folder / "model.safetensors", "pt") as file:
            said = file.metadata() | {"config_sha256": hub._digest(config)}
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", said)


def retype(folder, dtype):
    with safe_open(folder / "model.safetensors", "pt") as file:
        said = file.metadata()
    tensors = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", said)


def refused(folder, said, **how):
    with pytest.raises(InputError, match=said) as error:
        neutreno.from_pretrained(folder, **how)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", RUNS)
def test_a_network_comes_back_bit_for_bit(trained, name, tmp_path):
    run = trained(name)
    run.save_pretrained(tmp_path / "pushed")
    random = torch.get_rng_state()
    net = neutreno.from_pretrained(tmp_path / "pushed")
    assert torch.equal(torch.get_rng_state(), random)
    inputs, _ = run.data.probe_samples(4)
    with torch.no_grad():
        assert torch.equal(net.model(inputs), run.model(inputs)) and not net.model.training
    assert net.label == run.label and net.metrics.items() <= run.metrics.items() and net.metrics
    assert sorted(file.name for file in (tmp_path / "pushed").iterdir()) == sorted(hub.FILES)


def test_it_says_how_its_input_is_made(trained, written, tmp_path):
    assert neutreno.from_pretrained(written).input == {"img_size": 8, "in_chans": 1, "mean": [0.305], "std": [0.376]}
    trained("text").save_pretrained(tmp_path / "text")
    net = neutreno.from_pretrained(tmp_path / "text")
    assert net.input["vocabulary"] == trained("text").data.vocabulary.words
    assert len(net.input["vocabulary"]) == net.config["model_arguments"]["vocabulary"]


@pytest.mark.parametrize("weights", ["best", "ema"])
def test_weights_are_pushed_with_their_own_figures(trained, weights, tmp_path):
    run = neutreno.load_run(trained("vit").path, weights=weights)
    run.save_pretrained(tmp_path / "pushed")
    net = neutreno.from_pretrained(tmp_path / "pushed")
    assert net.metrics == {k.removeprefix(f"{weights}/"): v for k, v in run.metrics.items() if k.startswith(weights)}
    for ours, theirs in zip(net.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_timm_does_not_take_the_weights_for_softmax_attention(written):
    with safe_open(written / "model.safetensors", "pt") as file:
        assert file.metadata()["trained_with"] == "neutreno λ̃=0.4"
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model("vit_tiny_patch16_224", **SIZES, checkpoint_path=str(written / "model.safetensors"))


def test_a_run_may_start_from_them_and_their_method_is_known(trained, written):
    file, net = written / "model.safetensors", VisionTransformer(size="mini", **SIZES)
    load_weights(net, file)
    assert torch.equal(net.head.weight, trained("vit").model.head.weight)
    axes = {"attention": AT_BASELINE, "block": AT_BASELINE}
    with pytest.raises(InputError, match=r"were trained with attention neutreno.*lam=0\.4"):
        check_trained(trained_with(file, axes), axes, file, "")


def test_a_language_model_that_starts_from_them_has_to_have_their_vocabulary(trained, tmp_path):
    trained("text").save_pretrained(tmp_path / "pushed")
    start = f"model.weights={tmp_path / 'pushed/model.safetensors'}"
    with pytest.raises(InputError, match="was trained with another vocabulary than the data's"):
        neutreno.train(*RUNS["text"][:-1], start, "data.min_count=2", "name=other")


def test_what_was_loaded_in_inference_mode_can_be_trained(written):
    with torch.inference_mode():
        net = neutreno.from_pretrained(written)
    net.model(torch.zeros(1, 1, 8, 8)).sum().backward()
    assert all(weight.grad is not None for weight in net.model.parameters())


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: (f / "model.safetensors").unlink(), r"holds no model\.safetensors"),
        (lambda f: (f / "config.json").unlink(), r"holds no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: (f / "config.json").write_text('{"architectures": ["BertModel"]}'), "was not written by neutreno"),
        (lambda f: rewrite(f, format=2), "has the format 2, not 1"),
        (lambda f: rewrite(f, metrics=3), "was not written by neutreno"),
        (lambda f: rewrite(f, False, model__num_heads=4), r"is not what model\.safetensors was written with"),
        (lambda f: rewrite(f, False, model__attention__lam=0.0), r"is not what model\.safetensors was written with"),
        (lambda f: rewrite(f, model__depth=3), r"do not fit the model: missing: blocks\.2"),
        (lambda f: rewrite(f, model__depth="3"), r"model\.depth='3' should be a valid integer"),
        (lambda f: rewrite(f, model__dept=3), r"no key model\.dept"),
        (lambda f: rewrite(f, model___partial_=True), "not a network"),
        (lambda f: rewrite(f, model__attention___partial_=False), r"cannot be built as it says \(TypeError"),
        (lambda f: rewrite(f, model__init_std=0), r"cannot be built as it says \(ZeroDivisionError"),
        (lambda f: retype(f, torch.int8), r"has cls_token as torch\.int8, the network as torch\.float32"),
        (lambda f: retype(f, torch.complex64), r"has cls_token as torch\.complex64"),
        (lambda f: os.truncate(f / "model.safetensors", 20_000), "is not a readable checkpoint"),
        (lambda f: save_file({"a": torch.ones(1)}, f / "model.safetensors"), "was written with"),
    ],
)
def test_what_is_damaged_or_edited_is_refused_in_a_line(copied, damage, said):
    damage(copied)
    refused(copied, said)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model___target_": "subprocess.run"}, r"'subprocess\.run', which is not a part of neutreno; refused"),
        ({"model__attention___target_": "os.system"}, r"'os\.system', which is not a part of neutreno"),
        ({"model": {"_target_": "neutreno.results.write_json"}}, "which is not a network part"),
        ({"model__size": "${oc.env:HOME}"}, "the interpolation"),
        ({"model__size": "https://elsewhere"}, "which is no path on this machine"),
        ({"model_arguments": {"weights": 1}}, r"model_arguments\.weights is nothing that data gives"),
        ({"model_arguments": {"depth": 3}, "model__depth": 2}, r"model_arguments\.depth is nothing that data gives"),
        ({"model_arguments": {"num_classes": -3}, "model__num_classes": None}, r"num_classes=-3 should be greater"),
    ],
)
def test_files_of_anybodys_build_nothing_but_what_is_trusted(copied, changes, said):
    rewrite(copied, **changes)
    refused(copied, said)


def test_weights_that_a_config_names_are_not_read(copied, tmp_path):
    rewrite(copied, model__weights=str(tmp_path / "absent.ckpt"))
    assert neutreno.from_pretrained(copied).model is not None


def test_a_card_says_what_the_record_says(written, trained):
    run, card = trained("vit"), ModelCard.load(written / "README.md")
    head = card.data
    assert (head.license, head.library_name, head.pipeline_tag) == ("mit", "neutreno", "image-classification")
    told = {result.metric_name: (result.dataset_split, result.metric_value) for result in head.eval_results}
    expected = {name: value for name, value in run.metrics.items() if name.startswith(("val/", "test/"))}
    assert told == {name: (name.partition("/")[0], value) for name, value in expected.items()}
    last = [row["mean"] for row in run.measured if row["metric"] == "cosine" and row["subset"] == "all"][-1]
    for said in ("**neutreno λ̃=0.4**", f"{last:.3f} after the last of 2 layers", run.result["git_commit"] or ""):
        assert said in card.text
    assert "neutreno train model.depth=2" in card.text and "attention.lam=0.4" in card.text
    assert f"neutreno.from_pretrained({str(written)!r})" in card.text


def test_no_place_on_this_machine_is_written(image_folders, trained, cwd, tmp_path):
    small = ["data.img_size=8", "data.batch_size=4", "data.num_workers=0", "data.repeats=1", "data.in_chans=1"]
    small += ["data.mean=[0.5]", "data.std=[0.5]", "recipe.patch_size=2"]
    weights = trained("vit").path / "checkpoints/last.ckpt"
    start = [f"model.weights={weights}", "model.new_head=true", f"data.root={image_folders}"]
    run = neutreno.train(*BRIEF, "data=images", *small, *start, "attention.lam=0.4", name="own")
    run.save_pretrained(tmp_path / "pushed", license="mit")
    for name in hub.FILES:
        content = (tmp_path / "pushed" / name).read_bytes().replace(str(tmp_path / "pushed").encode(), b"")
        assert not [place for place in (cwd, tmp_path, neutreno.__path__[0]) if str(place).encode() in content], name
    net = neutreno.from_pretrained(tmp_path / "pushed")
    assert net.classes == ["cat", "dog"] and net.input["mean"] == [0.5]
    assert "last.ckpt" in (tmp_path / "pushed/README.md").read_text()
    image_folders.rename(tmp_path / "moved")
    assert neutreno.from_pretrained(tmp_path / "pushed").model.head.out_features == 2


def test_a_place_within_a_list_is_not_written_either(trained, tmp_path):
    moved = shutil.copytree(trained("vit").path, tmp_path / "moved")
    record = json.loads((moved / "result.json").read_text())
    record["overrides"] += ["+data.folders=[/home/me,b]", "+data.by={a: ~/mine}", "+data.at=file:///home/me"]
    (moved / "result.json").write_text(json.dumps(record))
    neutreno.load_run(moved).save_pretrained(tmp_path / "pushed")
    card = (tmp_path / "pushed/README.md").read_text()
    assert "attention.lam=0.4" in card and "/home/me" not in card and "mine" not in card


def test_a_file_that_is_there_is_never_replaced(trained, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"holds README\.md already"):
        trained("vit").save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(InputError, match=r"cannot make .*; name another folder"):
        trained("vit").save_pretrained(tmp_path / "README.md")


class Hub:
    """Takes what it is given, as the hub's client does."""

    def __init__(self, into, error=None):
        self.into, self.error, self.asked = into, error, []

    def __call__(self, **how):
        self.asked.append(how)
        return self

    def create_repo(self, repo_id, **how):
        self.asked.append(how)
        if self.error:
            raise self.error
        return type("Repository", (), {"repo_id": f"me/{repo_id}"})

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        self.asked.append({"repo_id": repo_id, "commit_message": commit_message})
        shutil.copytree(folder_path, self.into)
        return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})


def test_a_push_makes_a_repository_of_the_files_that_load(trained, monkeypatch, tmp_path):
    there = Hub(tmp_path / "there")
    monkeypatch.setattr(hub, "HfApi", there)
    where = trained("vit").push_to_hub("deit", license="apache-2.0", private=True, token="hf_x")
    assert where == "https://hub/me/deit/commit/1"
    assert there.asked[0]["token"] == "hf_x" and there.asked[1] == {"private": True, "exist_ok": True}
    assert there.asked[2] == {"repo_id": "me/deit", "commit_message": trained("vit").label}
    assert {file.name for file in there.into.iterdir()} == {*hub.FILES}
    fetched = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **how: fetched.update(how, name=name) or there.into)
    net = neutreno.from_pretrained("me/deit", revision="v1")
    assert (fetched["name"], fetched["revision"], fetched["allow_patterns"]) == ("me/deit", "v1", [*hub.FILES])
    assert torch.equal(net.model.head.weight, trained("vit").model.head.weight)
    assert "neutreno.from_pretrained('me/deit')" in (there.into / "README.md").read_text()


def test_a_push_that_the_hub_refuses_is_one_line(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HfApi", Hub(tmp_path / "there", OSError("401 Unauthorized.\nRequest ID: 1")))
    with pytest.raises(InputError, match=r"^me/deit was not pushed: 401 Unauthorized; `hf auth login`") as said:
        trained("vit").push_to_hub("me/deit")
    assert "\n" not in str(said.value)


def not_found(kind):
    def download(*_, **__):
        raise kind.__new__(kind)

    return download


@pytest.mark.parametrize("source", ["me/absent", "no/such/repository", "/no/such/folder"])
def test_what_is_nowhere_is_refused_in_a_line(source):
    refused(source, f"^{source} is no folder here, and could not be had from the hub: ")


@pytest.mark.parametrize(
    "kind, said", [(RepositoryNotFoundError, "or a private one"), (RevisionNotFoundError, "me/deit has no revision v9")]
)
def test_a_repository_or_revision_that_is_not_there_is_said(monkeypatch, kind, said):
    monkeypatch.setattr(hub, "snapshot_download", not_found(kind))
    refused("me/deit", said, revision="v9")


def test_an_argument_that_does_not_fit_is_refused(written, trained):
    refused(written, "leave it out", revision="main")
    refused(written, "^device=", device="gpu")
    refused(trained("vit").path, r"neutreno\.load_run opens run folders")
