"""The settings that the project owns: every key, its type and bounds, and what it is to a run, in one place.

A field whose type is a dataclass of this module is a section; a mark beside a section says what choosing another option
of its group is (``trainer=gpu`` is a way of execution), its keys carry their own. :class:`Part` marks what names a
class by ``_target_``, whose constructor says the rest. ``built`` of a section is the library's class whose options it
takes, too, and ``ours`` are those that nobody sets; ``judges`` are paths of functions that judge a setting of it beyond
its type, and raise an InputError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, MinLen

from neutreno.config.options import EXECUTION, FREE, Batches, Count, Folder, NonNegative, Rule, Seed, Size


class Part:
    """Type of a key that holds ``_target_`` and the options of what it names."""


class Parts:
    """Type of a key that holds several of them by name."""


@dataclass
class Probe:
    """``probe``: layer-wise metrics of over-smoothing while training."""

    judges: ClassVar[dict[str, str]] = {"metrics": "neutreno.oversmoothing.metrics.probed"}

    metrics: Annotated[list[str], EXECUTION] = field(default_factory=list)
    every_n_epochs: Count = 1
    num_samples: Annotated[Count, FREE] = 128
    at_steps: list[Annotated[int, Ge(0)]] | None = None


@dataclass
class Checkpointing:
    """``checkpoint``"""

    every_n_steps: Annotated[Count | None, EXECUTION] = None


@dataclass
class Progress:
    """``progress``"""

    line_every_s: Annotated[Annotated[float, Ge(0), Le(86_400)], EXECUTION] = 10.0


@dataclass
class Expected:
    """``expected``: what a comparison is to find, for preflight."""

    difference: Annotated[float | None, EXECUTION] = None
    sd: Annotated[NonNegative | None, EXECUTION] = None


Precision = Literal[
    *("32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true", "transformer-engine"),
    *("transformer-engine-float16", 16, 32, 64, "16", "32", "64", "bf16"),
]


@dataclass
class Trainer:
    """``trainer``: of Lightning's, those that the project sets or judges; the gate takes the others from its class."""

    built: ClassVar[str] = "lightning.Trainer"
    ours: ClassVar[set[str]] = {
        *("callbacks", "logger", "default_root_dir", "num_sanity_val_steps", "use_distributed_sampler"),
        *("enable_model_summary", "enable_checkpointing", "barebones"),
        "fast_dev_run",  # preflight=true tries a few steps and leaves nothing behind
        *("max_time", "limit_predict_batches", "model_registry"),  # would change nothing here
    }

    accelerator: Annotated[str, EXECUTION] = "auto"
    devices: Annotated[Annotated[int, Ge(-1), Le(65_536)] | str | list[int], EXECUTION] = 1
    num_nodes: Annotated[Size, EXECUTION] = 1
    strategy: Annotated[str | dict[str, Any], EXECUTION] = "auto"
    precision: Annotated[Precision, FREE] = "32-true"
    max_epochs: Count | None = 1
    max_steps: Annotated[int, Ge(-1), Le(10**9)] = -1
    accumulate_grad_batches: Count = 1
    gradient_clip_val: NonNegative | None = None
    log_every_n_steps: Count = 50
    check_val_every_n_epoch: Count | None = 1
    val_check_interval: Batches | None = None
    min_epochs: Count | None = None
    min_steps: Count | None = None
    limit_train_batches: Batches | None = None
    limit_val_batches: Annotated[Batches | None, FREE] = None
    limit_test_batches: Annotated[Batches | None, FREE] = None
    plugins: Annotated[list[dict[str, Any]], EXECUTION] = field(default_factory=list)
    deterministic: Annotated[bool | Literal["warn"] | None, FREE] = False
    benchmark: Annotated[bool | None, FREE] = None
    inference_mode: Annotated[bool, EXECUTION] = True
    enable_progress_bar: Annotated[bool | None, EXECUTION] = None


UnlessAt = Annotated[  # a label, and the value of the setting that goes without saying
    list[str | bool | int | float | None],
    Rule(lambda pair: len(pair) == 2 and isinstance(pair[0], str), "should be [label, VALUE]"),
]


@dataclass
class Settings:
    """Every key at the top of ``train.yaml``; the axes of variants that the model declares stand beside them."""

    data: Part
    model: Part
    task: Part
    trainer: Annotated[Trainer, EXECUTION]
    logger: Annotated[Parts | None, EXECUTION]
    launcher: Annotated[Part, EXECUTION]
    probe: Probe
    checkpoint: Checkpointing
    progress: Progress
    expected: Expected
    recipe: dict[str, Any]  # what models and axes look up; a key that nothing looks up is refused where it is typed
    seed: Seed = 0
    family: Annotated[str | None, EXECUTION] = None
    variants: Annotated[dict[str, str | list[str | dict[str, dict[str, Any]]]], EXECUTION] = field(default_factory=dict)
    labels: Annotated[dict[str, str | UnlessAt], EXECUTION] = field(default_factory=dict)
    name: Annotated[Folder | None, EXECUTION] = None
    row: Annotated[str | None, EXECUTION] = None
    output_dir: Annotated[Folder, EXECUTION] = "outputs"
    resume: Annotated[bool, EXECUTION] = False
    compile: Annotated[bool, EXECUTION] = False
    grad_checkpointing: Annotated[bool, EXECUTION] = False
    preflight: Annotated[bool, EXECUTION] = False
    paper: Annotated[dict[str, Any], EXECUTION] = field(default_factory=dict)


@dataclass
class EvaluationSettings(Settings):
    """Every key at the top of ``evaluate.yaml``."""

    run: Annotated[str | None, EXECUTION] = None
    trust: Annotated[str | list[str] | None, EXECUTION] = None
    trust_readers: Annotated[bool, EXECUTION] = False
    evaluators: Annotated[Annotated[list[str], MinLen(1)] | None, EXECUTION] = None
    evaluator: Annotated[Parts, EXECUTION] = field(default_factory=dict)
    other_variants: Annotated[list[str], EXECUTION] = field(default_factory=list)


SCHEMAS = {"train": Settings, "evaluate": EvaluationSettings}
