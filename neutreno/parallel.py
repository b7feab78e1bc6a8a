"""One command on one device, on several, and on several machines: what Lightning's strategies leave to us."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from neutreno.checkpoints import load_strictly, read_checkpoint
from neutreno.config.building import build
from neutreno.config.words import close
from neutreno.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def units(network: nn.Module) -> list[nn.Module]:
    """What is gathered and let go together: every element of a list of modules that holds parameters, inner ones first.

    The blocks of a trunk are such a list, and so are those of a network that the project does not know.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    elements = {element for elements in lists for element in elements}
    containers = nn.ModuleList | nn.ModuleDict  # they are not called, so nothing would gather them
    called = [m for m in network.modules() if m in elements and not isinstance(m, containers)]
    return [m for m in reversed(called) if any(True for _ in m.parameters())]


def shard(task: LightningModule) -> None:
    """Spread the weights of every network of ``task`` over all processes, layer by layer (FSDP2): see :func:`units`.

    FSDP2 keeps names and shapes, where FSDP1 flattens: so weight decay, the EMA of the weights and checkpoints are
    those of an unsharded run. The average is sharded alike, because it is updated shard by shard.
    """
    mesh = init_device_mesh(task.trainer.strategy.root_device.type, (task.trainer.world_size,))
    for network in task.networks.values():
        if isinstance(network, FSDPModule):  # Lightning asks before every fit, validate and test
            continue
        for unit in units(network):
            fully_shard(unit, mesh=mesh)
        fully_shard(network, mesh=mesh)
        if hasattr(network, "forward_features"):  # the probe's; forward() calls it, so it cannot be entered itself
            network.features_alone = network.forward_features
            register_fsdp_forward_method(network, "features_alone")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are whole, written and read as those of every other strategy.

    Lightning's native reader takes the optimizer's numbering of parameters for the model's, so it gives a checkpoint of
    one device's run the wrong moments.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = read_checkpoint(checkpoint_path)
        load_strictly(self.model, checkpoint["state_dict"], checkpoint_path)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            groups, name_of = [], {}
            for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                name_of |= {i: names[p] for i, p in zip(group["params"], own["params"], strict=True)}
                groups.append({**group, "params": [name_of[i] for i in group["params"]]})
            state = {name_of[i]: moments for i, moments in saved["state"].items()}
            named = {"state": state, "param_groups": groups}
            set_optimizer_state_dict(self.model, optimizer, named, options=StateDictOptions(full_state_dict=True))
        return checkpoint


@contextmanager
def gathered(*networks: nn.Module) -> Iterator[None]:
    """Within it every process holds the whole weights and may run a network as often as it likes; all must enter.

    A forward pass of a sharded network is a collective act: a process with one batch more than the others would wait
    for them forever. Does nothing to networks that are not sharded.
    """
    sharded = [network for network in networks if isinstance(network, FSDPModule)]
    parts = [module for network in sharded for module in network.modules() if isinstance(module, FSDPModule)]
    for network in sharded:
        network.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        for network in sharded:
            network.set_reshard_after_forward(True)
            network.set_reshard_after_forward(False, recurse=False)  # torch's own choice for the outermost module


class GatherForEvaluation(Callback):
    """Keeps sharded networks whole while they are evaluated: the processes' shares may differ by a batch."""

    def _enter(self, trainer: Trainer, task: LightningModule) -> None:
        self._gathered = gathered(*task.networks.values())
        self._gathered.__enter__()

    def _leave(self, trainer: Trainer, task: LightningModule) -> None:
        self._gathered.__exit__(None, None, None)

    on_validation_start = on_test_start = _enter
    on_validation_end = on_test_end = _leave


