"""Data sets through timm's readers, from local files in the real formats."""

import io
import json
import tarfile

import pytest
from support import TINY, assert_one_line_error, encode, make_image, run_forked


@pytest.fixture
def webdataset(tmp_path):
    """Tar shards with ``_info.json``, as timm's ImageNet on the hub is stored."""
    root, info = tmp_path / "wds", {"splits": {}}
    for split, shards in (("train", 2), ("validation", 1)):
        names = []
        for shard in range(shards):
            names.append(f"{split}-{shard}.tar")
            root.mkdir(exist_ok=True)
            with tarfile.open(root / names[-1], "w") as tar:
                for i in range(10):
                    for suffix, content in (("jpg", encode(make_image(i), "JPEG")), ("cls", str(i % 2).encode())):
                        entry = tarfile.TarInfo(f"{shard:02}{i:04}.{suffix}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
        info["splits"][split] = {
            "name": split,
            "num_samples": 10 * shards,
            "filenames": names,
            "shard_lengths": [10] * shards,
        }
    (root / "_info.json").write_text(json.dumps(info))
    return root


def test_a_webdataset_trains_and_validates(webdataset, tmp_path):
    reader = ["data=imagenet", "data.reader=wds/", f"data.root={webdataset}", "data.repeats=1", "data.num_classes=2"]
    small = ["data.img_size=32", "data.batch_size=4", "data.num_workers=0", "name=x", "trainer.max_epochs=2"]
    done = run_forked("train.py", *TINY, *reader, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert result["steps"] == 10 and result["metrics"]["val/top1"] % 10 == 0  # of ten images


@pytest.mark.parametrize(
    "reader, words",
    [
        ("hfds/ILSVRC/imagenet-1k", ["data.reader=hfds/ILSVRC/imagenet-1k", "hf auth login", "data.root=FOLDER"]),
        ("torch/cifar10", ["data.reader=torch/cifar10", "not found"]),
        ("nonsense", ["data.reader=nonsense is not one of timm's", "hfids/"]),
    ],
)
def test_no_access_is_said_in_a_line(tmp_path, reader, words):
    arguments = ["data=imagenet", f"data.reader={reader}", f"data.root={tmp_path}", "name=x"]
    assert_one_line_error(run_forked("train.py", *arguments, cwd=tmp_path), *words)


def test_a_stream_is_preflown_and_trained(hub_folder, tmp_path):
    samples = ["data.samples.train=40", "data.samples.val=6", "data.num_workers=0", "data.repeats=1"]
    small = ["data.num_classes=2", "data.img_size=32", "data.batch_size=4", "name=x", "trainer.max_epochs=2"]
    arguments = [*TINY, "data=imagenet", f"data.reader=hfids/{hub_folder}", *samples, *small]
    done = run_forked("train.py", *arguments, "preflight=true", cwd=tmp_path)
    assert done.returncode == 0 and "images/s" in done.stdout and not (tmp_path / "outputs").exists(), done.stderr
    done = run_forked("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "outputs/x/result.json").read_text())["steps"] == 20
