"""Data sets through timm's readers, from local files in the real formats."""

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, assert_one_line_error, encode, make_image, run_forked, write_parquet

from neutreno.data.classification import ImageClassification
from neutreno.data.images import open_split
from neutreno.errors import InputError

SPLITS = {"train": "train", "val": "validation", "test": None}
STREAM = {"splits": SPLITS, "samples": {"train": 40, "val": 6}}
COMMON = {"img_size": 12, "in_chans": 3, "num_classes": 2, "batch_size": 4, "mean": [0.5] * 3, "std": [0.5] * 3}


def opened(world=1, rank=0, **kwargs):
    data = ImageClassification(**{"root": None, **COMMON, **kwargs})
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        world_size=world, global_rank=rank, strategy=strategy, accumulate_grad_batches=1, limit_train_batches=None
    )
    data.setup()
    return data


@pytest.fixture
def hub_folder(tmp_path):
    """A data set as it lies on the hub: four training shards of 10 images, a validation shard of 6."""
    root = tmp_path / "hub"
    for shard in range(4):
        images = [encode(make_image(10 * shard + i), "JPEG") for i in range(10)]
        write_parquet(
            root / f"data/train-0000{shard}-of-00004.parquet", images, [i % 2 for i in range(10)], ["cat", "dog"]
        )
    images = [encode(make_image(100 + i), "JPEG") for i in range(6)]
    write_parquet(root / "data/validation-00000-of-00001.parquet", images, [0, 1] * 3, ["cat", "dog"])
    return root


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


def test_hub_data_set_has_the_pixels_and_labels_of_the_parquet_reader(hub_folder):
    through_timm, ours = opened(reader=f"hfds/{hub_folder}", splits=SPLITS), opened(root=str(hub_folder))
    for split, count in (("train", 40), ("val", 6)):
        a, b = through_timm.splits[split], ours.splits[split]
        assert len(a) == len(b) == count and a.classes == b.classes and np.array_equal(a.labels, b.labels)
        assert all(a[i][0].tobytes() == b[i][0].tobytes() and a[i][1] == b[i][1] for i in range(count))


def test_a_stream_gives_every_sample_once_per_epoch_in_a_new_order(hub_folder):
    data = opened(
        reader=f"hfids/{hub_folder}",
        **STREAM,
        augment={"scale": [1, 1], "ratio": [1, 1], "hflip": 0.0, "color_jitter": 0},
    )
    assert data.steps_per_epoch == 10
    loader, epochs = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        images = torch.cat([images for images, _ in loader])
        assert len(images) == 40 and len(images.flatten(1).unique(dim=0)) == 40
        epochs.append(images)
    assert not torch.equal(*epochs)
    assert torch.equal(*(x.flatten(1).sum(1).sort().values for x in epochs))
    again = opened(
        reader=f"hfids/{hub_folder}",
        **STREAM,
        augment={"scale": [1, 1], "ratio": [1, 1], "hflip": 0.0, "color_jitter": 0},
    )
    assert torch.equal(torch.cat([images for images, _ in again.train_dataloader()]), epochs[0])


def test_columns_of_other_names(tmp_path):
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "train.parquet", [encode(make_image(i)) for i in range(20)], [0, 1] * 10, ["a", "b"])
    table = (
        pq.read_table(tmp_path / "train.parquet").rename_columns(["img", "fine_label"]).replace_schema_metadata(None)
    )
    pq.write_table(table, tmp_path / "train.parquet")
    columns = {"reader_args": {"input_key": "img", "target_key": "fine_label"}}
    with pytest.raises(InputError, match="input_key"):
        opened(reader=f"hfds/{tmp_path}", splits={"train": "train", "val": None, "test": None})
    data = opened(reader=f"hfds/{tmp_path}", splits={"train": "train", "val": None, "test": None}, **columns)
    assert len(data.splits["train"]) == 18


def test_a_stream_of_unknown_length_asks_for_it(hub_folder):
    with pytest.raises(InputError, match=r"give data\.samples\.train"):
        opened(reader=f"hfids/{hub_folder}", splits=SPLITS)


def test_a_stream_validates_on_every_sample(hub_folder):
    data = opened(reader=f"hfids/{hub_folder}", **STREAM)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 6
    assert data.probe_samples(3)[0].shape == (3, 3, 12, 12)


