"""The language model's task as users call it: schedule, perplexity, resume, processes, generation, refusals."""

import ctypes
import json
import math
import platform
import re
import resource
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from support import TEXT, TINY, assert_one_line_error, result, run_forked, run_ranks, train
from support.same_run import assert_same_run, dies_after, load, metrics, train_killed
from support.texts import TEXTS, write

import neutreno.evaluation.cost  # noqa: F401  (where nvcc is but no GPU, its first import says so on stderr)
from neutreno import parallel
from neutreno.attention import NeutrenoAttention
from neutreno.data.language_modeling import PythonDocs
from neutreno.data.text import Vocabulary
from neutreno.errors import InputError
from neutreno.models.language_model import LanguageModel
from neutreno.reports.comparison import group_runs
from neutreno.reports.layers import curve
from neutreno.reports.reading import read_runs
from neutreno.tablefiles import read_table
from neutreno.tasks.language_modeling import LanguageModeling


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(TEXT, tmp_path_factory.mktemp("finished"))


def test_the_schedule_is_linear_then_cosine_per_step(finished):
    """As in the released code: the cosine counts from the first step, also under the warm-up."""
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    lr, warmup, steps = settings["task"]["lr"], 2, 12
    rates = {int(r["step"]): float(r["train/lr"]) for r in metrics(finished) if r["train/lr"]}
    expected = [lr * (s / warmup if s < warmup else (1 + math.cos(math.pi * s / steps)) / 2) for s in range(steps)]
    assert [rates[s] for s in range(steps)] == pytest.approx(expected, rel=1e-6)
    assert settings["trainer"]["gradient_clip_val"] == 0.25 and settings["task"]["opt"] == "adam"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_taken_once_and_not_in_every_step(tmp_path):
    def note_faults():
        for option in (parallel.M_TRIM_THRESHOLD, parallel.M_MMAP_THRESHOLD):
            ctypes.CDLL("libc.so.6").mallopt(option, 2**17)  # glibc's own, which the tests before this one have moved

        def note(task, *_):
            with open(tmp_path / "faults", "a") as file:
                print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt, file=file)

        LanguageModeling.on_train_batch_start = note

    train(TEXT, tmp_path, "trainer.max_steps=36", "data.val_every_n_steps=36", setup=note_faults)
    faults = [int(line) for line in (tmp_path / "faults").read_text().splitlines()]
    assert len(faults) == 36
    assert (faults[-1] - faults[11]) / 24 < 200  # pages for each step; some 1,500 where they are given back


def test_a_run_validates_every_n_steps_and_leaves_its_record(finished):
    table = metrics(finished)
    assert [int(r["step"]) for r in table if r["val/ppl"]] == [4, 8, 12]
    found = result(finished)
    assert found["steps"] == 12 and found["settings"]["attention.lam"] == 0.4
    parts = {f"{p}{s}/{m}" for p in ("", "best/") for s in ("val", "test") for m in ("ppl", "loss")}
    assert set(found["metrics"]) == parts | {"unigram/val_ppl", "unigram/test_ppl"}
    assert found["metrics"]["val/ppl"] == pytest.approx(math.exp(found["metrics"]["val/loss"]))
    assert [len(curve(found["oversmoothing"], when)) for when in ("initial", "last")] == [3, 3]
    assert found["text"]["python"] and len(found["text"]["sha256"]["train"]) == 64
    assert (finished / "oversmoothing.png").stat().st_size > 10_000


def test_the_best_checkpoint_is_that_of_the_lowest_perplexity(finished):
    perplexities = {int(r["step"]): float(r["val/ppl"]) for r in metrics(finished) if r["val/ppl"]}
    assert load(finished, "best")["global_step"] == min(perplexities, key=perplexities.get)
    assert result(finished)["metrics"]["best/val/ppl"] == pytest.approx(min(perplexities.values()), rel=1e-6)


