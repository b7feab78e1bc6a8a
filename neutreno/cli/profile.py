"""Over-smoothing by layer of any model: from timm, Hugging Face or a run folder.

    neutreno profile timm:vit_tiny_patch16_224 FOLDER_OF_IMAGES
    neutreno profile hf:bert-base-uncased TEXT.txt --metrics cosine,effective_rank
    neutreno profile hf:./local_folder TEXT.txt --lam 0.6         as it is, and with NeuTRENO's term
    neutreno profile timm:vit_tiny_patch16_224 --random-weights   no weights, no data, no network
    neutreno profile outputs/RUN                                  on the validation data of the run

Prints a Markdown table and writes PREFIX.csv and PREFIX.png: means over samples, bands of ± one standard deviation.
Without data, random pixels or token ids are used. Each line of a text is a sample, truncated to --tokens tokens.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from neutreno.cli import add_trust, parser_of
from neutreno.errors import InputError, check_number, report
from neutreno.reports.layers import ALL, said_of

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
    if arguments.data is None:
        batch = torch.randn(arguments.samples, *config["input_size"])
        return model, batch, f"{len(batch)} images of random pixels, drawn here"
    batch = torch.stack([create_transform(**config)(image) for image in images(arguments)])
    return model, batch, f"{len(batch)} images of {arguments.data}"


def images(arguments: argparse.Namespace) -> list:
    """Images of a folder and the folders within it, spread evenly over their names."""
    import numpy as np

    from neutreno.data.images import decode

    folder = Path(arguments.data)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(ENDINGS))})")
    chosen = np.linspace(0, len(files) - 1, min(arguments.samples, len(files))).round().astype(int)
    return [decode(files[i], files[i], "RGB") for i in chosen]


def open_hugging_face(name: str, arguments: argparse.Namespace):
    """The same of a Hugging Face model, by its name on the hub or its local folder."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("hf:… needs transformers: pip install 'neutreno[huggingface]'") from error
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

    if arguments.random_weights:
        model = transformers.AutoModel.from_config(fetched("AutoConfig"))
    else:
        model = fetched("AutoModel")
    if model.main_input_name == "pixel_values":
        batch, what = pixels(model, fetched, arguments)
    elif model.main_input_name == "input_ids":
        batch, what = token_ids(model, fetched, arguments)
    else:
        raise InputError(f"hf:{name} takes {model.main_input_name}; this command takes images or text only")
    size = 16
    batches = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, len(next(iter(batch.values()))), size)]
    return model, batches, what


def pixels(model, fetched, arguments: argparse.Namespace):
    import torch

    if arguments.data is None:
        side = getattr(model.config, "image_size", 224)
        sides = list(side) if isinstance(side, list | tuple) else [side, side]
        batch = torch.randn(arguments.samples, getattr(model.config, "num_channels", 3), *sides)
        return {"pixel_values": batch}, f"{len(batch)} images of random pixels, drawn here"
    found = images(arguments)
    batch = fetched("AutoImageProcessor")(found, return_tensors="pt")
    return {"pixel_values": batch["pixel_values"]}, f"{len(found)} images of {arguments.data}"


def token_ids(model, fetched, arguments: argparse.Namespace):
    import torch

    config = model.config.get_text_config()
    most = min(arguments.tokens, getattr(config, "max_position_embeddings", None) or arguments.tokens)
    if arguments.data is None:
        ids = torch.randint(config.vocab_size, (arguments.samples, most))
        batch, what = {"input_ids": ids}, f"{len(ids)} sequences of {most} random token ids, drawn here"
    else:
        try:
            text = Path(arguments.data).read_text()
        except UnicodeDecodeError as error:
            raise InputError(f"{arguments.data} is not UTF-8 text") from error
        except OSError as error:
            raise InputError(f"{arguments.data}: {error.strerror}") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()][: arguments.samples]
        if not lines:
            raise InputError(f"{arguments.data} holds no text")
        tokenizer = fetched("AutoTokenizer")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        encoded = tokenizer(lines, padding=True, truncation=True, max_length=most, return_tensors="pt")
        batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        what = f"{len(lines)} lines of {arguments.data}, {batch['attention_mask'].sum():,} tokens"
    if model.config.is_encoder_decoder:
        batch |= {f"decoder_{name}": value for name, value in batch.items()}
        what += ", the same for the decoder"
    return batch, what


