"""Speed and memory as ratios of two things measured in one alternating run: A B A B …, median of the paired ratios.

    python scripts/benchmark.py                 everything, some fifteen minutes on two cores
    python scripts/benchmark.py step attention  parts of it
    python scripts/benchmark.py --device cuda

A ratio above 1 says that the first of the two is faster.
"""

import argparse
import gc
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.models.vit import vit
from neutreno.results import environment

DEVICE = torch.device("cpu")


class ExplicitNeutreno(NeutrenoAttention):
    """The equation written out, with the N × N matrix in memory, as the released code does."""

    def mix(self, q, k, v, v0):
        a = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return a @ v if v0 is None else a @ v + self.lam * (v0 - v)


def seconds(call: Callable[[], None]) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(first: Callable[[], None], second: Callable[[], None], repeats: int) -> str:
    """Speed of ``first`` relative to ``second``: median and quartiles of the paired ratios."""
    first(), second()
    pairs = []
    for i in range(repeats):
        calls = [first, second] if i % 2 == 0 else [second, first]
        times = [seconds(call) for call in calls]
        a, b = times if i % 2 == 0 else times[::-1]
        pairs.append(b / a)
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"{statistics.median(pairs):.3f} (quartiles {low:.3f}–{high:.3f}, {repeats} pairs)"


def training_step(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model = model.to(DEVICE).train()
    images = images.to(DEVICE)
    labels = torch.zeros(len(images), dtype=torch.long, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def bench_step(repeats: int) -> list[tuple[str, str]]:
    images = torch.randn(8 if DEVICE.type == "cpu" else 128, 3, 224, 224)
    reference = training_step(timm.create_model("deit_tiny_patch16_224"), images)
    softmax = training_step(vit("tiny", attention=SoftmaxAttention), images)
    neutreno = training_step(vit("tiny", attention=partial(NeutrenoAttention, lam=0.6)), images)
    explicit = training_step(vit("tiny", attention=partial(ExplicitNeutreno, lam=0.6)), images)
    what = f"training step of DeiT-tiny, 224 px, batch {len(images)}"
    return [
        (f"{what}: our softmax against timm's model", ratio(softmax, reference, repeats)),
        (f"{what}: NeuTRENO against our softmax", ratio(neutreno, softmax, repeats)),
        (f"{what}: NeuTRENO against an explicit N × N NeuTRENO", ratio(neutreno, explicit, repeats)),
    ]


def attention_pass(kind: type[NeutrenoAttention], tokens: int) -> Callable[[], None]:
    layer = kind(192, num_heads=3, lam=0.6).to(DEVICE)
    x = torch.randn(1, tokens, 192, device=DEVICE, requires_grad=True)
    v0 = torch.randn(1, 3, tokens, 64, device=DEVICE)
    return lambda: layer(x, v0)[0].sum().backward()


def peak_mib(kind: str, tokens: int) -> float:
    """Memory of one forward and backward pass beyond what stood before it, in a process of its own."""
    words = [sys.executable, __file__, "--peak", kind, str(tokens), "--device", DEVICE.type]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def measure_peak(kind: type[NeutrenoAttention], tokens: int) -> float:
    attention_pass(kind, 8)()  # load the libraries
    call = attention_pass(kind, tokens)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    status = lambda key: int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])  # noqa: E731
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


def bench_attention(repeats: int) -> list[tuple[str, str]]:
    rows = []
    for tokens in (197, 1025, 4097):
        calls = attention_pass(NeutrenoAttention, tokens), attention_pass(ExplicitNeutreno, tokens)
        rows.append((f"attention of DeiT-tiny, N = {tokens}: NeuTRENO against explicit N × N", ratio(*calls, repeats)))
        fused, explicit = (statistics.median(peak_mib(k, tokens) for _ in range(3)) for k in ("fused", "explicit"))
        rows.append((f"its peak memory, N = {tokens}", f"{fused:.1f} MiB against {explicit:.1f} MiB"))
    return rows


def bench_probe(repeats: int) -> list[tuple[str, str]]:
    from neutreno.callbacks.probe import measure_similarity

    rows = []
    cases = {
        "the default run (mini, digits; 128 samples; 39 steps of 32)": (
            vit("mini", img_size=8, patch_size=2, in_chans=1, num_classes=10), (1, 8, 8), 32, 39,
        ),
        "DeiT-tiny on CIFAR-10's size (patch 4; 128 samples; 351 steps of 128)": (
            vit("tiny", img_size=32, patch_size=4, num_classes=10), (3, 32, 32), 128, 351,
        ),
    }  # fmt: skip
    for name, (model, shape, batch, steps) in cases.items():
        step = training_step(model, torch.randn(batch, *shape))
        inputs = torch.randn(128, *shape)
        step(), measure_similarity(model, inputs)
        shares = [
            seconds(lambda m=model, i=inputs: measure_similarity(m, i)) / (seconds(step) * steps)
            for _ in range(repeats)
        ]
        rows.append((f"one probe as a share of an epoch of {name}", f"{100 * statistics.median(shares):.2f} %"))
    return rows


