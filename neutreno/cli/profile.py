"""Over-smoothing by layer of any model: from timm, Hugging Face or a run folder.

    neutreno profile timm:vit_tiny_patch16_224 FOLDER_OF_IMAGES
    neutreno profile hf:bert-base-uncased TEXT.txt --metrics cosine
    neutreno profile hf:./local_folder TEXT.txt --lam 0.6   with the term
    neutreno profile timm:vit_tiny_patch16_224 --random-weights       no network
    neutreno profile outputs/RUN               on the run's validation data

Prints a Markdown table and writes PREFIX.csv, .pdf and .png: means over samples, bands of ± one standard deviation.
Without data, random pixels or token ids are used. Each line of a text is a sample, truncated to --tokens tokens.
"""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neutreno.cli import add_font, add_output, add_trust, add_trust_readers, command, output_of, parser_of
from neutreno.errors import InputError, check_number, needing

ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"}


def open_timm(name: str, arguments: argparse.Namespace):
    """(model, batches, what they are) of a timm model."""
    import timm
    import torch
    from timm.data import create_transform, resolve_data_config

    from neutreno.checkpoints import pretrained_timm_model

    if not timm.is_model(name):
        raise InputError(f"timm:{name} is not a timm model; timm.list_models() lists them")
    try:
        model = timm.create_model(name) if arguments.random_weights else pretrained_timm_model(name)
    except InputError as error:
        raise InputError(f"{str(error).removesuffix('; give a local file instead')}; try --random-weights") from error
    except RuntimeError as error:  # a tag that the model does not have
        raise InputError(f"timm:{name}: {error}") from error
    config = resolve_data_config(model=model)
    transform = create_transform(**config)
    return model, *pixels(arguments, config["input_size"], lambda found: torch.stack([transform(i) for i in found]))


def pixels(arguments: argparse.Namespace, size: Sequence[int], transform: Callable[[list], Any]):
    """(N, C, H, W) and what they are: images of a folder and the folders within it, spread evenly over their names, as
    ``transform`` makes them, or random pixels of a size."""
    import numpy as np
    import torch

    from neutreno.data.images import decode

    if arguments.data is None:
        return torch.randn(arguments.samples, *size), f"{arguments.samples} images of random pixels, drawn here"
    folder = Path(arguments.data)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))})")
    chosen = np.linspace(0, len(files) - 1, min(arguments.samples, len(files))).round().astype(int)
    images = [decode(files[i], files[i], "RGB") for i in chosen]
    return transform(images), f"{len(images)} images of {folder}"


def open_hugging_face(name: str, arguments: argparse.Namespace):
    """The same of a Hugging Face model, by its name on the hub or its local folder."""
    with needing("hf:…", "transformers", "huggingface"):
        import transformers
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def fetched(kind: str):
        try:
            return getattr(transformers, kind).from_pretrained(name)
        except Exception as error:  # no network, no such model, a file that is none: each library raises its own kind
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
            hint = " or, if its configuration is available, --random-weights" if kind == "AutoModel" else ""
            raise InputError(f"hf:{name}: no {kind} of it ({said[:200]}); give a local folder{hint}") from error

    random = arguments.random_weights
    model = transformers.AutoModel.from_config(fetched("AutoConfig")) if random else fetched("AutoModel")
    if model.main_input_name == "pixel_values":
        side = getattr(model.config, "image_size", 224)
        sides = side if isinstance(side, list | tuple) else [side, side]
        size = [getattr(model.config, "num_channels", 3), *sides]

        def processed(images: list):
            return fetched("AutoImageProcessor")(images, return_tensors="pt")["pixel_values"]

        batch = {}
        batch["pixel_values"], what = pixels(arguments, size, processed)
    elif model.main_input_name == "input_ids":
        batch, what = token_ids(model.config, fetched, arguments)
    else:
        raise InputError(f"hf:{name} takes {model.main_input_name}; this command takes images or text only")
    parts = zip(*(value.split(16) for value in batch.values()), strict=True)
    return model, [dict(zip(batch, part, strict=True)) for part in parts], what


def token_ids(config, fetched: Callable[[str], Any], arguments: argparse.Namespace):
    """Inputs of a model of text by name, and what they are."""
    import torch

    text = config.get_text_config()
    most = min(arguments.tokens, getattr(text, "max_position_embeddings", None) or arguments.tokens)
    if arguments.data is None:
        batch = {"input_ids": torch.randint(text.vocab_size, (arguments.samples, most))}
        what = f"{arguments.samples} sequences of {most} random token ids, drawn here"
    else:
        lines = lines_of(arguments.data)[: arguments.samples]
        tokenizer = fetched("AutoTokenizer")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        encoded = tokenizer(lines, padding=True, truncation=True, max_length=most, return_tensors="pt")
        batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        what = f"{len(lines)} lines of {arguments.data}, {batch['attention_mask'].sum():,} tokens"
    if config.is_encoder_decoder:
        batch |= {f"decoder_{name}": value for name, value in batch.items()}
        what += ", the same for the decoder"
    return batch, what


