"""Weights know which variants they were trained with, and are not taken for others in silence."""

import hashlib
import json
import shutil

import pytest
import torch
from support import TINY, assert_one_line_error, run_forked

ARGUMENTS = {"lam": 0.6, "anchor": "v0", "pull": True}
NEUTRENO = {"class": "neutreno.attention.NeutrenoAttention", "arguments": ARGUMENTS, "baseline": False}
BUILT = "NeutrenoAttention(lam=0.6, anchor=v0, pull=True)"
SMALL = [*TINY, "trainer.max_epochs=1", "probe.every_n_epochs=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``outputs/`` with a finished run of NeuTRENO, of softmax and of NeuTRENO with λ̃ = 0."""
    cwd = tmp_path_factory.mktemp("trained")
    for name, words in {"neutreno": [], "softmax": ["model=deit"], "off": ["attention.lam=0"]}.items():
        done = run_forked("train.py", *SMALL, *words, f"name={name}", cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd / "outputs"


@pytest.fixture
def runs(trained, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(trained, tmp_path / "outputs")
    return tmp_path / "outputs"


def checkpoint(run, name="last"):
    return run / "checkpoints" / f"{name}.ckpt"


def evaluate(cwd, *words):
    return run_forked("evaluate.py", *words, "evaluators=[metrics]", cwd=cwd)


WEIGHTS = ["model.depth=2", "model.embed_dim=16", "model.num_heads=2", "data=digits", "name=x"]


@pytest.mark.parametrize("name", ["last", "best"])
def test_every_checkpoint_of_a_run_holds_its_axes(trained, name):
    content = torch.load(checkpoint(trained / "neutreno", name), weights_only=True)
    assert content["variants"] == json.loads((trained / "neutreno/result.json").read_text())["axes"]
    assert content["variants"]["attention"] == NEUTRENO


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_run_with_the_checkpoint_of_another_variant_is_not_evaluated(runs, name):
    shutil.copy(checkpoint(runs / "softmax", name), checkpoint(runs / "neutreno", name))
    done = evaluate(runs.parent, "outputs/neutreno")
    words = ["attention neutreno.attention.SoftmaxAttention()", f"{BUILT} is composed"]
    assert_one_line_error(done, f"{name}.ckpt", *words, "other_variants=[attention]")
    assert not (runs / "neutreno/evaluation.json").exists()
    assert_one_line_error(evaluate(runs.parent, "outputs/neutreno", "name=x"), f"{name}.ckpt")
    assert not (runs / "evaluations").exists()
    done = evaluate(runs.parent, "outputs/neutreno", "other_variants=[attention]")
    assert done.returncode == 0, done.stderr
    assert not (runs / "neutreno/evaluation.json").exists()  # no figures of the run
    record = json.loads((runs / "evaluations/neutreno-other/evaluation.json").read_text())
    assert record["settings"]["other_variants"] == ["attention"]


def test_a_run_whose_config_was_edited_is_not_evaluated(runs):
    config = runs / "neutreno/config.yaml"
    config.write_text(config.read_text().replace("lam: 0.6", "lam: 0.2"))
    assert_one_line_error(evaluate(runs.parent, "outputs/neutreno"), "lam=0.6", "lam=0.2", "other_variants=[attention]")


@pytest.mark.parametrize("source", ["outputs/softmax", "outputs/softmax/checkpoints/best.ckpt"])
def test_weights_of_another_variant_are_evaluated_only_where_that_is_said(trained, tmp_path, source):
    source = f"model.weights={trained.parent / source}"
    done = evaluate(tmp_path, source, *WEIGHTS)
    assert_one_line_error(done, "SoftmaxAttention", BUILT, "other_variants=[attention]")
    assert not (tmp_path / "outputs").exists()
    assert evaluate(tmp_path, source, *WEIGHTS, "attention.lam=0").returncode == 0
    done = evaluate(tmp_path, source, *WEIGHTS, "other_variants=[attention]")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    assert record["settings"]["other_variants"] == ["attention"]


def test_weights_of_a_file_that_does_not_say_are_free(trained, tmp_path):
    content = torch.load(checkpoint(trained / "softmax"), weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "foreign.ckpt")
    done = evaluate(tmp_path, "model.weights=foreign.ckpt", *WEIGHTS)
    assert done.returncode == 0, done.stderr


def test_other_variants_are_axes_of_the_model(trained, tmp_path):
    done = evaluate(tmp_path, str(trained / "neutreno"), "other_variants=[attentoin]")
    assert_one_line_error(done, "other_variants", "no axis attentoin", "did you mean attention?")
    done = evaluate(tmp_path, str(trained / "neutreno"), "other_variants=attention")
    assert_one_line_error(done, "write other_variants=[attention]")


def test_a_run_does_not_resume_from_the_checkpoint_of_another_variant(runs):
    shutil.copy(checkpoint(runs / "softmax"), checkpoint(runs / "neutreno"))
    file = runs / "neutreno/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "interrupted"}))
    before = {p: p.read_bytes() for p in (runs / "neutreno").rglob("*") if p.is_file()}
    done = run_forked("train.py", *SMALL, "name=neutreno", "resume=true", cwd=runs.parent)
    assert_one_line_error(done, "last.ckpt", "SoftmaxAttention", BUILT, "model.weights=")
    assert {p: p.read_bytes() for p in (runs / "neutreno").rglob("*") if p.is_file()} == before


def test_a_run_records_the_weights_it_started_from_and_keeps_that_when_it_resumes(runs, tmp_path):
    """Any variant may start from any: that is how NeuTRENO is fine-tuned from softmax."""
    start = ["model.weights=outputs/softmax", "name=tuned"]
    done = run_forked("train.py", *SMALL, *start, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(checkpoint(runs / "softmax").read_bytes()).hexdigest()
    result = json.loads((runs / "tuned/result.json").read_text())
    axes = json.loads((runs / "softmax/result.json").read_text())["axes"]
    assert result["initial_weights"] == {"model.weights": {"source": "outputs/softmax", "sha256": digest, "axes": axes}}
    assert torch.load(checkpoint(runs / "tuned"), weights_only=True)["variants"]["attention"] == NEUTRENO
    assert evaluate(tmp_path, "outputs/tuned").returncode == 0

    shutil.copy(checkpoint(runs / "off"), checkpoint(runs / "softmax"))
    (runs / "tuned/result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    done = run_forked("train.py", *SMALL, *start, "resume=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((runs / "tuned/result.json").read_text())["initial_weights"] == result["initial_weights"]


def test_a_run_from_scratch_records_no_initial_weights(trained):
    assert json.loads((trained / "neutreno/result.json").read_text())["initial_weights"] == {}