def test_a_webdataset_trains_and_validates(webdataset, tmp_path):
    reader = ["data=imagenet", "data.reader=wds/", f"data.root={webdataset}", "data.repeats=1", "data.num_classes=2"]
    small = ["data.img_size=32", "data.batch_size=4", "data.num_workers=0", "name=x", "trainer.max_epochs=2"]
    done = run_forked("train.py", *TINY, *reader, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert result["steps"] == 10 and result["metrics"]["val/top1"] % 10 == 0  # of ten images


def test_streams_refuse_what_needs_random_access(hub_folder):
    with pytest.raises(InputError, match=r"unset data\.repeats"):
        opened(reader=f"hfids/{hub_folder}", **STREAM, repeats=3)
    with pytest.raises(InputError, match=r"unset data\.train_samples"):
        opened(reader=f"hfids/{hub_folder}", **STREAM, train_samples=3)
    with pytest.raises(InputError, match="repeats samples when several processes"):
        data = ImageClassification(**{"root": str(hub_folder), **COMMON, "reader": "wds/"})
        data.trainer = SimpleNamespace(world_size=2, global_rank=0)
        data.val_dataloader()


def test_torchvisions_fashion_mnist_from_its_own_files(tmp_path):
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 40), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = bytes(i % 10 for i in range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + labels)
    shape = {"img_size": 28, "in_chans": 1, "num_classes": 10, "mean": [0.3], "std": [0.3], "val_fraction": 0.25}
    splits = {"train": "train", "val": None, "test": "test"}
    data = opened(root=str(tmp_path), reader="torch/fashion_mnist", splits=splits, **shape)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 30, "val": 10, "test": 10}
    image, label = data.splits["test"][3]
    assert image.mode == "L" and np.array_equal(np.asarray(image), images[3]) and label == 3
    assert data.eval_transform()(image).shape == (1, 28, 28)


@pytest.mark.parametrize(
    "reader, words",
    [
        ("hfds/ILSVRC/imagenet-1k", ["data.reader=hfds/ILSVRC/imagenet-1k", "hf auth login", "data.root=FOLDER"]),
        ("torch/cifar10", ["data.reader=torch/cifar10", "not found"]),
        ("nonsense", ["data.reader=nonsense", "hfids/"]),
    ],
)
def test_no_access_is_said_in_a_line(tmp_path, reader, words):
    arguments = ["data=imagenet", f"data.reader={reader}", f"data.root={tmp_path}", "name=x"]
    assert_one_line_error(run_forked("train.py", *arguments, cwd=tmp_path), *words)


def test_chosen_classes_keep_their_images_and_are_renumbered(image_folders):
    data = opened(root=str(image_folders), classes=["dog", "cat"])
    original = open_split(image_folders, "train")
    assert data.splits["train"].classes == ["dog", "cat"] and len(data.splits["train"]) == 12
    image, label = data.splits["train"][0]
    assert original[0][1] == 0 and label == 1 and image.tobytes() == original[0][0].tobytes()
    with pytest.raises(InputError, match="no class cow"):
        opened(root=str(image_folders), classes=["cat", "cow"])


def test_classes_of_the_hubs_imagenet_are_named_by_synset(tmp_path):
    """There classes carry names in words, and the test split no labels."""
    from timm.data import ImageNetInfo

    words, image = [f"class in words {i}" for i in range(1000)], encode(make_image(0))
    for split, labels in (("train", list(range(1000)) * 2), ("validation", range(1000)), ("test", [-1] * 5)):
        labels = list(labels)
        write_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", [image] * len(labels), labels, words)
    chosen = [ImageNetInfo().label_names()[i] for i in (7, 3)]
    data = opened(root=str(tmp_path), classes=chosen)
    assert {k: v and len(v) for k, v in data.splits.items()} == {"train": 4, "val": 2, "test": None}
    assert data.splits["train"].classes == chosen and sorted(data.splits["train"].labels) == [0, 0, 1, 1]


def test_a_corrupt_image_ends_a_stream_in_a_line(hub_folder, tmp_path):
    images = [encode(make_image(i), "JPEG") for i in range(9)] + [encode(make_image(9), "JPEG")[:200]]
    write_parquet(hub_folder / "data/train-00000-of-00004.parquet", images, [0, 1] * 5, ["cat", "dog"])
    data = opened(reader=f"hfids/{hub_folder}", **STREAM)
    with pytest.raises(InputError, match="the stream holds a corrupt image"):
        list(data.train_dataloader())


@pytest.mark.slow
def test_a_stream_is_preflown_and_trained(hub_folder, tmp_path):
    samples = ["data.samples.train=40", "data.samples.val=6", "data.num_workers=0", "data.repeats=1"]
    small = ["data.num_classes=2", "data.img_size=32", "data.batch_size=4", "name=x", "trainer.max_epochs=2"]
    arguments = [*TINY, "data=imagenet", f"data.reader=hfids/{hub_folder}", *samples, *small]
    done = run_forked("train.py", *arguments, "preflight=true", cwd=tmp_path)
    assert done.returncode == 0 and "images/s" in done.stdout and not (tmp_path / "outputs").exists(), done.stderr
    done = run_forked("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "outputs/x/result.json").read_text())["steps"] == 20


def test_train_samples_are_a_fixed_stratified_subset(image_parquet):
    first, second = (opened(root=str(image_parquet), train_samples=10, val_fraction=0.2, seed=s) for s in (0, 1))
    assert np.bincount(first.splits["train"].labels).tolist() == [5, 5] and len(first.splits["val"]) == 4
    pixels = [{d.splits["train"][i][0].tobytes() for i in range(10)} for d in (first, second)]
    assert pixels[0] == pixels[1] and len(pixels[0]) == 10
    assert not pixels[0] & {first.splits["val"][i][0].tobytes() for i in range(4)}
