"""One run on one process, on several, and in several micro-batches: the same weights, the same figures, one folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from support import (
    ROOT,
    TINY,
    assert_one_line_error,
    make_image,
    result,
    run_forked,
    run_ranks,
    run_script,
    start_ranks,
    train,
)
from support.rounding import assert_same_run
from support.same_run import dies_after, load, metrics, train_killed
from support.torture import end_together
from timm.optim import create_optimizer_v2

from neutreno.models.vit import VisionTransformer
from neutreno.reports.layers import curve
from neutreno.tasks.classification import Classification

# Nothing drawn at random but the order: processes draw their own masks.
FIXED = [
    *TINY,
    "trainer.accelerator=cpu",
    "task.warmup_epochs=0",
    "task.ema_decay=0.9",
    "recipe.drop_path=0",
    "data.rotate=0",
    "data.translate=0",
    "name=x",
]
CPU_PAIR = ["trainer.accelerator=cpu", "trainer.devices=2"]


def train_on_two(cwd, *arguments):
    for done in run_ranks(2, *FIXED, *CPU_PAIR, *arguments, cwd=cwd):
        assert done.returncode == 0 and not done.stderr, done.stderr
    return cwd / "outputs/x"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The folder of the same run on one process, by precision."""
    runs = {}

    def get(precision):
        if precision not in runs:
            runs[precision] = train(FIXED, tmp_path_factory.mktemp(precision), f"trainer.precision={precision}")
        return runs[precision]

    return get


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder of that run on two processes that share the weights (FSDP)."""
    arguments = ["trainer=fsdp", "trainer.precision=32-true", "data.micro_batch_size=60"]
    return train_on_two(tmp_path_factory.mktemp("sharded"), *arguments)


def assert_split_across_ranks(run, processes, micro_batches):
    shared = result(run)["devices"]
    assert (shared["processes"], shared["accumulate_grad_batches"]) == (processes, micro_batches)
    assert shared["micro_batch_size"] * processes * micro_batches == 300


def test_two_processes_end_as_one(one_process, tmp_path):
    """With accumulation, in float64; test_processes.py has float32 without it."""
    run = train_on_two(tmp_path, "trainer=ddp", "trainer.precision=64-true", "data.micro_batch_size=60")
    assert_same_run(run, one_process("64-true"), "64-true")
    assert_split_across_ranks(run, 2, 3)


def test_two_sharded_processes_end_as_one(one_process, sharded):
    assert_same_run(sharded, one_process("32-true"))
    assert_split_across_ranks(sharded, 2, 3)
    assert result(sharded)["devices"]["strategy"] == "ShardedStrategy"
    curves = [curve(result(f)["oversmoothing"]) for f in (sharded, one_process("32-true"))]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_evaluate_reads_what_a_sharded_run_wrote(sharded):
    assert run_forked("evaluate.py", str(sharded), "trainer.accelerator=cpu", cwd=sharded).returncode == 0
    again = json.loads((sharded / "evaluation.json").read_text())["metrics"]
    assert result(sharded)["metrics"] == pytest.approx(again, rel=1e-5)


def test_sharding_decays_the_same_parameters(sharded):
    """By name: FSDP1 flattens parameters, so that by their number of dimensions all were biases."""
    model = VisionTransformer("mini", img_size=8, in_chans=1, patch_size=2, depth=2, num_classes=10)
    task = Classification(model, num_classes=10, ema_decay=0.9)
    names = {parameter: name for name, parameter in task.named_parameters()}
    plain = create_optimizer_v2(task.model, **task.opt).param_groups
    groups = load(sharded)["optimizer_states"][0]["param_groups"]  # numbered in the order of the names
    in_order = list(names.values())
    assert [{in_order[i] for i in g["params"]} for g in groups] == [{names[p] for p in g["params"]} for g in plain]
    assert [g["weight_decay"] for g in groups] == [0.0, 0.05]


def test_accumulated_batches_end_as_one(one_process, tmp_path):
    run = train(FIXED, tmp_path, "trainer.precision=64-true", "data.micro_batch_size=40")
    assert_same_run(run, one_process("64-true"), "64-true")
    assert_split_across_ranks(run, 1, 10)


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_an_odd_validation_set_is_counted_exactly(image_folders, tmp_path, trainer):
    """Five images on two processes, one at a time: three batches here, two there, so nobody may wait for a third."""
    make_image(7).save(image_folders / "val" / "cat" / "odd.png")
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.img_size=32", "data.num_workers=0"]
    arguments = [f"data.root={image_folders}", "data.num_classes=2", "data.batch_size=4", *small, "name=x"]
    more = [f"trainer={trainer}", "trainer.precision=32-true", "trainer.max_epochs=1", "data.eval_batch_size=1"]
    for done in run_ranks(2, "data=imagenet", *arguments, *CPU_PAIR, *more, cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    assert run_forked("evaluate.py", "outputs/x", "evaluators=[metrics]", cwd=tmp_path).returncode == 0
    again = json.loads((tmp_path / "outputs/x/evaluation.json").read_text())["metrics"]
    metrics = result(tmp_path / "outputs/x")["metrics"]
    assert metrics["val/top1"] % 20 == pytest.approx(0)
    assert metrics == pytest.approx(again, rel=1e-5)


def test_a_run_moves_from_one_device_to_sharded_and_back(one_process, tmp_path):
    """Killed within an epoch, twice; the optimizer's moments must find their parameters both ways."""
    save = "checkpoint.every_n_steps=3"
    run = train_killed(FIXED, tmp_path, save, setup=dies_after(1))
    assert load(run)["global_step"] == 3
    sharded = ["trainer=fsdp", "trainer.precision=32-true", "resume=true"]
    died = run_ranks(2, *FIXED, *CPU_PAIR, *sharded, save, cwd=tmp_path, on_rank_zero=dies_after(3))
    assert died[0].returncode == -signal.SIGKILL and load(run)["global_step"] == 6
    assert_same_run(train(FIXED, tmp_path, "resume=true", save), one_process("32-true"))


