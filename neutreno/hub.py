"""Trained networks on the Hugging Face hub, or as the same files in a folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from torch import Tensor, nn

from neutreno.checkpoints import load_strictly, read_checkpoint, write_safetensors
from neutreno.config.building import locate
from neutreno.config.options import START, Option, options_of
from neutreno.config.trust import build_trusted, check_trusted
from neutreno.errors import InputError, one_line
from neutreno.evaluation.opening import as_started, device_of
from neutreno.files import make_folder
from neutreno.records import read_json
from neutreno.results import write_json, write_text

FILES = WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1  # of these files
NETWORK, ARGUMENTS = "model.", "model_arguments."  # names of tensors begin so; timm would load a ViT's bare ones
_SECTIONS: dict[str, Any] = {
    **dict.fromkeys(("label", "trained_with", "weights"), str),
    **dict.fromkeys(("model", "input", "settings", "metrics"), dict[str, Any]),
    "model_arguments": dict[str, int],
    "classes": list[str] | None,
}


@dataclass(repr=False, eq=False)
class Pretrained:
    """A network as it was pushed: see :func:`from_pretrained`.

    Attributes:
        model: the network, in evaluation mode.
        label: data, model and method of the run that trained it.
        input: how its input is made: of images ``mean``, ``std`` and ``img_size``; of text ``vocabulary``, words by id.
        classes: what its labels are called, by number; None: nobody knows.
        metrics: what the run recorded of these weights.
        config: the whole of ``config.json``.
    """

    source: str
    model: nn.Module
    config: dict[str, Any]

    def __repr__(self) -> str:
        return one_line(f"<pretrained {self.source}: {self.label}>")

    @property
    def label(self) -> str:
        return self.config["label"]

    @property
    def input(self) -> dict[str, Any]:
        return self.config["input"]

    @property
    def classes(self) -> list[str] | None:
        return self.config["classes"]

    @property
    def metrics(self) -> dict[str, float]:
        return self.config["metrics"]


def write(
    folder: str | Path,
    network: nn.Module,
    axes: dict[str, Any],
    arguments: dict[str, int | Tensor],
    config: dict[str, Any],
    card: str,
) -> None:
    """The files of a network; those that are there already are not touched.

    Args:
        axes: what the network was trained with, see :func:`neutreno.variants.axes_of`.
        arguments: numbers and tensors that the data gave the network's constructor.
        config: what ``config.json`` is to hold beside these.

    Raises:
        InputError: one of the files is there, or cannot be written.
    """
    folder = Path(folder)
    make_folder(folder, remedy="name another folder")
    if there := [name for name in FILES if (folder / name).exists()]:
        raise InputError(f"{folder} holds {', '.join(there)} already; remove that, or name another folder")
    tensors = {f"{NETWORK}{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"{ARGUMENTS}{name}": value for name, value in arguments.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
    config = {"format": FORMAT, **config, "model_arguments": plain}
    said = {"trained_with": config["trained_with"], "variants": json.dumps(axes), "config_sha256": _digest(config)}
    if words := config["input"].get("vocabulary"):
        said["vocabulary"] = "\n".join(words)  # as checkpoints have it, for runs that start from these weights
    write_safetensors(folder / WEIGHTS, tensors, said)
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, card)


def upload(
    write_into: Callable[[str, str], None], repo_id: str, message: str, private: bool | None, token: str | None
) -> str:
    """Push the files to a repository of models, which is made where there is none; gives the address of the commit.

    Args:
        write_into: writes them into a folder; is given that and the repository's whole name, which the hub completes.

    Raises:
        InputError: says what the hub said; or as ``write_into`` says.
    """
    try:
        hub = HfApi(token=token, library_name="neutreno")
        found = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            write_into(folder, found)
            how = {"folder_path": folder, "allow_patterns": list(FILES), "commit_message": message}
            return str(hub.upload_folder(repo_id=found, **how).commit_url)
    except InputError:
        raise
    except Exception as error:  # no network, no token, a name that is none: exceptions differ by cause
        said = one_line(next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]
        hint = "`hf auth login` or token=… lets you write; run.save_pretrained(FOLDER) writes the same files here"
        raise InputError(f"{one_line(repo_id)} was not pushed: {said.rstrip('.')}; {hint}") from error


def from_pretrained(
    source: str | Path,
    revision: str | None = None,
    *,
    device: str | torch.device = "cpu",
    trust: str | Sequence[str] = (),
    token: str | None = None,
) -> Pretrained:
    """A network that ``run.push_to_hub`` pushed, or ``run.save_pretrained`` wrote into a folder.

    Args:
        source: a folder, or else a repository of the hub, ``NAME/REPOSITORY``.
        revision: of a repository: a branch, a tag or a commit.
        trust: packages besides this one whose classes it may name: these files are data of anybody's.
        token: of the hub; None: that of ``hf auth login``, if any.

    Raises:
        InputError: there is no such thing, no network, or it is damaged, edited, or not what a run wrote.
    """
    where = device_of(device)
    folder = _fetched(source, revision, token)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        run = "; neutreno.load_run opens run folders" if (folder / "config.yaml").is_file() else ""
        raise InputError(f"{source} holds no {missing[0]}, which run.save_pretrained and run.push_to_hub write{run}")
    config = _read_config(folder / CONFIG)
    content = read_checkpoint(folder / WEIGHTS)
    if content.get("config_sha256") != _digest(config):
        raise InputError(f"{folder / CONFIG} is not what {WEIGHTS} was written with; restore both as they were")
    tensors = content["state_dict"]
    weights = {k.removeprefix(NETWORK): v for k, v in tensors.items() if k.startswith(NETWORK)}
    given = {k.removeprefix(ARGUMENTS): v for k, v in tensors.items() if k.startswith(ARGUMENTS)}
    trust = [trust] if isinstance(trust, str) else trust
    with as_started(), torch.random.fork_rng(devices=[]):
        model = _built(config["model"], config["model_arguments"] | given, trust, folder / CONFIG)
        _check_types(model, weights, folder / WEIGHTS)
        load_strictly(model, weights, folder / WEIGHTS)
        return Pretrained(str(source), model.to(where).eval(), config)


def _fetched(source: str | Path, revision: str | None, token: str | None) -> Path:
    """The folder of the files."""
    if Path(source).is_dir():
        if revision is not None:
            raise InputError(f"revision={revision} is of a repository, and {source} is a folder; leave it out")
        return Path(source)
    try:
        how = {"revision": revision, "token": token, "allow_patterns": list(FILES), "library_name": "neutreno"}
        return Path(snapshot_download(str(source), **how))
    except Exception as error:  # no network, no access, a name that is none: exceptions differ by cause
        said = f"{one_line(source)} is no folder here, and could not be had from the hub"
        if isinstance(error, RevisionNotFoundError):
            raise InputError(f"{one_line(source)} has no revision {one_line(revision)}") from error
        if isinstance(error, RepositoryNotFoundError):
            raise InputError(f"{said}: no such repository, or a private one; `hf auth login` or token=…") from error
        why = one_line(next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]
        raise InputError(f"{said}: {why}") from error


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if not isinstance(config, dict) or "format" not in config:
        raise InputError(f"{file} was not written by neutreno")
    if config["format"] != FORMAT:
        raise InputError(f"{file} has the format {one_line(config['format'])[:40]}, not {FORMAT} as this version reads")
    for name, kind in _SECTIONS.items():
        if problem := Option(kind).problem(config.get(name), name):
            raise InputError(f"{file} was not written by neutreno ({problem})")
    return config


def _built(node: dict[str, Any], arguments: dict[str, Any], trust: Sequence[str], file: Path) -> nn.Module:
    """The network of a config, which is anybody's, after the checks of one in a run folder.

    Raises:
        InputError: it names what is not trusted, takes no such arguments, or makes no network.
    """
    try:
        check_trusted(node, trust, "model")
        options = options_of(locate(node["_target_"]))
        for name, value in arguments.items():
            option = options.get(name)
            if option is None or option.mark is START or node.get(name) is not None:
                raise InputError(f"model_arguments.{name} is nothing that data gives this model; refused")
            if problem := option.problem(value, f"model_arguments.{name}"):
                raise InputError(one_line(problem))
        return _constructed(node, arguments, trust)
    except InputError as error:
        raise InputError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from error


def _constructed(node: dict[str, Any], arguments: dict[str, Any], trust: Sequence[str]) -> nn.Module:
    try:
        model = build_trusted(node, trust, "model", **arguments)
    except InputError:
        raise
    except Exception as error:  # values that fit each option alone: a constructor's exceptions differ by its class
        said = one_line(f"{type(error).__name__}: {error}")[:300]
        raise InputError(f"model cannot be built as it says ({said})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}, not a network")
    return model


def _check_types(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Refuse tensors that loading would convert, and so change: those that are written have the network's types.

    Raises:
        InputError: names one.
    """
    for name, own in model.state_dict().items():
        if name in weights and weights[name].dtype != own.dtype:
            raise InputError(f"{file} has {name} as {weights[name].dtype}, the network as {own.dtype}; refused")


def _digest(config: dict[str, Any]) -> str:
    """Of what it holds, however it is laid out."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
