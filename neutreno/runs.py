"""Run folders: their names, when one may be written, and how a model comes back out of one."""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neutreno.errors import InputError
from neutreno.files import UNFINISHED, replacing

CONFIGS = Path(__file__).parents[1] / "configs"

# All that may be built from a run folder's config. It is data; a dotted path would resolve torch.os.system too.
BUILDABLE = {
    "neutreno.attention.AttnScale",
    "neutreno.attention.CentredAttention",
    "neutreno.attention.ExclusiveAttention",
    "neutreno.attention.GFSA",
    "neutreno.attention.LaplacianHeads",
    "neutreno.attention.LinearAttention",
    "neutreno.attention.NeutrenoAttention",
    "neutreno.attention.ReAttention",
    "neutreno.attention.SoftmaxAttention",
    "neutreno.attention.ValueResidual",
    "neutreno.data.classification.ImageClassification",
    "neutreno.data.digit_scenes.DigitScenes",
    "neutreno.data.digits.Digits",
    "neutreno.data.language_modeling.PythonDocs",
    "neutreno.data.language_modeling.TextFiles",
    "neutreno.data.segmentation.SegmentationFolders",
    "neutreno.models.language_model.lm",
    "neutreno.models.segmenter.segmenter",
    "neutreno.models.timm.timm_model",
    "neutreno.models.transformer.Block",
    "neutreno.models.transformer.ContraNormBlock",
    "neutreno.models.transformer.FeatScaleBlock",
    "neutreno.models.transformer.LayerScaleBlock",
    "neutreno.models.vit.vit",
    "neutreno.tasks.classification.Classification",
    "neutreno.tasks.language_modeling.LanguageModeling",
    "neutreno.tasks.segmentation.Segmentation",
}

# Where and how a run is executed, not what it is: free to change on resume, absent from its name.
_EXECUTION = re.compile(
    r"(name|resume|output_dir|trainer|logger(\..*)?|launcher(\..*)?|(progress|checkpoint)\..*|data\.(root|cache|num_workers|eval_batch_size)"
    r"|data\.device_batch|probe\.measures|compile|preflight|expected\..*|paper(\..*)?"
    r"|trainer\.(accelerator|devices|num_nodes|(strategy|plugins)(\..*)?|inference_mode|enable_.*))$"
)
_IN_EVERY_NAME = {"model", "data", "attention", "attention.lam", "block", "model.size", "seed"}


