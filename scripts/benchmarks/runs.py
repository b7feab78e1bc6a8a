"""What a run adds to its training steps: the probe, Lightning's loop, loading."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import benchmarks
from neutreno.evaluation.step_time import seconds, training_step
from neutreno.models.vit import VisionTransformer


def bench_probe(repeats: int) -> list[tuple[str, str]]:
    from neutreno.oversmoothing.measure import measure
    from neutreno.oversmoothing.probe import OversmoothingProbe

    rows, metrics = [], OversmoothingProbe(".").metrics
    cases = {
        "the default run (mini, digits; 128 samples; 39 steps of 32)": (
            VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, num_classes=10), (1, 8, 8), 32, 39,
        ),
        "DeiT-tiny on CIFAR-10's size (patch 4; 128 samples; 351 steps of 128)": (
            VisionTransformer("tiny", img_size=32, patch_size=4, num_classes=10), (3, 32, 32), 128, 351,
        ),
    }  # fmt: skip
    for name, (model, shape, batch, steps) in cases.items():
        step = training_step(model, torch.randn(batch, *shape, device=benchmarks.DEVICE))
        inputs = torch.randn(128, *shape)
        step(), measure(model, inputs, metrics)
        shares = [
            seconds(lambda m=model, i=inputs: measure(m, i, metrics)) / (seconds(step) * steps) for _ in range(repeats)
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
        model = VisionTransformer("mini", img_size=8, patch_size=2, in_chans=1, num_classes=10)
        return data, Classification(model, num_classes=10, opt_args={"fused": True})

    def lightning() -> float:
        (data, task), clock = parts(), Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=2,
                accelerator=benchmarks.DEVICE.type,
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
        data.trainer = Trainer(accelerator=benchmarks.DEVICE.type, devices=1, logger=False, enable_checkpointing=False)
        task.trainer, data.trainer.datamodule = data.trainer, data
        data.trainer.fit_loop.max_epochs = 2
        setup = task.configure_optimizers()
        optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
        model, loader, done = task.model.to(benchmarks.DEVICE).train(), data.train_dataloader(), 0
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            start = time.perf_counter()
            for images, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(
                    model(images.to(benchmarks.DEVICE)), labels.to(benchmarks.DEVICE)
                ).backward()
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
