from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from support import encode, make_image, write_parquet
from torchvision.transforms import v2

import neutreno.data.base
from neutreno.data.classification import ImageClassification
from neutreno.data.digits import Digits
from neutreno.data.image_files import open_split, open_whole
from neutreno.data.images import SPLIT_SEED
from neutreno.data.loading import derive_seed, seed_cpu
from neutreno.errors import InputError
from neutreno.models.segmenter import Segmenter
from neutreno.models.timm import timm_model
from neutreno.models.vit import VisionTransformer
from neutreno.tasks.classification import Classification

SHAPE = {"img_size": 12, "in_chans": 3, "num_classes": 2, "batch_size": 4}
NORM = {"mean": [0.5] * 3, "std": [0.5] * 3}


def images(root, **kwargs):
    data = ImageClassification(root=root and str(root), **{**SHAPE, **NORM, **kwargs})
    data.setup()
    return data


def digits(**kwargs):
    data = Digits(img_size=8, in_chans=1, num_classes=10, **kwargs)
    data.setup()
    return data


def test_digits_split_is_fixed_disjoint_complete_and_stratified():
    splits, other = digits(seed=0).splits, digits(seed=5).splits
    assert {k: len(v) for k, v in splits.items()} == {"train": 1257, "val": 270, "test": 270}
    assert all(torch.equal(splits[k].images, other[k].images) for k in splits)
    together = torch.cat([split.images for split in splits.values()]).sum(0)
    from sklearn.datasets import load_digits

    np.testing.assert_allclose(together[0].double(), load_digits().images.sum(0) / 16, rtol=1e-5)
    for split in splits.values():
        counts = np.bincount(split.labels)
        assert counts.max() - counts.min() <= 0.05 * len(split)


def test_digits_are_normalised_by_the_training_split():
    data = digits()
    x = torch.stack([data.eval_transform()(image) for image, _ in data.splits["train"]])
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01


def test_probe_samples_is_the_same_for_every_seed_and_spread_over_the_set():
    first, second = digits(seed=0).probe_samples(16)[0], digits(seed=9).probe_samples(16)[0]
    assert torch.equal(first, second) and first.shape == (16, 1, 8, 8)
    assert len(digits().probe_samples(10_000)[0]) == 270


def test_class_folders(image_folders):
    data = images(image_folders)
    assert {k: v and len(v) for k, v in data.splits.items()} == {"train": 12, "val": 4, "test": None}
    assert not data.has_test
    assert data.splits["train"].classes == ["cat", "dog"]
    image, label = data.splits["train"][11]
    assert label == 1 and image.tobytes() == make_image(105).tobytes()


def test_parquet_reads_the_same_pixels_and_holds_out_validation(image_parquet):
    data = images(image_parquet, val_fraction=0.2)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 16, "val": 4, "test": 4}
    assert data.has_test and data.splits["train"].classes == ["cat", "dog"]
    assert data.splits["test"][3][0].tobytes() == make_image(3).tobytes()
    assert np.bincount(data.splits["val"].labels).tolist() == [2, 2]
    seen = {data.splits[k][i][0].tobytes() for k in ("train", "val") for i in range(len(data.splits[k]))}
    assert len(seen) == 20


def test_a_test_split_without_labels_is_not_used(image_parquet):
    write_parquet(image_parquet / "test-00000-of-00001.parquet", [encode(make_image(0))], [-1], ["cat", "dog"])
    assert not images(image_parquet).has_test


def test_imagenets_flat_test_folder_is_not_used(image_folders):
    (image_folders / "test").mkdir()
    make_image(0).save(image_folders / "test" / "ILSVRC2012_test_00000001.JPEG")
    assert not images(image_folders).has_test


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val", "VALID"])
def test_names_of_the_validation_split(image_folders, name):
    (image_folders / "val").rename(image_folders / name)
    assert len(open_split(image_folders, "val")) == 4


@pytest.mark.parametrize("name", ["test", "testing", "Test"])
def test_names_of_the_test_split(image_folders, name):
    (image_folders / "val").rename(image_folders / name)
    (image_folders / "train").rename(image_folders / "Training")
    data = images(image_folders)
    assert len(data.splits["test"]) == 4 and len(data.splits["train"]) + len(data.splits["val"]) == 12