def default_name(config: DictConfig, choices: dict[str, str], overrides: Sequence[str]) -> str:
    """A readable folder name without ``=`` or ``,``: data, model, attention and block as built, λ̃, seed, the rest."""
    model = family(choices)
    parts = [choices["data"], "_".join(filter(None, [model, config.model.get("size")])), choices["attention"]]
    if config.attention.get("lam") is not None:
        parts.append(f"lam{config.attention.lam:g}" if _is_number(config.attention.lam) else "lam")
    if choices["block"] != "plain":
        parts.append(choices["block"])
    parts.append(f"seed{config.seed}")
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key not in _IN_EVERY_NAME and not _EXECUTION.match(key):
            parts.append(f"{key}-{value}")
    name = re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")
    if len(name) > 150:  # file systems end at 255 bytes; a digest keeps two long names apart
        name = f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def family(choices: dict[str, str]) -> str:
    """The network without its attention: ``deit`` for ``model=deit_neutreno``, whatever attention was built."""
    return choices["model"].removesuffix(f"_{choices['attention']}").removesuffix("_neutreno")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class RunFolder:
    """A folder that is the only record of a run.

    Absent: run. There and unfinished: continue with ``resume=true``, refuse otherwise. Finished: with ``resume=true``
    nothing is left to do; refuse otherwise.
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        if re.search(r"[/\\=,]", str(name)) or name in (".", ".."):
            raise InputError(f"name={name} is not a folder name: leave out / \\ = and ,")
        self.path = Path(path) / str(name)
        self.config_file = self.path / "config.yaml"
        self.result_file = self.path / "result.json"
        self.last_checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.best_checkpoint = self.path / "checkpoints" / "best.ckpt"

    @property
    def exists(self) -> bool:
        return self.path.exists()

    @property
    def status(self) -> str | None:
        from neutreno.results import read_result

        return read_result(self.path).get("status") if self.result_file.exists() else None

    def check(self, config: dict[str, Any], resume: bool) -> None:
        """Whether a run with ``config`` may use this folder.

        Raises:
            InputError: it may not, and why.
        """
        if not self.exists:
            return
        if not resume:
            state = "holds a finished run" if self.status == "finished" else "exists already"
            raise InputError(f"{self.path} {state}; resume=true continues it, name=… starts another")
        if {file.name for file in self.path.iterdir()} <= {".lock"}:  # killed before it began
            return
        if not self.config_file.exists():
            raise InputError(f"{self.path} holds no config.yaml to resume from; choose another name=…")
        before, now = identity(self.config()), identity(config)
        differ = [
            f"{k}={now.get(k)} (was {before.get(k)})" for k in sorted({*before, *now}) if before.get(k) != now.get(k)
        ]
        if differ:
            raise InputError(f"{self.path} is a run with other settings: {', '.join(differ)}; choose another name=…")

    def create(self, config: dict[str, Any], resume: bool) -> None:
        """Make the folder, keep other processes out of it until this one ends, and write the config.

        Raises:
            InputError: another process came first.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=resume)
        except FileExistsError as error:
            raise InputError(f"{self.path} exists already; resume=true continues it, name=… starts another") from error
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115  (held until the process ends)
        try:  # a lock of this process alone: loading workers that outlive a kill for a moment must not keep it
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"{self.path} is being written by another process; wait for it, or choose another name=…"
            ) from error
        except OSError:  # a file system without locks
            pass
        for leftover in self.path.rglob(f"*{UNFINISHED}"):
            leftover.unlink()
        with replacing(self.config_file) as file:
            file.write(OmegaConf.to_yaml(config))

    def config(self) -> dict[str, Any]:
        """The resolved config, as plain data.

        Raises:
            InputError: there is none, or it is not what a run writes.
        """
        import yaml

        try:
            safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where many runs are read
            content = yaml.load(self.config_file.read_text(), Loader=safe)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{self.path} is not a run folder: it holds no config.yaml") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{self.config_file} is not readable YAML") from error
        if (
            not isinstance(content, dict)
            or not {"data", "model", "task", "attention", "probe", "trainer"} <= content.keys()
        ):
            raise InputError(f"{self.config_file} is not the config of a run")
        return content


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a run is, as flat keys: its config without what only says where and how it is executed."""
    flat = _flat({k: v for k, v in config.items() if k != "model"}) | _flat(
        {"model": {k: v for k, v in config["model"].items() if k not in ("attention", "block")}}  # the top level's
    )
    return {k: v for k, v in flat.items() if not _EXECUTION.match(k)}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def build(config: Any, **kwargs) -> Any:
    """Instantiate part of a run folder's config, if all it names is in :data:`BUILDABLE`.

    Raises:
        InputError: it names something else, or holds what is no plain data.
    """
    if not isinstance(config, dict) or "_target_" not in config:
        raise InputError("the run's config is not one that a run writes: data, model and task must name a _target_")
    _check_plain(config)
    return hydra.utils.instantiate(config, **kwargs)


def _check_plain(node: Any) -> None:
    if type(node) is dict:
        if "_target_" in node and node["_target_"] not in BUILDABLE:
            raise InputError(f"the run's config names {node['_target_']!r}, which is not a part of neutreno; refused")
        for key, value in node.items():
            _check_plain(key)
            _check_plain(value)
    elif type(node) is list:
        for value in node:
            _check_plain(value)
    elif isinstance(node, str):
        if "${" in node:
            raise InputError(f"the run's config holds the interpolation {node!r}; a run writes none; refused")
    elif node is not None and type(node) not in (bool, int, float):  # YAML makes tuples, sets and dates too
        raise InputError(f"the run's config holds a {type(node).__name__}; a run writes none; refused")


def departures(config: dict[str, Any], experiment: str, overrides: Sequence[str]) -> list[str]:
    """Where a run's settings depart from those of its experiment file as it stands now, beyond seed and paths, and
    beyond the data set where the experiment leaves it open."""
    given = [f"experiment={experiment}", f"seed={config['seed']}"]
    given += [o for o in overrides if _EXECUTION.match(o.lstrip("+~").partition("=")[0])]
    file = CONFIGS / "experiment" / f"{experiment}.yaml"
    if file.is_file() and "override /data:" not in file.read_text():
        given += [o for o in overrides if o.startswith("data=")]
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra.compose("train", overrides=given)
        own = identity(OmegaConf.to_container(composed, resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        return [f"its experiment cannot be composed any more ({' '.join(str(error).split())[:120]})"]
    now = identity(config)
    return [f"{k}={now.get(k)} (experiment: {own.get(k)})" for k in sorted({*own, *now}) if own.get(k) != now.get(k)]