def bench_loop(repeats: int) -> list[tuple[str, str]]:
    """Lightning's loop with the callbacks and log of a run, against the same steps in a bare loop."""
    from lightning import Callback, Trainer

    from neutreno import console
    from neutreno.callbacks.exact_resume import ExactResume
    from neutreno.callbacks.finite_loss import FiniteLoss
    from neutreno.callbacks.metrics_csv import MetricsCSV
    from neutreno.data.digits import Digits
    from neutreno.tasks.classification import Classification

    console.quiet(0)

    class Clock(Callback):
        def on_train_epoch_start(self, trainer, task):
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer, task):
            self.seconds = time.perf_counter() - self.start  # of the last epoch

    def parts():
        data = Digits(img_size=8, in_chans=1, num_classes=10, batch_size=32)
        data.setup()
        model = vit("mini", img_size=8, patch_size=2, in_chans=1, num_classes=10)
        return data, Classification(model, num_classes=10, opt_args={"fused": True})

    def lightning() -> float:
        (data, task), clock = parts(), Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=2,
                accelerator=DEVICE.type,
                devices=1,
                limit_val_batches=0,
                logger=MetricsCSV(Path(folder) / "metrics.csv"),
                callbacks=[ExactResume(0), FiniteLoss(), clock],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                log_every_n_steps=20,
            )
            trainer.fit(task, data)
        return clock.seconds

    def bare() -> float:
        data, task = parts()
        data.trainer = Trainer(accelerator=DEVICE.type, devices=1, logger=False, enable_checkpointing=False)
        task.trainer, data.trainer.datamodule = data.trainer, data
        data.trainer.fit_loop.max_epochs = 2
        setup = task.configure_optimizers()
        optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
        model, loader, done = task.model.to(DEVICE).train(), data.train_dataloader(), 0
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            start = time.perf_counter()
            for images, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE)).backward()
                optimizer.step()
                done += 1
                schedule.step_update(done)
            spent = time.perf_counter() - start
        return spent

    lightning(), bare()
    pairs = []
    for i in range(max(3, repeats // 4)):
        ours, plain = (lightning(), bare()) if i % 2 == 0 else (bare(), lightning())[::-1]
        pairs.append(plain / ours)
    spread = f"{statistics.median(pairs):.3f} (range {min(pairs):.3f}–{max(pairs):.3f}, {len(pairs)} pairs)"
    return [("an epoch of the default run: Lightning's loop against a bare loop", spread)]


def bench_loading(repeats: int) -> list[tuple[str, str]]:
    """An epoch of batches of small images, cropped and flipped: kept on the device against read one by one."""
    from types import SimpleNamespace

    from PIL import Image

    from neutreno.data.classification import ImageClassification

    shape = {"img_size": 32, "in_chans": 3, "num_classes": 2, "batch_size": 128, "crop_padding": 4, "crop_pct": 1.0}
    shape |= {"mean": [0.5] * 3, "std": [0.2] * 3, "augment": {"color_jitter": None, "re_prob": 0.0}}
    rows = []
    with tempfile.TemporaryDirectory() as root:
        noise = np.random.default_rng(0)
        for i in range(2048):
            file = Path(root) / "train" / f"class{i % 2}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)

        def epoch(workers: int, on_device: bool) -> Callable[[], None]:
            data = ImageClassification(root=root, num_workers=workers, on_device=on_device, **shape)
            data.setup()
            data.trainer = SimpleNamespace(
                accumulate_grad_batches=1,
                world_size=1,
                global_rank=0,
                strategy=SimpleNamespace(root_device=DEVICE),
            )
            loader = data.train_dataloader()

            def once() -> None:
                for images, _ in loader:
                    images.to(DEVICE)

            return once

        held = epoch(0, True)
        for workers in (0, 2):
            what = "the training process" if workers == 0 else f"{workers} workers"
            rows.append(
                (
                    f"loading 32-pixel JPEGs: on the device against one by one in {what}",
                    ratio(held, epoch(workers, False), repeats),
                )
            )
        held_s = statistics.median(seconds(held) for _ in range(repeats))
        rows.append(("images/s loaded from the device", f"{1842 // 128 * 128 / held_s:,.0f}"))
    return rows


class ReleasedAttention(NeutrenoAttention):
    """Causal NeuTRENO as the released language model computes it: time first, einsum, a mask, the N × N matrix."""

    def mix(self, q, k, v, v0):
        q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
        scores = torch.einsum("ibnd,jbnd->ijbn", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[:2], dtype=torch.bool, device=q.device).triu(1)
        a = torch.softmax(scores.masked_fill(future[:, :, None, None], -math.inf), dim=1)
        out = torch.einsum("ijbn,jbnd->ibnd", a, v)
        if v0 is not None:
            out = out + self.lam * (v0.permute(2, 0, 1, 3) - v)
        return out.permute(1, 2, 0, 3)


def bench_lm(repeats: int) -> list[tuple[str, str]]:
    from neutreno.models.language_model import SIZES, LanguageModel

    rows, words = 4 if DEVICE.type == "cpu" else 96, 267_735
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(zipf(draw, words, (rows, 257))).to(DEVICE)

    def step(attention: type[NeutrenoAttention]) -> Callable[[], None]:
        small = {**SIZES["small"], "cutoffs": [20_000, 40_000, 200_000]}
        model = LanguageModel(words, **small, attention=partial(attention, lam=0.4)).to(DEVICE).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

        def once() -> None:
            optimizer.zero_grad()
            model(ids[:, :-1], ids[:, 1:]).mean().backward()
            optimizer.step()

        return once

    ours, released = step(NeutrenoAttention), step(ReleasedAttention)
    what = f"training step of the paper's language model, {rows} x 256 words"
    speed = 256 * rows / statistics.median(seconds(ours) for _ in range(repeats))
    return [
        (f"{what}: fused attention against the released code's", ratio(ours, released, repeats)),
        (f"{what}: tokens/s", f"{speed:,.0f}"),
    ]


def zipf(draw: np.random.Generator, words: int, shape: int | tuple[int, ...]) -> np.ndarray:
    """Ranks of words whose frequency falls as 1 / rank."""
    share = np.cumsum(1 / np.arange(1, words + 1))
    return np.searchsorted(share, draw.random(shape) * share[-1])


def bench_prepare(repeats: int) -> list[tuple[str, str]]:
    """Words to ids of a text of WikiText-103's size, and its checksums when a run starts again."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    spelling = ["".join(letters[draw.integers(0, 26, 1 + 2 * i.bit_length() // 5)]) for i in range(300_000)]
    known = np.array(list(dict.fromkeys(spelling + [f"{word}s" for word in spelling]))[:267_733], dtype=object)
    with tempfile.TemporaryDirectory() as root:
        for split, tokens in {"train": 101_400_000, "valid": 214_000, "test": 241_000}.items():
            with open(Path(root) / f"{split}.txt", "w") as file:
                if split == "train":  # each word at least once
                    file.write(" ".join(known) + "\n")
                for start in range(0, tokens, 1_000_000):
                    drawn = known[zipf(draw, len(known), min(1_000_000, tokens - start))]
                    file.writelines(" ".join(drawn[i : i + 57]) + " \n" for i in range(0, len(drawn), 57))
        size = (Path(root) / "train.txt").stat().st_size
        words = [sys.executable, __file__, "--prepare", root]
        first, again = (
            subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)
        )
    what = f"{int(first[2]):,} tokens, {int(first[3]):,} words, {size / 1e6:,.0f} MB of text"
    return [
        (f"preparing {what}", f"{float(first[0]):.0f} s, peak RSS {float(first[1]):.2f} GiB, libraries included"),
        ("the same again, from its cache", f"{float(again[0]):.1f} s, peak RSS {float(again[1]):.2f} GiB"),
    ]


def measure_prepare(root: str) -> str:
    """Seconds, peak GiB of this process, tokens, words."""
    import resource

    from neutreno.data.language_modeling import TextFiles

    data = TextFiles(root, segment=256, epoch_steps=1, batch_size=96)
    spent = seconds(data.setup)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return f"{spent} {peak} {len(data.splits['train'])} {len(data.vocabulary)}"


PARTS = {
    "step": bench_step,
    "attention": bench_attention,
    "probe": bench_probe,
    "loop": bench_loop,
    "loading": bench_loading,
    "lm": bench_lm,
    "prepare": bench_prepare,
}


def main() -> None:
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        print(measure_prepare(arguments.prepare))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is to be seen here")
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    DEVICE = torch.device(arguments.device)
    torch.manual_seed(0)
    if arguments.peak:
        kind = {"fused": NeutrenoAttention, "explicit": ExplicitNeutreno}[arguments.peak[0]]
        print(measure_peak(kind, int(arguments.peak[1])))
        return
    where = environment()
    hardware = where["hardware"].get("gpu", [where["hardware"]["cpu"]])[0]
    print(f"torch {where['versions']['torch']}, {hardware}, {torch.get_num_threads()} threads\n", flush=True)
    print("| measured | result |\n|---|---|")
    for part in arguments.parts or PARTS:
        for what, result in PARTS[part](arguments.repeats):
            print(f"| {what} | {result} |", flush=True)


if __name__ == "__main__":
    main()