def test_evaluate_gives_both_protocols_with_token_counts(finished):
    done = run_forked(
        "evaluate.py", str(finished), "evaluator.perplexity.sliding=[4,{stride:1,tokens:100}]", cwd=finished.parents[1]
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((finished / "evaluation.json").read_text())
    tokens = result(finished)["text"]["tokens"]
    counts = {(r["split"], r["stride"]): r["tokens"] for r in found["records"]["perplexity"]}
    assert counts == {(s, n): 100 if n == 1 else tokens[s] - 1 for s in ("val", "test") for n in (16, 4, 1)}
    again = {k: v for k, v in found["metrics"].items() if "stride" not in k}
    assert again == result(finished)["metrics"]
    assert {k for k in found["metrics"] if "test" in k and "stride" in k} == {
        "test/ppl_stride4",
        "test/ppl_stride1_first100",
    }
    sequences = next(r for r in found["records"]["perplexity"] if r["split"] == "test" and r["stride"] == 16)
    assert sequences["ppl"] == pytest.approx(found["metrics"]["test/ppl"], rel=1e-5)
    assert f"{tokens['test'] - 1:,}" in (finished / "evaluation.md").read_text()
    assert curve(found["records"]["per_layer"]) == curve(result(finished)["oversmoothing"])


def test_the_evaluation_that_table_3_names_finds_the_metrics_that_it_shows(finished, tmp_path):
    table = read_table("table3")
    shutil.copytree(finished, tmp_path / "x")
    done = run_forked("evaluate.py", str(tmp_path / "x"), *table.evaluate, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x/evaluation.json").read_text())["metrics"]
    assert found.keys() == {table.metric, *table.metrics} and found["test/ppl_stride1"] != found["test/ppl"]


def test_evaluate_refuses_a_stride_beyond_the_window(finished):
    done = run_forked("evaluate.py", str(finished), "evaluator.perplexity.sliding=[64]", cwd=finished.parents[1])
    assert_one_line_error(done, "sliding: stride=64", "from 1 to 16")


def test_a_table_shows_perplexity(finished):
    done = run_forked("scripts/tables.py", str(finished), cwd=finished.parents[1])
    assert done.returncode == 0 and "test/ppl" in done.stdout and "python_docs lm-mini neutreno λ̃=0.4" in done.stdout


def test_preflight_says_what_it_costs(tmp_path):
    done = run_forked("train.py", *TEXT, "preflight=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout and "3 epochs of 4 steps" in done.stdout and not (tmp_path / "outputs").exists()


def generate(run, *arguments):
    return run_forked("scripts/generate.py", str(run), *arguments, cwd=run)


def test_generated_text_goes_on_with_the_prompt_and_follows_the_seed(finished):
    texts = []
    for seed in (0, 0, 1):
        done = generate(finished, "--prompt", "The class statement", "--tokens", "30", "--seed", str(seed))
        assert done.returncode == 0 and not done.stderr, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1] != texts[2] and all(text.startswith("The class statement ") for text in texts)
    assert not generate(finished, "--tokens", "3").stdout.startswith("<eos>")


def test_generated_words_are_the_likeliest_at_temperature_zero(finished):
    content = load(finished)
    vocabulary = Vocabulary(content["vocabulary"].split("\n"))
    attention = partial(NeutrenoAttention, lam=0.4)
    model = LanguageModel(len(vocabulary), 16, 2, 2, 4, attention=attention).eval()
    model.load_state_dict({k[6:]: v for k, v in content["state_dict"].items() if k.startswith("model.")})
    ids = [vocabulary.index[word] for word in ("in", "the")]
    for _ in range(20):
        ids.append(model(torch.tensor([ids[-16:]]))[0, -1].argmax().item())
    for choice in (["--temperature", "0"], ["--top-k", "1"]):
        done = generate(finished, "--prompt", "in the", "--tokens", "20", *choice)
        assert done.stdout == vocabulary.decode(ids) + "\n"


def test_generate_names_unknown_words_and_refuses_what_it_cannot_use(finished, tmp_path):
    done = generate(finished, "--prompt", "class frobnicator(object)", "--tokens", "1")
    assert done.returncode == 0 and done.stderr == "the model does not know frobnicator\n"
    assert done.stdout.startswith("class <unk> ( object )")
    assert_one_line_error(generate(finished, "--temperature", "-1"), "--temperature=-1.0 is not a finite number")
    assert_one_line_error(generate(finished, "--top-k", "0"), "--top-k=0 is not a whole number")
    assert_one_line_error(run_forked("scripts/generate.py", str(tmp_path), cwd=tmp_path), "is not a run folder")


BUSY = ["model.drop_rate=0.2", "task.ema_decay=0.9", "checkpoint.every_n_steps=3", "trainer.max_steps=16"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train([*TEXT, *BUSY], tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("how", [{"write": 1}, {"write": 4}, {"write": 6}], ids=str)
def test_killed_and_resumed_ends_as_uninterrupted(uninterrupted, tmp_path, how):
    """After a checkpoint within an epoch, at its end, and within a later one."""
    train_killed([*TEXT, *BUSY], tmp_path, setup=dies_after(**how))
    assert_same_run(train([*TEXT, *BUSY], tmp_path, "resume=true"), uninterrupted, "vocabulary")


def test_two_processes_and_accumulation_end_as_one(tmp_path):
    same = ["model.drop_rate=0", "trainer.precision=64-true"]  # each process draws its own masks
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    one = train(TEXT, tmp_path / "one", *same)
    pair = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.micro_batch_size=2"]
    for done in run_ranks(2, *TEXT, *pair, *same, cwd=tmp_path / "two"):
        assert done.returncode == 0 and not done.stderr, done.stderr
    two = tmp_path / "two/outputs/x"
    assert result(two)["devices"]["accumulate_grad_batches"] == 3 and result(two)["devices"]["processes"] == 2
    ours, theirs = load(two)["state_dict"], load(one)["state_dict"]
    for name in (name for name in theirs if name.startswith("model.")):
        assert (ours[name] - theirs[name]).norm() < 1e-11 * theirs[name].norm(), name
    assert result(two)["metrics"] == pytest.approx(result(one)["metrics"], rel=1e-11)


SHUFFLED = [*BUSY, "attention.anchor=shuffled"]


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    return train([*TEXT, *SHUFFLED], tmp_path_factory.mktemp("shuffled"))


def test_shuffled_values_are_those_of_an_uninterrupted_run_after_a_kill(shuffled, tmp_path):
    train_killed([*TEXT, *SHUFFLED], tmp_path, setup=dies_after(write=4))
    assert_same_run(train([*TEXT, *SHUFFLED], tmp_path, "resume=true"), shuffled)


def test_what_reads_single_sequences_leaves_out_or_refuses_a_model_that_needs_others(shuffled, uninterrupted):
    ppl = [result(run)["metrics"]["test/ppl"] for run in (shuffled, uninterrupted)]
    assert ppl[0] != ppl[1]
    done = run_forked("evaluate.py", str(shuffled), cwd=shuffled)
    assert done.returncode == 0, done.stderr
    assert "left out: evaluator.perplexity reads windows one at a time" in done.stderr
    assert list(json.loads((shuffled / "evaluation.json").read_text())["of_evaluator"]) == ["metrics", "per_layer"]
    done = run_forked("evaluate.py", str(shuffled), "evaluators=[perplexity]", cwd=shuffled)
    assert_one_line_error(done, "evaluator.perplexity", "another sequence of the batch", "leave it out")
    assert_one_line_error(generate(shuffled), "cannot continue a text", "another sequence of the batch")
    done = run_forked("evaluate.py", str(shuffled), "data.eval_batch_size=1", cwd=shuffled)
    assert_one_line_error(done, "data.eval_batch_size=1", "another sequence of the batch")


def small_text(tmp_path, **texts):
    long = {"train": " ".join(f"w{i % 9} a\n" for i in range(200)), "valid": "a b w1 c\n" * 20, "test": "a w2\n" * 40}
    write(tmp_path / "text", {**TEXTS, **long, **texts})
    return ["data=wikitext2", f"data.root={tmp_path / 'text'}", *TEXT[1:], "model.cutoffs=[5]"]


def test_own_text_trains_and_another_vocabulary_is_refused(tmp_path):
    arguments = small_text(tmp_path)
    assert run_forked("train.py", *arguments, cwd=tmp_path).returncode == 0
    folder, other = tmp_path / "text", tmp_path / "other"
    write(other, {f.stem: f.read_text().replace("w3", "v3") for f in folder.glob("*.txt")})
    done = run_forked("evaluate.py", str(tmp_path / "outputs/x"), f"data.root={other}", cwd=tmp_path)
    assert_one_line_error(done, "another vocabulary", "'w3' there and 'v3' here")
    arguments[1] = f"data.root={other}"
    weights = f"model.weights={tmp_path / 'outputs/x'}"
    assert_one_line_error(run_forked("train.py", *arguments, weights, "name=y", cwd=tmp_path), "another vocabulary")
    file = tmp_path / "outputs/x/result.json"
    file.write_text(json.dumps(result(file.parent) | {"status": "running"}))
    done = run_forked("train.py", *arguments, "resume=true", cwd=tmp_path)
    assert_one_line_error(done, "is a run on other data: the train split differs")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["model.cutoffs=[5,5000]"], ["model.cutoffs=[5, 5000]", "vocabulary of"]),
        (["data.sequence_length=9999"], ["data.sequence_length=9999 is longer than the train text", "lower one"]),
        (
            ["data.batch_size=9000"],
            ["data.sequence_length=16 is longer than the train text", "data.batch_size=9000 streams"],
        ),
        (["trainer.max_steps=10"], ["trainer.max_steps=10", "multiple of data.val_every_n_steps=4"]),
        (["trainer.max_epochs=2"], ["trainer.max_epochs=2", "set trainer.max_steps"]),
        (["data.batch_size=0"], ["data.batch_size=0 should be greater than or equal to 1"]),
        (["task.warmup_steps=-1"], ["task.warmup_steps=-1 should be greater than or equal to 0"]),
        (["task.lr_per=epoch"], ["task.warmup_steps=2 needs task.lr_per=step"]),
        (["block=featscale"], ["block=featscale takes the mean of all tokens", "see the future"]),
        (["attention.anchor=none", "attention.pull=false"], ["by another name", "attention=softmax"]),
        (["attention.anchor=v1"], ["attention.anchor=v1", "'shuffled'"]),
        (["attention.anchor=shuffled", "data.batch_size=1"], ["data.batch_size=1", "another sequence of the batch"]),
        (
            ["attention.anchor=shuffled", "probe.num_samples=1"],
            ["probe.num_samples=1", "another sequence of the batch"],
        ),
        (["attention.anchor=shuffled", "data.micro_batch_size=1"], ["micro-batches is one", "data.micro_batch_size"]),
        (["model.size=huge"], ["model.size=huge is not known; available: mini, small"]),
        (["model=deit"], ["not made for this data set", "model=… out"]),
        (["data=digits", "model=lm"], ["not made for this data set"]),
        (["data=wikitext2"], ["data.root is not set"]),
    ],
    ids=lambda x: " ".join(x),
)
def test_what_cannot_be_trained_is_refused_in_a_line(tmp_path, arguments, words):
    base = TEXT[1:] if any(a.startswith("data=") for a in arguments) else TEXT
    if "data=digits" in arguments or "model=deit" in arguments:
        base = [a for a in TEXT[1:] if not re.match(r"data\.|trainer\.max_steps|task\.warmup", a)]
        base += [] if "data=digits" in arguments else TEXT[:1]
    assert_one_line_error(run_forked("train.py", *base, *arguments, cwd=tmp_path), *words)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "split, content, words",
    [
        ("test", None, ["has no test split"]),
        ("valid", b"", ["valid.txt is empty"]),
        ("train", b"a b\n\xe9 c", ["train.txt is not UTF-8 at byte 4"]),
    ],
)
def test_text_that_cannot_be_read_is_refused_in_a_line(tmp_path, split, content, words):
    arguments, file = small_text(tmp_path), tmp_path / "text" / f"{split}.txt"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert_one_line_error(run_forked("train.py", *arguments, cwd=tmp_path), *words)


