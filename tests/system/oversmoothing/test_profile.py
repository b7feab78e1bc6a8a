import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from support import ROOT, TINY, assert_one_line_error, make_image, run_forked
from support.networks import SMALL, hugging_face

import neutreno
from neutreno.oversmoothing.profile import profile


def test_the_import_of_the_package_does_not_load_what_profiles():
    code = "import sys, neutreno; assert 'neutreno.oversmoothing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert neutreno.profile is profile


@pytest.fixture(scope="module")
def local_models(tmp_path_factory):
    """Folders as Hugging Face saves them, with a text and a picture."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("models")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "tokens", "of", "a", "deep", "transformer", "drift"]
    words += ["to", "one", "value"]
    (root / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(root / "vocab.txt"))
    sized = {**SMALL, "vocab_size": len(words)}
    t5_sized = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": len(words)}
    for folder, model in {
        "bert": hugging_face("BertModel", "BertConfig", **sized),
        "t5": hugging_face("T5Model", "T5Config", **t5_sized),
        "vit": hugging_face("ViTModel", "ViTConfig", **SMALL, image_size=32, patch_size=8),
    }.items():
        model.save_pretrained(root / folder)
        tokenizer.save_pretrained(root / folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    (root / "text.txt").write_text("the tokens of a deep transformer\n\ndrift to one value\nthe tokens\n")
    (root / "empty.txt").write_text("\n")
    (root / "images" / "deep").mkdir(parents=True)
    make_image(0, 40).save(root / "images" / "deep" / "0.png")
    make_image(1, 50).save(root / "images" / "1.png")
    return root


def command(*arguments, cwd):
    return run_forked("scripts/profile_model.py", *map(str, arguments), cwd=cwd)


@pytest.mark.parametrize(
    "arguments, said, rows, tokens",
    [
        (["hf:bert", "text.txt"], "3 lines of text.txt, 18 tokens", 4 * 3, 6),
        (["hf:t5", "text.txt", "--samples", "2"], "2 lines of text.txt", 2 * 3 * 3, 7),
        (["hf:vit", "images"], "2 images of images", 4 * 3, 17),
        (["hf:bert", "--tokens", "9", "--metrics", "cosine"], "64 sequences of 9 random token ids", 4, 9),
        (["hf:vit", "--random-weights", "--layers", "layers.1,layers.2"], "random weights; 64 images of random", 9, 17),
        (["timm:test_vit", "images", "--random-weights", "--lam", "0.6"], "2 images of images", 7 * 3 * 2, 101),
        (
            ["timm:test_vit", "--random-weights", "--lam", "0", "--samples", "2"],
            "2 images of random pixels",
            7 * 3,
            101,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_writes_table_and_figure_and_says_what_it_measured(
    local_models, arguments, said, rows, tokens
):
    done = command(*arguments, "--output", "out", cwd=local_models)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(arguments[0]) and said in done.stdout.splitlines()[0]
    table = pd.read_csv(local_models / "out.csv")
    assert len(table) == rows and table.tokens.max() == tokens and np.isfinite(table["mean"]).all()
    assert f"| {table['stack'][0]} " in done.stdout and " ± " in done.stdout
    assert (local_models / "out.png").read_bytes().startswith(b"\x89PNG")
    if "0.6" in arguments:
        first, second = (table[table.lam == lam] for lam in (0, 0.6))
        changed = (first["mean"].values != second["mean"].values).reshape(3, 7)
        assert changed[:, 2:].all() and not changed[:, :2].any()  # the first layer has no term


def test_a_run_folder_is_profiled_on_its_own_data(tmp_path):
    assert run_forked("train.py", *TINY, "trainer.max_epochs=1", "name=run", cwd=tmp_path).returncode == 0
    run = tmp_path / "outputs" / "run"
    done = command("outputs/run", "--samples", "8", "--metrics", "cosine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    probed = pd.read_csv(run / "oversmoothing.csv").query("subset == 'all' and metric == 'cosine'")
    found = pd.read_csv(tmp_path / "outputs/profile.csv").query("subset == 'all'")
    last = probed[probed.step == probed.step.max()]
    assert found["mean"].tolist() == pytest.approx(last["mean"].tolist(), abs=1e-6)
    assert_one_line_error(command("outputs/run", "x", cwd=tmp_path), "x: no such file or folder")
    assert_one_line_error(command("outputs/run", "outputs", cwd=tmp_path), "leave outputs out")
    assert_one_line_error(command("outputs/run", "--lam", "0.6", cwd=tmp_path), "NeutrenoAttention", "choose its λ̃")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["timm:no_such_model"], ["timm:no_such_model is not a timm model"]),
        (["timm:test_vit.nope", "--random-weights"], ["timm:test_vit.nope: Invalid pretrained tag"]),
        (["hf:no/such-model"], ["hf:no/such-model: no AutoModel of it", "--random-weights"]),
        (["hf:images", "--random-weights"], ["hf:images: no AutoConfig of it"]),
        (["outputs/none"], ["outputs/none is not a run folder"]),
        (["hf:bert", "none.txt"], ["none.txt: no such file or folder"]),
        (["hf:bert", "empty.txt"], ["empty.txt holds no text"]),
        (["hf:bert", "images/1.png"], ["images/1.png is not UTF-8 text"]),
        (["hf:bert", "images"], ["images: Is a directory"]),
        (["hf:vit", "text.txt"], ["text.txt is not a folder of images"]),
        (["hf:vit", "bert"], ["bert holds no images"]),
        (["hf:bert", "--lam", "abc"], ["--lam='abc' is not a finite number"]),
        (["hf:bert", "--lam", "-1"], ["--lam=-1.0 is not a finite number"]),
        (["hf:bert", "--lam", "nan"], ["--lam=nan is not a finite number"]),
        (["hf:bert", "--samples", "0"], ["--samples=0 is not a whole number"]),
        (["hf:bert", "--tokens", "1.5"], ["--tokens='1.5' is not a whole number"]),
        (["hf:bert", "--metrics", "cosin"], ["--metrics: no layer-wise metric cosin"]),
        (["hf:bert", "--metrics", "attention_entropy"], ["none of attention_entropy applies"]),
        (["hf:bert", "--layers", "blocks.*"], ["no module named 'blocks.*'", "encoder.layer (3 × BertLayer)"]),
        (["hf:bert", "--device", "none"], ["--device=none: Expected one of cpu, cuda"]),
        (["hf:bert", "--output", "no/folder/here"], ["could not write no/folder/here.csv: no folder no/folder"]),
        (["timm:test_resnet", "--random-weights"], ["no layers found in ResNet"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_the_command_line_cannot_do_is_one_line(local_models, arguments, words):
    done = command(*arguments, cwd=local_models)
    assert done.returncode == 2
    assert_one_line_error(done, *words)