@pytest.mark.parametrize("form", ["{}.parquet", "{}-0.parquet", "{}_0.parquet", "{}0.parquet", "data/{}_a.PARQUET"])
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Dev", "Testing")])
def test_names_of_parquet_files_of_splits(tmp_path, form, names):
    (tmp_path / "data").mkdir()
    for name, count in zip(names, (8, 4, 2), strict=True):
        table_of(tmp_path / form.format(name), [0, 1] * (count // 2))
    (tmp_path / "._train.parquet").write_bytes(b"junk")
    assert {name: len(split) for name, split in images(tmp_path).splits.items()} == {"train": 8, "val": 4, "test": 2}


def test_shards_are_read_together_and_in_order(tmp_path):
    for i in range(3):
        table_of(tmp_path / f"train_{i}.parquet", [0, 1, i % 2])
    assert open_split(tmp_path, "train").labels.tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("other", ["training", "Train", "train.parquet", "train-0.parquet", "data/train-0.parquet"])
def test_a_split_that_is_there_twice_is_refused(image_folders, other):
    if other.endswith(".parquet"):
        (image_folders / other).parent.mkdir(exist_ok=True)
        table_of(image_folders / other, [0, 1])
    else:
        (image_folders / other).mkdir()
    with pytest.raises(InputError, match=r"images holds .*rain.* and .*rain.*, each a train split; keep one"):
        images(image_folders)


@pytest.mark.parametrize("name", ["test_set", "Test-Images", "my dev", "trainset", "valid2"])
def test_a_folder_named_much_like_a_split_is_no_class(tmp_path, name):
    folders(tmp_path / "pets", cat=9, **{name: 9})
    with pytest.raises(InputError, match=rf"holds {name}; if that is meant as a split, rename it \((test|val|train)\)"):
        images(tmp_path / "pets")


def test_words_that_hold_a_splits_name_are_classes(tmp_path):
    root = folders(tmp_path / "pets", **{"strained": 9, "valley": 9, "protest": 9, "device": 9})
    assert len(images(root, num_classes=None).splits["train"].classes) == 4


def test_in_train_a_class_may_be_named_like_a_split(image_folders):
    for split in ("train", "val"):
        (image_folders / split / "dog").rename(image_folders / split / "bullet_train")
    assert images(image_folders).splits["train"].classes == ["bullet_train", "cat"]


def test_a_parquet_file_named_much_like_a_split_is_not_trained_on(tmp_path):
    for name in ("pets", "pets_test", "pets_dev"):
        table_of(tmp_path / f"{name}.parquet", [0, 1] * 5)
    said = r"holds pets_dev\.parquet, pets_test\.parquet; .* \(val\.parquet, test\.parquet\); if not, move .*/train"
    with pytest.raises(InputError, match=said):
        images(tmp_path)


def test_what_seems_to_be_a_missing_split_is_said_beside_training_images(image_folders):
    for name in ("test_set", "val_old"):
        (image_folders / name).mkdir()
    assert images(image_folders).notes[0] == "test_set is not read; if it is the test split, rename it test"
    notes = images(image_folders, splits={"test": None}).notes
    assert not any("is not read" in note for note in notes)


@pytest.mark.parametrize("splits", [None, {"test": None}])
def test_class_folders_beside_a_test_folder_are_to_be_moved(tmp_path, splits):
    root = folders(tmp_path / "pets", cat=9, dog=9)
    folders(root / "test", cat=2, dog=2)
    with pytest.raises(
        InputError, match=r"pets holds cat, dog beside a val or test split; move them into .*pets/train"
    ):
        images(root, splits=splits)


def test_all_class_folders_are_counted_and_a_few_named(tmp_path):
    data = images(folders(tmp_path / "pets", ant=2, bee=2, cat=2, dog=2), num_classes=None)
    assert "4 classes: ant, bee, cat, …" in data.notes


def test_transforms_give_normalised_tensors(image_folders):
    data = images(image_folders, augment={"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 1.0}, crop_padding=2)
    for transform in (data.train_transform(), data.eval_transform()):
        x = transform(data.splits["train"][0][0])
        assert x.shape == (3, 12, 12) and x.dtype == torch.float32
    assert data.eval_transform()(data.splits["train"][0][0]).abs().max() <= 1


@pytest.mark.parametrize(
    "words, bits",
    [("m10-inc1", 0), ("m9-inc1", 1), ("m5-inc1", 2), ("m0-inc1", 4), ("m15-mmax20-inc1", 0), ("m30-mmax30", 8)],
)
def test_every_magnitude_of_randaugment_posterizes(image_folders, words, bits):
    data = images(image_folders, augment={"auto_augment": f"rand-{words}"})
    data.setup()
    operations = next(part for part in data.train_transform().transforms if hasattr(part, "ops")).ops
    posterize = next(operation for operation in operations if operation.name.startswith("Posterize"))
    posterize.prob = 1.0
    image = make_image(3, 16)
    assert np.array_equal(posterize(image), np.asarray(image) & (256 - 2 ** (8 - bits)))


def test_missing_root_says_what_to_give():
    with pytest.raises(InputError, match=r"data\.root=FOLDER"):
        ImageClassification(root=None, **SHAPE, **NORM).setup()
    with pytest.raises(InputError, match=r"data\.root=nowhere is not a folder"):
        images("nowhere")


def test_folder_without_a_training_split(tmp_path):
    with pytest.raises(InputError, match="no training data"):
        images(tmp_path)


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    make_image(0).save(tmp_path / "train" / "lonely.png")
    with pytest.raises(InputError, match="holds no class folders"):
        images(tmp_path)


def test_class_folder_without_images(image_folders):
    (image_folders / "train" / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        images(image_folders)


def test_another_number_of_classes(image_folders):
    with pytest.raises(InputError, match=r"holds 2 classes, data\.num_classes=10; set data\.num_classes=2"):
        images(image_folders, num_classes=10)


def test_splits_of_other_classes(image_folders):
    (image_folders / "val" / "cat").rename(image_folders / "val" / "cow")
    with pytest.raises(InputError, match="differ in their classes"):
        images(image_folders)


@pytest.mark.parametrize("content, reason", [(b"", "is empty"), (b"not an image", "is not a readable image")])
def test_a_broken_image_is_named(image_folders, content, reason):
    broken = image_folders / "train" / "cat" / "0.png"
    broken.write_bytes(content)
    with pytest.raises(InputError, match=f"{broken} {reason}"):
        images(image_folders).splits["train"][0]


def test_a_truncated_image_is_named(image_folders):
    broken = image_folders / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=str(broken)):
        images(image_folders).splits["train"][0]


def test_a_broken_image_in_parquet_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encode(make_image(0)), b"junk"] * 10, [0, 1] * 10, ["a", "b"])
    data = images(tmp_path)
    with pytest.raises(InputError, match="row 1"):
        open_split(tmp_path, "train")[1]
    assert len(data.splits["train"]) == 18


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 junk")
    with pytest.raises(InputError, match=r"train\.parquet as parquet"):
        images(tmp_path)


def test_parquet_of_other_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="expected columns 'image' and 'label', found text"):
        images(tmp_path)


def test_an_unknown_interpolation_is_said(image_folders):
    with pytest.raises(InputError, match="transforms cannot be built"):
        images(image_folders, interpolation="foo")


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_counts_every_sample_once(world):
    data, seen = digits(eval_batch_size=7), []
    for rank in range(world):
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
        seen += [image for images, _ in data.val_dataloader() for image in images]
    expected = torch.stack([data.eval_transform()(image) for image, _ in data.splits["val"]])
    assert len(seen) == 270 and torch.equal(
        torch.stack(seen).sum(0).round(decimals=2), expected.sum(0).round(decimals=2)
    )


def folders(root, **classes):
    """``root/CLASS/IMAGE``, so many images in each class."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            make_image(1000 * number + i).save(root / name / f"{i}.png")
    return root


def test_class_folders_without_splits_are_training_images_of_which_some_are_held_out(tmp_path):
    data = images(folders(tmp_path / "pets", cat=30, dog=10), num_classes=None)
    assert {k: v and len(v) for k, v in data.splits.items()} == {"train": 36, "val": 4, "test": None}
    assert data.num_classes == 2 and data.model_arguments() == {"num_classes": 2}
    assert np.bincount(data.splits["val"].labels).tolist() == [3, 1]
    assert data.notes[0] == "no val split: 4 of 40 training images are held out (data.val_fraction)"
    assert data.notes[1] == "2 classes: cat, dog"
    assert data.notes[2].startswith("no test split: the figures at the end are the validation split's")


def test_the_images_held_out_are_the_same_for_every_seed(tmp_path):
    root = folders(tmp_path / "pets", cat=7, dog=3, newt=1)
    held = [[image.tobytes() for image, _ in images(root, num_classes=None, seed=s).splits["val"]] for s in (0, 9)]
    assert held[0] == held[1]


def test_of_a_class_of_few_images_one_is_held_out_and_of_one_image_none(tmp_path):
    data = images(folders(tmp_path / "pets", cat=40, dog=3, newt=2, olm=1), num_classes=None)
    assert np.bincount(data.splits["val"].labels, minlength=4).tolist() == [4, 1, 1, 0]
    assert np.bincount(data.splits["train"].labels).tolist() == [36, 2, 1, 1]
    assert data.notes[0].startswith("no val split: 6 of 46 training images are held out")


def test_one_image_of_a_small_class_is_held_out_beside_a_large_one(tmp_path):
    data = images(folders(tmp_path / "pets", cat=100, dog=3), num_classes=None)
    assert np.bincount(data.splits["val"].labels).tolist() == [10, 1]


def test_where_every_class_gets_its_share_the_draw_is_scikit_learns(tmp_path):
    data = images(folders(tmp_path / "pets", cat=10, dog=10), num_classes=None, val_fraction=0.3)
    drawn = train_test_split(range(20), stratify=[0] * 10 + [1] * 10, test_size=0.3, random_state=SPLIT_SEED)[1]
    expected = [make_image(i if i < 10 else 990 + i).tobytes() for i in drawn]
    assert [image.tobytes() for image, _ in data.splits["val"]] == expected


def test_nothing_to_hold_out_is_said(tmp_path):
    root = folders(tmp_path / "pets", cat=1, dog=1)
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.1 of 2 images leaves none to validate on; give a val"):
        images(root, num_classes=None, batch_size=1)
    with pytest.raises(InputError, match=r"data\.val_fraction=0 of"):
        images(folders(tmp_path / "more", cat=9, dog=9), num_classes=None, val_fraction=0.0)


def test_parquet_without_splits(tmp_path):
    write_parquet(tmp_path / "all.parquet", [encode(make_image(i)) for i in range(20)], [0, 1] * 10, ["a", "b"])
    data = images(tmp_path, num_classes=None)
    assert {k: v and len(v) for k, v in data.splits.items()} == {"train": 18, "val": 2, "test": None}


def test_a_hub_data_sets_splits_are_found_by_their_usual_names(hub_folder):
    data = images(None, num_classes=None, reader=f"hfds/{hub_folder}")
    assert {k: v and len(v) for k, v in data.splits.items()} == {"train": 40, "val": 6, "test": None}
    assert data.num_classes == 2 and data.splits["train"].classes == ["cat", "dog"]


def test_a_hub_data_set_of_other_splits_names_them(tmp_path):
    write_parquet(tmp_path / "hub/data/test-0.parquet", [encode(make_image(0))], [0], ["a", "b"])
    said = r"data\.reader=hfds/.*hub has the splits test; name those to use, 'data\.splits="
    with pytest.raises(InputError, match=said):
        images(None, num_classes=None, reader=f"hfds/{tmp_path}/hub")


def test_a_split_that_lacks_a_class_is_numbered_as_the_training_images(image_folders):
    for i in range(2):
        (image_folders / "val/cat" / f"{i}.png").unlink()
    (image_folders / "val/cat").rmdir()
    data = images(image_folders)
    assert data.splits["val"].labels.tolist() == [1, 1] and data.splits["val"].classes == ["cat", "dog"]


def test_hidden_paths_and_those_of_macos_are_no_data(tmp_path):
    root = folders(tmp_path / ".cache/pets", cat=6, dog=6, __MACOSX=3)
    for junk in (".trash/0.png", "cat/.ipynb_checkpoints/0.png", "cat/._0.png", "dog/__MACOSX/0.png"):
        (root / junk).parent.mkdir(exist_ok=True)
        make_image(99).save(root / junk)
    whole = open_whole(root)
    assert whole.classes == ["cat", "dog"] and len(whole) == 12


def test_a_single_class_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds one class, cat; a classifier needs two or more"):
        images(folders(tmp_path / "pets", cat=20), num_classes=None)


def test_a_test_folder_that_cannot_be_read_is_left_out_and_said(image_folders):
    (image_folders / "test").mkdir()
    make_image(0).save(image_folders / "test/0.png")
    data = images(image_folders)
    assert not data.has_test and data.notes[0].startswith("the test split is not used: ")


def test_a_test_table_without_labels_is_left_out_and_said(image_parquet):
    import pyarrow.parquet as pq

    path = image_parquet / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).select(["image"]).replace_schema_metadata(None), path)
    data = images(image_parquet)
    assert not data.has_test and "the test split is not used: " in data.notes[0]


@pytest.mark.parametrize("name", ["test/cat", "test/.hidden"])
def test_an_empty_class_folder_is_refused_in_test_too(image_folders, name):
    (image_folders / name).mkdir(parents=True)
    if name == "test/.hidden":
        assert not images(image_folders).has_test
    else:
        with pytest.raises(InputError, match="cat; remove these folders, or put images into them"):
            images(image_folders)


def test_a_hub_data_set_with_two_names_for_a_split_asks_which(hub_folder):
    splits = {"train": "data/train-*", "validation": "data/validation-*", "dev": "data/validation-*"}
    files = "".join(f"  - {{split: {name}, path: '{path}'}}\n" for name, path in splits.items())
    (hub_folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    with pytest.raises(InputError, match="has the splits train, validation, dev; name those to use"):
        images(None, reader=f"hfds/{hub_folder}")
    chosen = images(None, reader=f"hfds/{hub_folder}", splits={"train": "train", "val": "dev", "test": None})
    assert len(chosen.splits["val"]) == 6


def test_a_stream_does_not_tell_its_classes(tmp_path):
    with pytest.raises(InputError, match=r"is a stream, which tells no classes: set data\.num_classes"):
        images(tmp_path, num_classes=None, reader="wds/", splits={"train": "train", "val": "val"})


def test_all_that_does_not_fit_the_images_is_said_at_once(image_folders):
    with pytest.raises(InputError) as error:
        images(image_folders, num_classes=3, batch_size=100, interpolation="foo")
    classes, first, second = str(error.value).splitlines()
    assert classes.endswith("holds 2 classes, data.num_classes=3; set data.num_classes=2")
    assert first == "data.batch_size=100 is larger than the training set of 12; type data.batch_size=8, or less"
    assert second.startswith("the transforms cannot be built")


def test_auto_asks_for_the_loading_processes_that_the_machine_has_cores_for(monkeypatch):
    monkeypatch.setattr(neutreno.data.base, "suggested_max_num_workers", lambda processes: 16 // processes - 1)
    data = digits(num_workers="auto")
    assert data.workers == neutreno.data.base.MOST_WORKERS == 8
    data.trainer = SimpleNamespace(num_devices=4)
    assert data.workers == 3 and digits(num_workers=0).workers == 0
    with pytest.raises(InputError, match="num_workers=many"):
        digits(num_workers="many")


@pytest.mark.parametrize("model", [VisionTransformer, Segmenter, partial(timm_model, "test_vit")])
def test_a_model_that_nobody_tells_its_classes_is_refused(model):
    with pytest.raises(InputError, match="num_classes=None is not a whole number"):
        model(num_classes=None)


def test_a_task_without_a_number_of_classes_takes_the_models():
    model = VisionTransformer("mini", img_size=12, patch_size=4, depth=1, num_classes=3)
    assert Classification(model, num_classes=None).metrics["val_"]["raw"]["top1"].num_classes == 3
    with pytest.raises(InputError, match=r"task\.num_classes is not set, and the model does not say it"):
        Classification(torch.nn.Identity(), num_classes=None)


def table_of(path, labels, names=None):
    """A parquet file of one image for each label."""
    import pyarrow.parquet as pq

    write_parquet(path, [encode(make_image(i)) for i in range(len(labels))], labels, names or ["a", "b"])
    if names is None:  # its labels are plain numbers
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def pixels(data, split):
    return {(image.tobytes(), label) for image, label in data.splits[split]}


def test_classes_of_parquet_without_names_are_chosen_by_the_labels_that_are_written(tmp_path):
    table_of(tmp_path / "train.parquet", [1, 2, 3] * 4)
    table_of(tmp_path / "val.parquet", [1, 3, 3])
    data = images(tmp_path, classes=["3", "1"])
    assert pixels(data, "train") == {(make_image(i).tobytes(), 1 - (i % 3) // 2) for i in range(12) if i % 3 != 1}
    assert data.splits["val"].labels.tolist() == [1, 0, 0]


def test_labels_of_parquet_may_start_anywhere_have_gaps_and_be_few_in_val(tmp_path):
    table_of(tmp_path / "train.parquet", [10, 2, 7] * 4)
    table_of(tmp_path / "val.parquet", [7, 7, 10])
    data = images(tmp_path, num_classes=None)
    assert data.splits["train"].classes == ["2", "7", "10"] and data.splits["val"].labels.tolist() == [1, 1, 2]
    assert data.splits["train"].labels.tolist() == [2, 0, 1] * 4


@pytest.mark.parametrize("names", [None, ["a", "b"]])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_label_of_no_label_is_refused_and_never_the_last_class(tmp_path, names, split):
    labels = {"train": [0, 1] * 4, "val": [0, 1]}
    labels[split][0] = -1
    table_of(tmp_path / "train.parquet", labels["train"], names)
    table_of(tmp_path / "val.parquet", labels["val"], names and names[::-1])
    with pytest.raises(InputError, match=f"{split} has 1 image of a label outside 0 … 1 .*remove"):
        images(tmp_path)


@pytest.mark.parametrize("rotate, translate, scale", [(30.0, 0.2, 0.3), (0.0, 0.2, 0.0), (0.0, 0.0, 0.0)])
def test_digits_are_moved_in_a_batch_as_torchvision_moves_them_one_by_one(rotate, translate, scale):
    data = digits(rotate=rotate, translate=translate, scale=scale)
    shift, size = (translate, translate) if translate else None, (1 - scale, 1 + scale) if scale else None
    affine = v2.RandomAffine(rotate, shift, size, interpolation=v2.InterpolationMode.BILINEAR)
    one_by_one = v2.Compose([affine, v2.Normalize(data.mean, data.std)])
    training = data._dataset("train", data.train_transform())
    keys = [(7 * i, derive_seed(i)) for i in range(100)]
    batch = training.__getitems__(keys)
    for key, (image, label) in zip(keys, batch, strict=True):
        seed_cpu(key[1])
        raw, same = data.splits["train"][key[0]]
        assert label == same
        torch.testing.assert_close(image, one_by_one(raw), rtol=0, atol=3e-6)
        assert torch.equal(image, training[key][0])  # whatever batch it is in
    moved = {image.numpy().tobytes() for image, _ in training.__getitems__([(7, derive_seed(i)) for i in range(20)])}
    assert (len(moved) > 1) == bool(rotate or translate or scale)


def test_a_subclass_of_digits_may_have_a_transform_of_one_image():
    class Flipped(Digits):
        def train_transform(self):
            return v2.RandomHorizontalFlip(p=1.0)

    data = Flipped(img_size=8, in_chans=1, num_classes=10)
    data.setup()
    ((image, _),) = data._dataset("train", data.train_transform()).__getitems__([(3, 0)])
    assert torch.equal(image, data.splits["train"][3][0].flip(-1))