def open_run_folder(folder: str, arguments: argparse.Namespace):
    """The same of a run folder: its last weights, and the validation samples that its probe takes."""
    from neutreno.evaluation.opening import open_run

    if arguments.data is not None or arguments.random_weights:
        given = "--random-weights" if arguments.data is None else arguments.data
        raise InputError(f"{folder} is a run, with its own weights and data; leave {given} out")
    model, data, _ = open_run(folder, trust=arguments.trust)
    samples = data.probe_samples(arguments.samples)
    return model, samples, f"{len(samples[0])} of its validation samples"


def number(name: str, text: str, least: float, integer: bool = False) -> float:
    try:
        value = int(text) if integer else float(text)
    except ValueError:
        value = text
    check_number(name, value, least, integer=integer)
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("profile", __doc__)
    parser.add_argument("model", metavar="MODEL", help="timm:NAME, hf:NAME, hf:FOLDER, or a run folder")
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder of images or text file; default: random inputs")
    parser.add_argument("--lam", help="λ̃: also measure the same weights with NeuTRENO's term")
    parser.add_argument("--metrics", default="cosine,residual,effective_rank", metavar="NAME,…")
    parser.add_argument("--layers", metavar="PATTERN,…", help="names of the layers, e.g. 'encoder.layer.*'")
    parser.add_argument("--samples", default="64", help="default: %(default)s")
    parser.add_argument(
        "--tokens", default="128", help="maximum number of tokens per line of text; default: %(default)s"
    )
    parser.add_argument("--random-weights", action="store_true", help="do not load pretrained weights")
    parser.add_argument("--seed", default="0", help="of random weights and inputs; default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--output", default="profile", metavar="PREFIX", help="default: %(default)s")
    add_trust(parser)
    arguments = parser.parse_args(arguments)
    try:
        arguments.samples = number("--samples", arguments.samples, 1, integer=True)
        arguments.tokens = number("--tokens", arguments.tokens, 2, integer=True)
        seed = number("--seed", arguments.seed, 0, integer=True)
        lam = None if arguments.lam is None else number("--lam", arguments.lam, 0)
        layers = arguments.layers.split(",") if arguments.layers else None
        if arguments.data is not None and not Path(arguments.data).exists():
            raise InputError(f"{arguments.data}: no such file or folder")

        import pandas as pd
        import torch

        from neutreno.files import replacing
        from neutreno.oversmoothing.convert import convert
        from neutreno.oversmoothing.metrics import named_metrics
        from neutreno.oversmoothing.profile import profile
        from neutreno.reports.figures import plot_profile

        metrics = arguments.metrics.split(",")
        named_metrics(metrics, "--metrics")
        torch.manual_seed(seed)
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
        with replacing(Path(f"{arguments.output}.csv")) as file:
            table.to_csv(file, index=False)
        plot_profile(table, f"{arguments.output}.png", title)
        print(f"{title}\n")
        print(markdown(table))
        print(f"\n{arguments.output}.csv, {arguments.output}.png")
    except Exception as error:
        return report(error)
    return 0


def markdown(table) -> str:
    """A row per layer, a column per metric, token subset and λ̃: mean ± standard deviation over samples."""
    spread = ["" if s is None or s != s else f" ± {s:.2g}" for s in table["sd"]]
    shown = table.assign(value=[f"{m:.4g}{s}" for m, s in zip(table["mean"], spread, strict=True)])
    shown["metric"] += ["" if subset == ALL else f", {said_of(subset)}" for subset in table["subset"]]
    if "lam" in table:
        shown["metric"] += [", as it is" if lam == 0 else f", λ̃ = {lam:g}" for lam in table["lam"]]
    columns = list(dict.fromkeys(shown["metric"]))
    wide = shown.pivot_table(index=["stack", "layer"], columns="metric", values="value", aggfunc="first", sort=False)
    return wide.reset_index()[["stack", "layer", *columns]].to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    sys.exit(main())