def check_trainer(config: DictConfig) -> None:
    """Refuse what Lightning refuses too late or at length: a GPU where there is none, settings that exclude each other.

    Raises:
        InputError: says what to do instead.
    """
    accelerator, precision, strategy = (config.trainer[key] for key in ("accelerator", "precision", "strategy"))
    devices, fused = config.trainer.devices, (config.task.get("opt_args") or {}).get("fused")
    if isinstance(devices, str) and not re.fullmatch(r"auto|-?\d+(,\d+)*,?", devices):
        raise InputError(f"trainer.devices={devices} is not a number of devices, a list of them (0,1) or auto")
    if isinstance(strategy, DictConfig) and "_target_" not in strategy:
        raise InputError(f"trainer.strategy={strategy} does not name a class by _target_; trainer=fsdp is an example")
    accelerators = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    known = {"accelerator": accelerators, "strategy": ("auto", *StrategyRegistry.available_strategies())}
    for key, names in known.items():
        if isinstance(value := config.trainer[key], str) and value not in names:
            hint = close(value, names, "") or f"; available: {', '.join(names)}"
            raise InputError(f"trainer.{key}={value} is not known to Lightning{hint}")
    if accelerator in ("gpu", "cuda") and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise InputError(
            f"trainer.accelerator={accelerator}, but PyTorch finds no GPU here: run on a machine that has one, or on "
            "the CPU with trainer=default (trainer.accelerator=cpu keeps the rest of this trainer)"
        )
    if isinstance(strategy, DictConfig) and precision not in ("bf16-mixed", "32-true"):
        raise InputError(f"trainer=fsdp keeps its weights in float32: not trainer.precision={precision} but bf16-mixed")
    if fused and config.trainer.gradient_clip_val and str(precision).endswith("-mixed"):
        raise InputError(
            f"trainer.gradient_clip_val with trainer.precision={precision} needs task.opt_args.fused=false: "
            "Lightning does not clip the gradients of a fused optimizer there"
        )


def build_trainer(settings: Any, **more: Any) -> Trainer:
    """Lightning's trainer as ``trainer.*`` says, without what the project does in its own way.

    Raises:
        InputError: Lightning refuses those settings; says what it says.
    """
    own = {"use_distributed_sampler": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    own["max_steps"] = -1  # epochs bound a run: by steps, Lightning skips one when it resumes at the end of one
    try:
        trainer = build(settings, **{**own, **more})  # our samplers split without counting a sample twice
    except MisconfigurationException as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error
    trainer._signal_connector.register_signal_handlers = lambda: None  # see neutreno/stopping.py
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def keep_freed_memory() -> None:
    """Make this process keep the memory of large tensors that are freed, for those of its next step.

    glibc gives it back to the system and takes it anew, page by page, in every step (docs/performance.md says what that
    costs). GPUs are not concerned: PyTorch keeps their memory. Without glibc nothing is done.
    """
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            glibc.mallopt(option, 2**30)


def kill_others(trainer: Trainer) -> Callable[[int], None] | None:
    """Sends a signal to the processes that ``trainer`` started; None where a run is a single process."""
    if trainer.world_size == 1:
        return None
    launcher = trainer.strategy.launcher
    return (lambda number: None) if launcher is None else launcher.kill


def slurm_environment() -> SLURMEnvironment:
    """Ranks from ``srun``; without Lightning's requeueing, whose checkpoints lie elsewhere than ours and know no data.

    Raises:
        InputError: srun did not start this process.
    """
    if "SLURM_NTASKS" not in os.environ:
        raise InputError("trainer=slurm needs srun (scripts/slurm/train.sbatch); elsewhere trainer=gpu or trainer=ddp")
    return SLURMEnvironment(auto_requeue=False)


def describe(trainer: Trainer, data: LightningDataModule) -> dict[str, int | str]:
    """How a run's global batch was split across ranks, for its record."""
    micro_batches = trainer.accumulate_grad_batches
    return {
        "processes": trainer.world_size,
        "machines": trainer.num_nodes,
        "strategy": type(trainer.strategy).__name__,
        "accumulate_grad_batches": micro_batches,
        "micro_batch_size": data.batch_size // (trainer.world_size * micro_batches),
    }