def test_perplexity_is_summed_in_float64_even_where_lightning_makes_the_task_bfloat16(tmp_path):
    run = train(TEXT, tmp_path, "trainer.precision=bf16-true", "trainer.max_steps=4")
    loss = result(run)["metrics"]["val/loss"]
    assert loss != torch.tensor(loss).bfloat16().item()


def test_runs_on_different_texts_are_no_seeds_of_each_other(tmp_path):
    small = ["data=wikitext2", "model.cutoffs=[]", "trainer.max_steps=4"]
    for seed, text in enumerate((TEXTS, {**TEXTS, "train": TEXTS["train"] * 2})):
        root = write(tmp_path / f"text{seed}", text)
        arguments = [*small, f"data.root={root}", "data.batch_size=2", "data.sequence_length=4", f"seed={seed}"]
        train(TEXT, tmp_path, *arguments, name=f"run{seed}")
    groups, _ = group_runs(read_runs([tmp_path / "outputs/run0", tmp_path / "outputs/run1"])[0])
    assert [len(group.runs) for group in groups] == [1, 1]


def test_more_processes_than_segments_are_refused_before_training():
    data = PythonDocs(sequence_length=8, val_every_n_steps=1, batch_size=4)
    data.splits = dict.fromkeys(("train", "val"), np.arange(100, dtype=np.int32)) | {"test": np.arange(9)}
    data.trainer = SimpleNamespace(world_size=2, global_rank=0, accumulate_grad_batches=1)
    with pytest.raises(InputError, match="the test text of 9 tokens has fewer sequences of 8"):
        data.train_dataloader()