def lines_of(file: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    if not lines:
        raise InputError(f"{file} holds no text")
    return lines


def open_run_folder(folder: str, arguments: argparse.Namespace):
    """The same of a run folder: its last weights, and the validation samples that its probe takes."""
    from neutreno.evaluation.opening import open_run

    if arguments.data is not None or arguments.random_weights:
        given = "--random-weights" if arguments.data is None else arguments.data
        raise InputError(f"{folder} is a run, with its own weights and data; leave {given} out")
    model, data, _ = open_run(folder, trust=arguments.trust, trust_readers=arguments.trust_readers)
    samples = data.probe_samples(arguments.samples)
    return model, samples, f"{len(samples[0])} of its validation samples"


def number(name: str, text: str, least: float, kind: type = int) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = text
    check_number(name, value, least, integer=kind is int)
    return value


@command
def main(arguments: Sequence[str]) -> None:
    parser = parser_of("profile", __doc__)
    parser.add_argument("model", metavar="MODEL", help="timm:NAME, hf:NAME, hf:FOLDER, or a run folder")
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder of images or text file; default: random inputs")
    parser.add_argument("--lam", help="λ̃: also measure the same weights with NeuTRENO's term")
    parser.add_argument("--metrics", default="cosine,residual,effective_rank", metavar="NAME,…")
    parser.add_argument("--layers", metavar="PATTERN,…", help="names of the layers, e.g. 'encoder.layer.*'")
    parser.add_argument("--samples", default="64", help="default: %(default)s")
    parser.add_argument("--tokens", default="128", help="at most, of a line of text; default: %(default)s")
    parser.add_argument("--random-weights", action="store_true", help="do not load pretrained weights")
    parser.add_argument("--seed", default="0", help="of random weights and inputs; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    add_output(parser, "profile", "PREFIX")
    add_font(parser)
    add_trust(parser)
    add_trust_readers(parser)
    arguments = parser.parse_args(arguments)
    for name, least in (("samples", 1), ("tokens", 2), ("seed", 0)):
        setattr(arguments, name, number(f"--{name}", getattr(arguments, name), least))
    lam = None if arguments.lam is None else number("--lam", arguments.lam, 0, float)
    layers = arguments.layers.split(",") if arguments.layers else None
    if arguments.data is not None and not os.path.exists(arguments.data):
        raise InputError(f"{arguments.data}: no such file or folder")

    import pandas as pd
    import torch

    from neutreno.files import replacing
    from neutreno.oversmoothing.convert import convert
    from neutreno.oversmoothing.metrics import named_metrics
    from neutreno.oversmoothing.profile import profile
    from neutreno.reports.drawing import in_font
    from neutreno.reports.figures import plot_profile

    metrics = arguments.metrics.split(",")
    named_metrics(metrics, "--metrics")
    torch.manual_seed(arguments.seed)
    library, _, name = arguments.model.partition(":")
    load = {"timm": open_timm, "hf": open_hugging_face}.get(library) if name else None
    model, batches, what = load(name, arguments) if load else open_run_folder(arguments.model, arguments)
    try:
        model.to(arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device={arguments.device}: {next(iter(str(error).splitlines()))}") from error
    table = profile(model, batches, metrics, layers)
    if lam:
        converted = profile(convert(model, lam, layers), batches, metrics, layers)
        table = pd.concat([table.assign(lam=0.0), converted.assign(lam=lam)])
    weights = ", random weights" if arguments.random_weights else ""
    title = f"{arguments.model}{weights}; {what}"
    output = output_of(arguments)
    with replacing(Path(f"{output}.csv")) as file:
        table.to_csv(file, index=False)
    with in_font(arguments.font):
        paths = plot_profile(table, output, title)
    print(f"{title}\n\n{markdown(table)}\n\n{output}.csv, {', '.join(map(str, paths))}")


def markdown(table) -> str:
    """A row per layer, a column per metric, λ̃ and token subset: mean ± standard deviation over samples."""
    from neutreno.reports.layers import title_of, wide

    if "lam" in table:
        lams = [", as it is" if lam == 0 else f", λ̃ = {lam:g}" for lam in table["lam"]]
        table = table.assign(metric=table["metric"].map(title_of) + lams)
    return wide(table, ["stack", "layer"]).to_markdown(index=False, disable_numparse=True)