def test_the_mean_loss_of_an_epoch_survives_a_kill_within_it(tmp_path):
    """Of each process its own, to the last bit; on another number of processes the mean of the same samples."""
    words = [*FIXED, *CPU_PAIR, "trainer=ddp", "trainer.precision=32-true", "checkpoint.every_n_steps=2"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert not any(done.returncode for done in end_together(start_ranks(2, *words, cwd=tmp_path / "whole")))
    end_together(start_ranks(2, *words, cwd=tmp_path / "killed", on_rank_zero=dies_after(step=3)))
    assert load(tmp_path / "killed/outputs/x")["global_step"] == 2  # of four in an epoch
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    resumed = end_together(start_ranks(2, *words, "resume=true", cwd=tmp_path / "killed"))
    assert not any(done.returncode for done in resumed), resumed
    train(FIXED, tmp_path / "alone", "resume=true", "checkpoint.every_n_steps=2")
    losses = {
        name: [row["train/loss"] for row in metrics(tmp_path / name / "outputs/x") if row["train/loss"]]
        for name in ("whole", "killed", "alone")
    }
    assert len(losses["whole"]) == 3 and losses["killed"] == losses["whole"]
    assert [*map(float, losses["alone"])] == pytest.approx([*map(float, losses["whole"])], rel=1e-5)


def test_another_number_of_accumulated_batches_may_go_on_at_an_epochs_end_only(one_process, tmp_path):
    save, half = "checkpoint.every_n_steps=3", "data.micro_batch_size=150"
    run = train_killed(FIXED, tmp_path, save, half, setup=dies_after(1))
    assert load(run)["global_step"] == 3
    refused = run_forked("train.py", *FIXED, save, "resume=true", cwd=tmp_path)
    assert_one_line_error(refused, "2 accumulated micro-batches", "not 1", half)
    train_killed(FIXED, tmp_path, save, half, "resume=true", setup=dies_after(2))
    assert load(run)["global_step"] == 4
    assert_same_run(train(FIXED, tmp_path, save, "resume=true"), one_process("32-true"))


def test_torchrun_makes_one_run_folder(tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py")]
    done = subprocess.run(
        [sys.executable, *words, *FIXED, *CPU_PAIR, "name=null"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    record = result(folder)
    assert record["status"] == "finished" and record["devices"]["processes"] == 2
    assert done.stdout.count("training images") == 1 and not (tmp_path / ".hydra").exists()


def test_a_mistake_on_several_processes_is_said_once(tmp_path):
    done = run_ranks(2, *TINY, *CPU_PAIR, "data.batch_size=301", cwd=tmp_path)
    assert_one_line_error(done[0], "data.batch_size=301", "2 processes")
    assert done[1].returncode == 2 and not done[1].stderr and not (tmp_path / "outputs").exists()


BAD = {
    "no GPU": (["trainer=gpu"], ["no GPU", "trainer=default"]),
    "no GPUs": (["trainer=ddp"], ["no GPU"]),
    "no SLURM": (["trainer=slurm", "trainer.accelerator=cpu"], ["trainer=slurm needs srun", "trainer=ddp"]),
    "micro_batch_size is text": (
        ["data.micro_batch_size=many"],
        ["data.micro_batch_size=many should be a valid integer or should be 'auto'"],
    ),
    "micro_batch_size is zero": (
        ["data.micro_batch_size=0"],
        ["data.micro_batch_size=0 should be greater than or equal to 1"],
    ),
    "two numbers of micro-batches": (
        ["data.micro_batch_size=8", "trainer.accumulate_grad_batches=2"],
        ["16 samples", "only one"],
    ),
    "sharding in half": (
        ["trainer=fsdp", *CPU_PAIR, "trainer.precision=bf16-true"],
        ["keeps its weights in float32: not trainer.precision=bf16-true but bf16-mixed"],
    ),
    "clipping and fused": (
        ["trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed", "+task.opt_args.fused=true"],
        ["needs task.opt_args.fused=false"],
    ),
    "compile is a word": (["compile=fast"], ["compile=fast should be a valid boolean"]),
}


@pytest.mark.parametrize("arguments, words", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_shared_out_is_said_in_a_line(arguments, words, tmp_path):
    if arguments[0] in ("trainer=gpu", "trainer=ddp") and torch.cuda.device_count():
        pytest.skip("there is a GPU here")
    assert_one_line_error(run_forked("train.py", *arguments, cwd=tmp_path), *words)
    assert not (tmp_path / "outputs").exists()


def test_compiling_changes_neither_names_nor_the_average(one_process, tmp_path):
    def watch():
        def backend(graph, inputs):  # torch's own takes half a minute here and is not what is tested
            with open(tmp_path / "graphs", "a") as file:
                file.write(f"{torch.is_grad_enabled()}\n")
            return graph.forward

        def evaluate(self, *arguments):
            compiled = [network._compiled_call_impl is not None for network in self.networks.values()]
            (tmp_path / "compiled.json").write_text(json.dumps(compiled))
            plain_evaluate(self, *arguments)

        plain_evaluate, Classification._evaluate = Classification._evaluate, evaluate
        torch.compile = partial(torch.compile, backend=backend)

    run = train(FIXED, tmp_path, "compile=true", setup=watch)
    assert {"True", "False"} == set((tmp_path / "graphs").read_text().split())  # in training and in evaluation
    assert json.loads((tmp_path / "compiled.json").read_text()) == [True, False]  # raw weights, their average
    assert_same_run(run, one_process("32-true"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_gpus_end_near_one_cpu(one_process, tmp_path, trainer):
    gpus = [f"trainer={trainer}", "trainer.accelerator=gpu", "trainer.devices=2", "trainer.precision=32-true"]
    done = run_script("train.py", *FIXED, *gpus, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, theirs = (result(run)["metrics"]["val/loss"] for run in (tmp_path / "outputs/x", one_process("32-true")))
    assert ours == pytest.approx(theirs, rel=1e-3)
