"""Data sets through timm's readers, from local files in the real formats."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import encode, make_image, write_parquet

from neutreno.data.classification import ImageClassification
from neutreno.data.image_files import open_split
from neutreno.data.loading import CorruptSample
from neutreno.data.readers import Stream
from neutreno.errors import InputError

SPLITS = {"train": "train", "val": "validation", "test": None}
STREAM = {"splits": SPLITS, "samples": {"train": 40, "val": 6}}
COMMON = {"img_size": 12, "in_chans": 3, "num_classes": 2, "batch_size": 4, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(autouse=True)
def _no_long_sleep(monkeypatch):
    """Five seconds at each end of a stream, lest a process ends too soon after it; this one goes on."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def opened(world=1, rank=0, **kwargs):
    data = ImageClassification(**{"root": None, **COMMON, **kwargs})
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        world_size=world, global_rank=rank, strategy=strategy, accumulate_grad_batches=1, limit_train_batches=None
    )
    data.setup()
    return data


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


def test_train_samples_are_a_fixed_stratified_subset(image_parquet):
    first, second = (opened(root=str(image_parquet), train_samples=10, val_fraction=0.2, seed=s) for s in (0, 1))
    assert np.bincount(first.splits["train"].labels).tolist() == [5, 5] and len(first.splits["val"]) == 4
    pixels = [{d.splits["train"][i][0].tobytes() for i in range(10)} for d in (first, second)]
    assert pixels[0] == pixels[1] and len(pixels[0]) == 10
    assert not pixels[0] & {first.splits["val"][i][0].tobytes() for i in range(4)}


IMAGES = [{"bytes": encode(make_image(0)), "path": None}] * 4
COLUMNS = {
    "text labels": ({"label": ["a", "b"] * 2}, "the column label holds string, not integer labels"),
    "float labels": ({"label": [0.0, 1.7] * 2}, "the column label holds (double|float64), not integer labels"),
    "whole float labels": ({"label": [0.0, 1.0] * 2}, "not integer labels"),
    "boolean labels": ({"label": [False, True] * 2}, "not integer labels"),
    "lists of labels": ({"label": [[0], [1]] * 2}, "not integer labels"),
    "a label that is null": ({"label": [0, 1, 0, None]}, "the column label has rows without a label"),
    "null images": ({"image": [None] * 4}, "the column image holds null, not images"),
    "numbers": ({"image": [1, 2, 3, 4]}, "the column image holds int64, not images"),
    "records of numbers": ({"image": [{"bytes": 1}] * 4}, r"the column image holds records of bytes \(int64\)"),
    "other records": ({"image": [{"a": b"x"}] * 4}, "not images"),
    "lists": ({"image": [[1, 2]] * 4}, "not images"),
}


@pytest.mark.parametrize("columns, words", COLUMNS.values(), ids=COLUMNS.keys())
def test_columns_of_a_parquet_file_that_are_no_images_or_labels_are_named(tmp_path, columns, words):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": IMAGES, "label": [0, 1] * 2, **columns}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=words):
        open_split(tmp_path, "train")


def test_a_row_without_an_image_is_a_corrupt_sample(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [*IMAGES[:3], None], "label": [0, 1] * 2}), tmp_path / "train.parquet")
    images = open_split(tmp_path, "train")
    assert images[0][1] == 0
    with pytest.raises(CorruptSample, match="row 3 is empty"):
        images[3]


def test_labels_of_a_stream_are_not_cut_to_whole_numbers():
    with pytest.raises(InputError, match=r"the stream holds the label 0\.7"):
        next(iter(Stream(lambda: Labelled([(make_image(0), 0.7)]), lambda x: x, 2)))


class Labelled(list):
    def set_epoch(self, epoch):
        pass