def test_steps_do_not_bound_a_run_of_epochs(tmp_path):
    done = run_forked("train.py", "trainer.max_steps=3", cwd=tmp_path)
    assert_one_line_error(done, "trainer.max_steps=3", "set trainer.max_epochs")


def test_windows_over_text_are_for_language_models(tmp_path):
    train(TINY, tmp_path, name="digits")
    sliding = "evaluator.perplexity.sliding=[32]"
    done = run_forked("evaluate.py", "outputs/digits", sliding, cwd=tmp_path)
    assert_one_line_error(done, "evaluator.perplexity.sliding: perplexity is not evaluated here", "leave it out")
    done = run_forked("evaluate.py", "outputs/digits", sliding, "evaluators=[perplexity]", cwd=tmp_path)
    assert_one_line_error(done, "evaluator.perplexity is for language models")


def test_cutoffs_are_a_list(tmp_path):
    assert_one_line_error(
        run_forked("train.py", *TEXT, "model.cutoffs=5", cwd=tmp_path),
        "model.cutoffs=5 is not a list; write model.cutoffs=[5]",
    )


def test_an_odd_width_is_refused(tmp_path):
    done = run_forked("train.py", *TEXT, "model.embed_dim=15", "model.num_heads=3", cwd=tmp_path)
    assert_one_line_error(done, "model.embed_dim=15 is odd")
    assert not (tmp_path / "outputs").exists()
