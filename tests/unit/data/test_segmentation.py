"""Data for segmentation: transforms of image and mask together, readers, scenes of digits."""

import colorsys
import itertools
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from support import ROOT, encode
from torchvision import tv_tensors

from neutreno.data import digit_scenes
from neutreno.data.digit_scenes import BACKGROUND, DigitScenes
from neutreno.data.digits import split_digits
from neutreno.data.joint_transforms import IGNORE, FitResize, PhotometricDistortion, VariedCrop, fitted_size
from neutreno.data.mask_files import read_mask
from neutreno.data.segmentation import SegmentationFolders
from neutreno.errors import InputError

SMALL = {"img_size": 32, "in_chans": 3, "num_classes": 4, "mean": [0.5] * 3, "std": [0.25] * 3, "batch_size": 2}
PLAIN = {"resize": None, "scale": [1, 1], "flip": 0.0, "photometric": False, "max_class_share": 1.0}
SIZES = [(40, 30), (30, 40), (64, 20), (25, 25), (50, 33)]  # width, height


def make_pair(seed, size=(40, 30), classes=4):
    """An image, and an annotation with every label from 0 to ``classes``."""
    width, height = size
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes + 1, (height, width), dtype=np.uint8)
    labels.flat[: classes + 1] = range(classes + 1)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)), Image.fromarray(labels)


@pytest.fixture
def root(tmp_path):
    """Five images to train, of several sizes, and five to validate."""
    for i, split in enumerate(("training", "validation")):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for j, size in enumerate(SIZES):
            image, annotation = make_pair(10 * i + j, size)
            image.save(tmp_path / f"images/{split}/{j}.{'jpg' if j else 'png'}")
            annotation.save(tmp_path / f"annotations/{split}/{j}.png")
    return tmp_path


def opened(world=1, rank=0, stage="fit", **kwargs):
    data = SegmentationFolders(**{**SMALL, **kwargs})
    data.trainer = SimpleNamespace(
        world_size=world, global_rank=rank, accumulate_grad_batches=1, limit_train_batches=None
    )
    data.setup(stage)
    return data


def scenes(**kwargs):
    counts = {"train_scenes": 30, "val_scenes": 12, "test_scenes": 12, "batch_size": 4}
    data = DigitScenes(**{"img_size": 32, "in_chans": 1, "num_classes": 11, **counts, **kwargs})
    data.setup()
    return data


def as_tensors(image, mask):
    return tv_tensors.Image(torch.as_tensor(image)), tv_tensors.Mask(torch.as_tensor(mask))


def test_label_zero_is_ignored_and_label_i_is_class_i_minus_1(root):
    image, mask = opened(root=str(root)).splits["train"][2]
    labels = np.asarray(Image.open(root / "annotations/training/2.png")).astype(int)
    assert np.array_equal(mask, np.where(labels == 0, IGNORE, labels - 1)) and set(mask.unique().tolist()) > {0, 3, 255}
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(root / "images/training/2.jpg")))


def test_annotations_of_16_bits_and_with_a_palette_read_the_same(root):
    expected = opened(root=str(root)).splits["train"][0][1]
    file = root / "annotations/training/0.png"
    labels = np.asarray(Image.open(file))
    Image.fromarray(labels.astype(np.uint16)).save(file)
    assert Image.open(file).mode == "I;16" and torch.equal(opened(root=str(root)).splits["train"][0][1], expected)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([200, 10, 10, 0, 200, 0, 1, 1, 250, 9, 9, 9, 90, 90, 0])
    palette.save(file)
    assert Image.open(file).mode == "P" and torch.equal(opened(root=str(root)).splits["train"][0][1], expected)


def test_a_hundred_and_more_classes_up_to_the_largest_that_a_byte_holds(root):
    file = root / "annotations/training/0.png"
    labels = np.array(Image.open(file), dtype=np.uint16)
    labels[0, :2] = 0, 255
    Image.fromarray(labels).save(file)
    assert opened(root=str(root), num_classes=255).splits["train"][0][1][0, :2].tolist() == [IGNORE, 254]
    with pytest.raises(InputError, match="num_classes=256 should be less than or equal to 255"):
        opened(root=str(root), num_classes=256)


def test_a_training_batch(root):
    images, masks = next(iter(opened(root=str(root)).train_dataloader()))
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32 and type(images) is torch.Tensor
    assert masks.shape == (2, 32, 32) and masks.dtype == torch.int64 and type(masks) is torch.Tensor
    assert set(masks.unique().tolist()) <= {0, 1, 2, 3, IGNORE}


@pytest.mark.parametrize("size", [(480, 640), (640, 480)])
def test_sizes_fit_the_limits_in_both_orientations(size):
    portrait = size[0] > size[1]
    assert fitted_size(*size, (2048, 512)) == ((683, 512) if portrait else (512, 683))  # the short side decides
    assert fitted_size(*size, (600, 512)) == ((600, 450) if portrait else (450, 600))  # the long side does
    assert fitted_size(*size, (2048, 512), 0.5) == ((341, 256) if portrait else (256, 341))
    assert fitted_size(*size, None, 0.5) == (size[0] // 2, size[1] // 2)


def test_no_side_shrinks_to_nothing():
    assert fitted_size(1, 5000, (2048, 512)) == (1, 2048)


def test_images_are_resized_bilinearly_without_antialiasing_and_masks_by_nearest_neighbour():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 60, 90), generator=generator).byte()
    mask = torch.randint(5, (60, 90), generator=generator).byte() * 50
    resized, small = FitResize((45, 30))(*as_tensors(image, mask))
    assert resized.shape == (3, 30, 45) and small.shape == (30, 45)
    # Halved without antialiasing, a pixel is the mean of the two by two around its centre.
    expected = image.float().unflatten(1, (30, 2)).unflatten(3, (45, 2)).mean((2, 4))
    assert (resized - expected).abs().max() <= 1
    assert torch.equal(small, mask[::2, ::2])


def test_image_and_mask_stay_aligned_under_all_transforms(root):
    """The image tells each pixel's place, and the mask is a function of the place."""
    y, x = np.mgrid[:240, :250].astype(np.uint8)
    labels = (1 + x // 50 + 5 * (y // 60)).astype(np.uint8)
    for i in range(5):
        (root / f"images/training/{i}.jpg").unlink(missing_ok=True)
        Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1)).save(root / f"images/training/{i}.png")
        Image.fromarray(labels).save(root / f"annotations/training/{i}.png")
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3, "photometric": False, "num_classes": 20, "img_size": 128}
    data = opened(root=str(root), resize=[500, 120], **plain)
    dataset, seen, flipped = data._dataset("train", data.train_transform()), set(), 0
    for seed in range(40):
        image, mask = dataset[0, seed]
        columns, rows = (image[:2] * 255).round().int()
        counted = mask != IGNORE
        # Away from the borders of the classes, which nearest neighbour and bilinear place a little differently.
        inner = counted & (columns % 50 > 3) & (columns % 50 < 46) & (rows % 60 > 3) & (rows % 60 < 56)
        assert inner.sum() > 0.5 * counted.sum()
        assert torch.equal(mask[inner], (columns // 50 + 5 * (rows // 60))[inner].long())
        seen |= set(mask[counted].tolist())
        flipped += bool(columns[0, 0] > columns[0, 20])
    assert seen == set(range(20)) and 8 <= flipped <= 32


def test_no_class_fills_more_than_its_share_of_a_crop():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 1
    image, mask = as_tensors(np.zeros((3, 100, 100), np.uint8), mask)
    largest = {}
    for share, tries in ((0.75, 1000), (0.75, 3), (1.0, 1000)):
        torch.manual_seed(0)
        crops = [VariedCrop(24, share, tries)(image, mask)[1] for _ in range(50)]
        largest[share, tries] = [crop.flatten().bincount().max().item() / 24**2 for crop in crops]
    assert max(largest[0.75, 1000]) < 0.75
    assert max(largest[0.75, 3]) == 1  # no try succeeded: the last one is taken
    assert np.mean(largest[0.75, 3]) < np.mean(largest[1.0, 1000])


def test_ignored_pixels_do_not_count_in_a_crops_shares():
    """Nine tenths ignored, the rest equal parts of two classes: every crop is good enough, so none is drawn anew."""
    mask = np.full((100, 100), IGNORE, np.uint8)
    mask[::10, ::2], mask[::10, 1::2] = 0, 1
    sample = as_tensors(np.zeros((3, 100, 100), np.uint8), mask)
    crops = []
    for share in (0.75, 1.0):
        torch.manual_seed(3)
        crops.append(VariedCrop(40, share, 10).make_params([*sample]))
    assert crops[0] == crops[1]


def test_a_crop_with_nothing_to_learn_from_is_drawn_anew():
    mask = np.full((100, 100), IGNORE, np.uint8)
    mask[:, 90:95], mask[:, 95:] = 0, 1
    sample = as_tensors(np.zeros((3, 100, 100), np.uint8), mask)
    torch.manual_seed(0)
    assert all((VariedCrop(20, 0.75, 1000)(*sample)[1] != IGNORE).any() for _ in range(30))


def test_smaller_images_are_padded_right_and_below_by_what_is_ignored(root):
    data = opened(root=str(root), **PLAIN)
    image, mask = data._dataset("train", data.train_transform())[3, 0]  # 25 x 25
    original, labels = data.splits["train"][3]
    assert torch.equal(mask[:25, :25], labels.long())
    assert torch.allclose(image[:, :25, :25], (original / 255 - 0.5) / 0.25, atol=1e-5)
    assert (mask[25:] == IGNORE).all() and (mask[:, 25:] == IGNORE).all()
    assert not image[:, 25:].any() and not image[:, :, 25:].any()


def distorted(image, **params):
    params = {"brightness": None, "contrast": None, "saturation": None, "hue": None, "contrast_first": True, **params}
    return PhotometricDistortion().transform(tv_tensors.Image(image), params)


def test_brightness_is_added_and_contrast_multiplies():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(distorted(image, brightness=0.1), (image + 0.1).clamp(0, 1))
    assert torch.allclose(distorted(image, contrast=1.5), (image * 1.5).clamp(0, 1))


def test_saturation_and_hue_are_those_of_hsv():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    image[:, 0, 0], image[:, 0, 1] = 0.0, 0.5  # without a hue
    for saturation, hue in ((0.5, -0.1), (1.5, 0.1), (1.5, None), (None, 0.07)):
        out = distorted(image, saturation=saturation, hue=hue).flatten(1).T
        for before, after in zip(image.flatten(1).T.tolist(), out.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*before)
            expected = colorsys.hsv_to_rgb((h + (hue or 0)) % 1, min(1, s * (saturation or 1)), v)
            assert after == pytest.approx(expected, abs=1e-4)


def test_contrast_comes_before_or_after_the_rest():
    image = torch.full((3, 2, 2), 0.8)
    image[1] = 0.4
    first = distorted(image, contrast=1.5, saturation=0.5)
    last = distorted(image, contrast=1.5, saturation=0.5, contrast_first=False)
    assert first[1, 0, 0].item() == pytest.approx(1 - 0.4 * 0.5) and last[1, 0, 0].item() == pytest.approx(0.6 * 1.5)


def test_every_distortion_is_drawn_half_of_the_time_within_its_range():
    torch.manual_seed(0)
    draws = [PhotometricDistortion().make_params([]) for _ in range(400)]
    ranges = {"brightness": (-32 / 255, 32 / 255), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        values = [d[name] for d in draws if d[name] is not None]
        assert 150 < len(values) < 250 and low <= min(values) < low + 0.05 * (high - low) and max(values) <= high
    assert 150 < sum(d["contrast_first"] for d in draws) < 250


def test_grey_images_train_too(root):
    data = opened(root=str(root), in_chans=1, mean=[0.5], std=[0.25])
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 1, 32, 32) and data.val_dataloader().dataset[0][0].shape[0] == 1


def test_evaluation_resizes_the_image_and_keeps_the_masks_size(root):
    data = opened(root=str(root), resize=[60, 20], eval_batch_size=3)
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [3, 2] and isinstance(batches[0], list)
    for (image, mask), (width, height) in zip(itertools.chain(*batches), SIZES, strict=True):
        assert mask.shape == (height, width) and mask.dtype == torch.int64
        assert image.shape == (3, *fitted_size(height, width, (60, 20))) and image.dtype == torch.float32
    image, _ = opened(root=str(root), resize=None).val_dataloader().dataset[1]
    assert torch.allclose(image, (data.splits["val"][1][0] / 255 - 0.5) / 0.25, atol=1e-5)


def test_the_last_batch_of_an_epoch_is_kept_and_counted_where_it_is_asked_for(root):
    """Five images in batches of two."""
    kept, dropped = (opened(root=str(root), drop_last=drop_last) for drop_last in (False, True))
    assert [len(images) for images, _ in kept.train_dataloader()] == [2, 2, 1]
    assert [len(images) for images, _ in dropped.train_dataloader()] == [2, 2]
    assert (kept.steps_per_epoch, dropped.steps_per_epoch) == (3, 2)
    kept.trainer.limit_train_batches = 2
    assert kept.steps_per_epoch == 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_every_image_once_over_processes(root, world):
    seen = []
    for rank in range(world):
        data = opened(world, rank, root=str(root), eval_batch_size=2)
        seen += [tuple(mask.shape) for batch in data.val_dataloader() for _, mask in batch]
    assert sorted(seen) == sorted((height, width) for width, height in SIZES)


def test_workers_change_no_training_sample(root):
    batches = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)  # nothing outside matters
        batches.append(list(opened(root=str(root), num_workers=workers).train_dataloader()))
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_probe_samples_is_centre_crops_the_same_for_every_seed(root):
    first, second = (opened(root=str(root), resize=None, seed=s).probe_samples(3)[0] for s in (0, 7))
    assert torch.equal(first, second) and first.shape == (3, 3, 32, 32)
    image, _ = opened(root=str(root), resize=None).val_dataloader().dataset[2]  # 64 x 20
    assert torch.equal(first[1][:, 6:26], image[:, :, 16:48])
    assert not first[1][:, :6].any() and not first[1][:, 26:].any()


def test_train_samples_are_spread_evenly_over_the_training_set(root):
    data = opened(root=str(root), train_samples=3)
    assert [tuple(mask.shape) for _, mask in data.splits["train"]] == [(30, 40), (20, 64), (33, 50)]
    assert len(data.splits["val"]) == 5
    with pytest.raises(InputError, match=r"data\.train_samples=6 is not a whole number from 1 to 5"):
        opened(root=str(root), train_samples=6)


def test_class_names_come_from_a_file_or_are_numbers(root):
    assert opened(root=str(root)).class_names == ["class_1", "class_2", "class_3", "class_4"]
    (root / "classes.txt").write_text("sky\nroad\nsmall tree\ncar\n")
    assert opened(root=str(root), class_names="classes.txt").class_names == ["sky", "road", "small tree", "car"]
    assert opened(root=str(root), class_names=str(root / "classes.txt")).class_names[0] == "sky"
    with pytest.raises(InputError, match=r"classes\.txt names 4 classes, data\.num_classes=5"):
        opened(root=str(root), class_names="classes.txt", num_classes=5)
    with pytest.raises(InputError, match=r"data\.class_names: .*names\.txt is not a readable text file"):
        opened(root=str(root), class_names="names.txt")


def test_evaluation_alone_needs_no_training_images(root):
    for kind in ("images", "annotations"):
        (root / kind / "training").rename(root / kind / "elsewhere")
    assert opened(root=str(root), stage="validate").splits["train"] is None
    with pytest.raises(InputError, match=r"images/training is missing; expected .*images,annotations"):
        opened(root=str(root))


def swap_sizes(root):
    make_pair(0, (30, 40))[1].save(root / "annotations/training/0.png")


def rgb_annotation(root):
    make_pair(0)[0].save(root / "annotations/training/0.png")


def unlink(name):
    return lambda root: (root / name).unlink()


def write(name, content):
    return lambda root: (root / name).write_bytes(content)


NOT_THERE = r"images/training/3\.jpg has no annotation .*annotations/training/3\.png; add it or remove the image"
BROKEN = {
    "image without annotation": (unlink("annotations/training/3.png"), NOT_THERE),
    "annotation without image": (
        unlink("images/validation/2.jpg"),
        r"annotations/validation/2\.png has no image .*/2\.jpg",
    ),
    "two images of one name": (write("images/training/2.png", b"x"), r"training/2\.png and 2\.jpg have the same name"),
    "sizes differ": (swap_sizes, r"images/training/0\.png has 40 x 30 pixels, .*annotations/training/0\.png 30 x 40"),
    "annotation with colours": (rgb_annotation, r"annotations/training/0\.png has the mode RGB: an annotation is one"),
    "empty image": (write("images/training/0.png", b""), r"images/training/0\.png is empty"),
    "not an image": (write("annotations/training/0.png", b"x"), r"annotations/training/0\.png is not a readable image"),
    "truncated": (
        write("images/training/0.png", encode(make_pair(0)[0])[:400]),
        r"images/training/0\.png is not a readable image",
    ),
}


@pytest.mark.parametrize("change, said", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named_in_a_line(root, change, said):
    change(root)
    with pytest.raises(InputError, match=said) as error:
        opened(root=str(root)).splits["train"][0]
    assert "\n" not in str(error.value)


def test_hidden_files_are_no_images(root):
    (root / "images/training/._0.jpg").write_bytes(b"what a Mac leaves behind")
    assert len(opened(root=str(root)).splits["train"]) == 5


def test_many_lonely_images_are_counted(root):
    for i in range(3):
        (root / f"annotations/training/{i}.png").unlink()
    with pytest.raises(InputError, match=r"training/0\.png has no annotation .* \(3 such files\)"):
        opened(root=str(root))


def test_a_label_beyond_the_classes_is_named(root):
    said = r"annotations/training/0\.png holds the label 4, data\.num_classes=3 allows .*set data\.num_classes="
    with pytest.raises(InputError, match=said):
        opened(root=str(root), num_classes=3).splits["train"][0]


def test_roots_that_are_none():
    with pytest.raises(InputError, match=r"data\.root is not set.*data\.root=FOLDER"):
        opened(root=None)
    with pytest.raises(InputError, match=r"data\.root=nowhere is not a folder"):
        opened(root="nowhere")


def test_an_empty_split_is_said(root):
    for file in [*root.glob("*/validation/*")]:
        file.unlink()
    with pytest.raises(InputError, match=r"images/validation holds no \.jpg or \.png image"):
        opened(root=str(root))


@pytest.mark.parametrize(
    "setting, value, said",
    [
        ("img_size", 0, "^img_size=0"),
        ("num_classes", 1, "^num_classes=1"),
        ("in_chans", 4, r"data\.in_chans=4"),
        ("mean", [0.5], r"data\.mean has 1 values for 3 channels"),
        ("std", [0.5, 0, 0.5], r"^std=\[0\.5, 0, 0\.5\] \(item 1\)"),
        ("resize", 512, r"^resize=512 is not a list; write resize=\[512\]"),
        ("resize", [512], r"data\.resize=\[512\] is not a list of two numbers"),
        ("resize", [512, 0], r"^resize=\[512, 0\] \(item 1\)"),
        ("scale", None, "^scale=null"),
        ("scale", [2.0, 0.5], r"data\.scale=\[2\.0, 0\.5\] must rise"),
        ("scale", [0, 1], r"^scale=\[0, 1\] \(item 0\)"),
        ("max_class_share", 1.5, "^max_class_share=1.5"),
        ("crop_tries", 0, "^crop_tries=0"),
        ("flip", -0.1, "^flip=-0.1"),
        ("reader", "torch/voc", r"data\.reader=torch/voc: segmentation reads hfds/"),
    ],
)
def test_settings_out_of_range_are_named(root, setting, value, said):
    with pytest.raises(InputError, match=said):
        opened(**{"root": str(root), setting: value})


def test_the_first_corrupt_file_ends_a_run_unless_some_are_allowed(root, tmp_path):
    (root / "images/validation/1.jpg").write_bytes(b"")
    (root / "images/training/1.jpg").write_bytes(b"")
    data = opened(root=str(root))
    data.note_corrupt(tmp_path / "corrupt.txt")
    with pytest.raises(
        InputError, match=r"more than 0 corrupt images \(data\.max_corrupt\), the first: .*1\.jpg is empty"
    ):
        list(data.val_dataloader())
    data = opened(root=str(root), max_corrupt=0.5, eval_batch_size=1, batch_size=5)
    data.note_corrupt(tmp_path / "more.txt")
    assert [len(batch) for batch in data.val_dataloader()] == [1, 0, 1, 1, 1]
    assert len(next(iter(data.train_dataloader()))[0]) == 5  # another one took its place
    assert len(data.corrupt.read()) == 2


@pytest.fixture
def hub(tmp_path, root):
    """The same images as parquet files that ``datasets`` wrote, as they lie on the hub."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "annotation": datasets.Image(), "scene": datasets.Value("string")}
    )
    for split, name in (("train", "training"), ("validation", "validation")):
        cells = {"image": [], "annotation": [], "scene": ["street"] * 5}
        for i in range(5):
            image = next((root / "images" / name).glob(f"{i}.*"))
            cells["image"].append({"bytes": image.read_bytes(), "path": None})
            annotation = root / f"annotations/{name}/{i}.png"
            cells["annotation"].append({"bytes": annotation.read_bytes(), "path": None})
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(cells, features=features)
        table.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    return f"hfds/{tmp_path}/hub"


def test_a_hub_data_set_gives_the_samples_of_the_folders(root, hub):
    folders, columns = opened(root=str(root)), opened(root=None, reader=hub)
    for split in ("train", "val"):
        assert len(columns.splits[split]) == 5
        for one, two in zip(folders.splits[split], columns.splits[split], strict=True):
            assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    for one, two in zip(folders.train_dataloader(), columns.train_dataloader(), strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_a_hub_data_set_says_what_does_not_fit(root, hub):
    with pytest.raises(InputError, match=r"data\.reader_args\.annotation=label: .*only image, annotation, scene"):
        opened(root=None, reader=hub, reader_args={"annotation": "label"})
    with pytest.raises(InputError, match=r"data\.reader_args\.annotation=scene: .*no such column of images"):
        opened(root=None, reader=hub, reader_args={"annotation": "scene"})
    with pytest.raises(InputError, match=r"data\.reader_args\.mask"):
        opened(root=None, reader=hub, reader_args={"mask": "annotation"})
    with pytest.raises(InputError, match=r"data\.reader=hfds/.*, split testing: "):
        opened(root=None, reader=hub, splits={"val": "testing"})
    with pytest.raises(InputError, match=r"data\.splits\.val is not set"):
        opened(root=None, reader=hub, splits={"val": None})
    with pytest.raises(InputError, match=r"hub, train, annotation, row 0 holds the label 4, data\.num_classes=3"):
        opened(root=None, reader=hub, num_classes=3).splits["train"][0]
    with pytest.raises(InputError, match=r"data\.reader=hfds/no/where, split .*"):
        opened(root=None, reader="hfds/no/where")


def configured(name, *overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", [f"data={name}", *(f"data.{o}" for o in overrides)])
    return instantiate(config.data)


@pytest.mark.parametrize("name", ["ade20k", "camvid"])
def test_a_user_sets_only_the_root(root, name):
    classes = {"ade20k": 150, "camvid": 11}[name]
    (root / "classes.txt").write_text("".join(f"name {i}\n" for i in range(classes)))
    data = configured(name, f"root={root}", "batch_size=2")
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1, limit_train_batches=None)
    data.num_workers = 0
    data.setup()
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, data.img_size, data.img_size) and len(data.class_names) == classes


def test_scenes_show_the_digits_of_their_own_split(monkeypatch):
    marked = {split: [(torch.ones(1, 8, 8), i + 3)] for i, split in enumerate(("train", "val", "test"))}
    monkeypatch.setattr(digit_scenes, "split_digits", lambda: marked)
    data = scenes()
    assert [data.splits[s].masks.unique().tolist() for s in marked] == [[3, 10], [4, 10], [5, 10]]
    layouts = {(mask != BACKGROUND).numpy().tobytes() for s in marked for mask in data.splits[s].masks}
    assert len(layouts) == 54


def test_no_digit_is_in_two_splits():
    splits = split_digits()
    seen = [{digit.numpy().tobytes() for digit in split.images} for split in splits.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_a_scene_is_a_function_of_its_split_and_index_alone():
    one, two = scenes(seed=0), scenes(seed=5, train_scenes=10)
    torch.manual_seed(3)
    for split, count in (("train", 10), ("val", 12), ("test", 12)):
        assert torch.equal(one.splits[split].images[:count], two.splits[split].images[:count])
        assert torch.equal(one.splits[split].masks[:count], two.splits[split].masks[:count])
    assert len({image.numpy().tobytes() for s in one.splits.values() for image in s.images}) == 54


def test_scenes_hold_digits_brighter_than_the_background():
    data = scenes(train_scenes=200)
    images, masks = data.splits["train"].images[:, 0].float(), data.splits["train"].masks
    digits = masks != BACKGROUND
    assert set(masks.unique().tolist()) == set(range(11)) and 0.75 < (~digits).float().mean() < 0.95
    assert digits.flatten(1).any(1).all()
    brighter = [image[d].mean() - image[~d].mean() for image, d in zip(images, digits, strict=True)]
    assert min(brighter) > 40  # of 255


def test_a_batch_of_scenes_is_normalised_by_the_training_split():
    data = scenes(train_scenes=300)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, accumulate_grad_batches=1, limit_train_batches=None)
    samples = [data.train_transform()(*sample) for sample in data.splits["train"]]
    images, masks = (torch.stack(parts) for parts in zip(*samples, strict=True))
    assert abs(images.mean()) < 0.05 and abs(images.std() - 1) < 0.05 and masks.dtype == torch.int64
    assert torch.equal(masks, data.splits["train"].masks.long())  # a flip would make other digits
    image, mask = next(iter(data.val_dataloader()))[0]
    assert image.shape == (1, 32, 32) and mask.shape == (32, 32) and data.has_test
    assert data.probe_samples(6)[0].shape == (6, 1, 32, 32) and data.class_names[10] == "background"


def test_the_scenes_need_no_setting():
    data = configured("digit_scenes", "train_scenes=32", "val_scenes=4", "test_scenes=4")
    data.setup()
    assert type(data) is DigitScenes and len(data.splits["train"]) == 32


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"img_size": 20}, "img_size=20 should be greater than or equal to 32"),
        ({"num_classes": 10}, "eleven classes"),
        ({"val_scenes": 0}, "^val_scenes=0"),
    ],
)
def test_scenes_refuse_other_shapes(setting, said):
    with pytest.raises(InputError, match=said):
        scenes(**setting)


OWN = {"num_classes": None, "void": 255, "val_fraction": 0.25}


def fill(images, masks, count=4, values=(0, 1, 2, 255)):
    """So many pairs, whose masks hold all of ``values``."""
    for kind in (images, masks):
        kind.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        draw = np.random.default_rng(i)
        labels = draw.choice(np.array(values, np.uint8), (30, 40))
        labels.flat[: len(values)] = values
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(images / f"{i}.png")
        Image.fromarray(labels).save(masks / f"{i}.png")


LAYOUTS = {
    "kind, split": ("images/{}", "masks/{}"),
    "split, kind": ("{}/images", "{}/labels"),
    "SegNet's": ("{}", "{}annot"),
}


@pytest.mark.parametrize("images, masks", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("val", ["val", "validation", "valid", "dev", "Val"])
def test_own_masks_in_the_usual_layouts(tmp_path, images, masks, val):
    for split, count in (("train", 4), (val, 2), ("test", 3)):
        fill(tmp_path / images.format(split), tmp_path / masks.format(split), count)
    data = opened(root=str(tmp_path), **OWN)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 4, "val": 2, "test": 3} and data.has_test
    assert data.num_classes == 3 and data.class_names == ["class_0", "class_1", "class_2"]
    assert set(data.splits["train"][0][1].unique().tolist()) == {0, 1, 2, IGNORE}
    assert data.model_arguments() == {"num_classes": 3}
    assert data.notes == [
        "the masks hold 3 classes, the labels 0 to 2 (data.num_classes=… spares this look at all of them)"
    ]


def test_own_masks_without_splits_are_training_images_of_which_the_same_are_held_out_for_every_seed(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks", 8)
    one, two = (opened(root=str(tmp_path), seed=seed, **OWN) for seed in (0, 7))
    assert {k: v and len(v) for k, v in one.splits.items()} == {"train": 6, "val": 2, "test": None}
    assert one.splits["val"].indices == two.splits["val"].indices
    assert not {*one.splits["val"].indices} & {*one.splits["train"].indices}
    assert "no val split: 2 of 8 training images are held out (data.val_fraction)" in one.notes
    assert one.digests != opened(root=str(tmp_path), **{**OWN, "val_fraction": 0.5}).digests


@pytest.mark.parametrize(
    "void, values, classes",
    [(255, (0, 1, 255), [0, 1]), (0, (0, 1, 2), [1, 2]), (None, (0, 255), [0, 255]), (255, (0, 3, 9), [0, 3, 9])],
)
def test_classes_are_the_labels_that_occur_but_what_is_void(tmp_path, void, values, classes):
    fill(tmp_path / "images", tmp_path / "masks", values=values)
    data = opened(root=str(tmp_path), **{**OWN, "void": void})
    assert data.class_names == [f"class_{label}" for label in classes]
    masks = [mask for split in ("train", "val") for _, mask in data.splits[split]]
    expected = {*range(len(classes))} | ({IGNORE} if void in values else set())
    assert {x for mask in masks for x in mask.unique().tolist()} == expected


def test_a_file_of_names_spares_the_look_at_all_masks(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    data = opened(root=str(tmp_path), **OWN)
    assert data.num_classes == 3 and data.class_names == ["sky", "road", "car"]
    assert not any("the masks hold" in note for note in data.notes)


def test_masks_of_one_class_are_refused_with_the_way_out(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks", values=(0, 255))
    with pytest.raises(InputError, match=r"hold the labels 0 beside data\.void=255; .*needed: set data\.void=null$"):
        opened(root=str(tmp_path), **OWN)
    fill(tmp_path / "images", tmp_path / "masks", values=(0, 0))
    with pytest.raises(InputError, match=r"hold the labels 0 beside data\.void=255; .*needed: add masks of another"):
        opened(root=str(tmp_path), **OWN)


def test_images_whose_masks_are_missing_are_refused_or_left_out_and_said(tmp_path):
    fill(tmp_path / "train/images", tmp_path / "train/masks")
    fill(tmp_path / "test/images", tmp_path / "elsewhere")
    data = opened(root=str(tmp_path), **OWN)
    beside = f"{tmp_path}/test/masks is missing beside {tmp_path}/test/images"
    assert not data.has_test and f"the test split is not used: {beside}" in data.notes
    fill(tmp_path / "val/images", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"val/masks is missing beside .*val/images; expected .* or another layout"):
        opened(root=str(tmp_path), **OWN)


def test_a_validation_folder_of_masks_alone_or_of_nothing_is_no_reason_to_hold_out(tmp_path):
    fill(tmp_path / "images/train", tmp_path / "masks/train")
    (tmp_path / "masks/val").mkdir()
    with pytest.raises(InputError, match=r"images/val is missing"):
        opened(root=str(tmp_path), **OWN)
    (tmp_path / "images/val").mkdir()
    with pytest.raises(InputError, match=r"images/val holds no \.jpg or \.png image"):
        opened(root=str(tmp_path), **OWN)


def test_folders_in_capitals_are_those_of_a_layout(tmp_path):
    fill(tmp_path / "Images/Train", tmp_path / "Masks/TRAIN")
    fill(tmp_path / "Images/Dev", tmp_path / "Masks/dev", 2)
    assert [len(opened(root=str(tmp_path), **OWN).splits[split]) for split in ("train", "val")] == [4, 2]
    (tmp_path / "Masks/dev").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"/Masks/dev is missing beside .*/Images/Dev"):
        opened(root=str(tmp_path), **OWN)


@pytest.mark.parametrize(
    "first, second, kind",
    [
        (("images/train", "masks/train"), ("images/training", "elsewhere"), "images of the train split"),
        (("images/val", "masks/val"), ("validation/images", "validation/masks"), "images of the val split"),
        (("images/test", "masks/test"), ("elsewhere", "labels/test"), "masks of the test split"),
        (("images/train", "masks/train"), ("Images/train", "Masks/train"), "images of the train split"),
        (("images", "masks"), ("img", "elsewhere"), "images of the train split"),
    ],
)
def test_two_folders_for_a_split_are_refused(tmp_path, first, second, kind):
    for images, masks in (("train", "trainannot"), first, second)["train" in kind :]:
        fill(tmp_path / images, tmp_path / masks)
    with pytest.raises(InputError, match=rf" and .* both hold {kind}; keep one of them, or rename the other"):
        opened(root=str(tmp_path), **OWN)


def test_masks_are_read_from_the_folder_that_holds_them(tmp_path):
    fill(tmp_path / "images/train", tmp_path / "labels/train")
    (tmp_path / "masks/train").mkdir(parents=True)
    assert len(opened(root=str(tmp_path), **OWN).splits["train"]) == 3


@pytest.mark.parametrize(
    "there, said",
    [
        (("images", "elsewhere"), "/masks is missing beside .*/images;"),
        (("elsewhere", "label"), "/images is missing beside .*/label;"),
        (("imgs/train", "elsewhere"), "/masks/train is missing beside .*/imgs/train;"),
        (("imgs/val", "mask/val"), "/imgs/train is missing;"),
        (("img/validation", "mask/validation"), "/img/training is missing;"),
        (("img/dev", "mask/dev"), "/img/train is missing;"),
        (("val", "valannot"), "/train is missing;"),
        (("train", "elsewhere"), "/trainannot is missing beside .*/train;"),
        (("elsewhere", "beyond"), "/images/training is missing;"),
    ],
)
def test_what_is_missing_is_named_as_what_is_there(tmp_path, there, said):
    fill(*(tmp_path / folder for folder in there))
    with pytest.raises(InputError, match=said):
        opened(root=str(tmp_path), **OWN)


def test_test_masks_without_images_are_said(tmp_path):
    fill(tmp_path / "images/train", tmp_path / "masks/train")
    fill(tmp_path / "elsewhere", tmp_path / "masks/test")
    missing = f"{tmp_path}/images/test is missing beside {tmp_path}/masks/test"
    assert f"the test split is not used: {missing}" in opened(root=str(tmp_path), **OWN).notes


def test_a_label_beyond_a_byte_is_named(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks")
    Image.fromarray(np.full((30, 40), 300, np.uint16)).save(tmp_path / "masks/2.png")
    with pytest.raises(
        InputError, match=r"masks/2\.png holds the label 300; those of classes are numbers from 0 to 255"
    ):
        opened(root=str(tmp_path), **OWN)


def test_all_masks_that_do_not_fit_are_said_at_once_where_all_are_looked_at(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks", 6)
    for i in range(1, 6):
        Image.fromarray(np.zeros((40, 30), np.uint8)).save(tmp_path / f"masks/{i}.png")
    with pytest.raises(InputError) as error:
        opened(root=str(tmp_path), **OWN)
    first, *others, more = str(error.value).split("png 30 x 40; replace one of them; ")
    assert first.endswith("images/1.png has 40 x 30 pixels, " + str(tmp_path / "masks/1."))
    assert len(others) == 2 and more == "and 2 more such files"


def grey_png(labels, bits):
    """A PNG of this bit depth, which Pillow does not write in grey."""
    packed = labels.reshape(len(labels), -1, 8 // bits)
    rows = (packed << (np.arange(8 // bits)[::-1] * bits)).sum(-1).astype(np.uint8)
    header = struct.pack(">IIBBBBB", labels.shape[1], len(labels), bits, 0, 0, 0, 0)
    body = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_are_numbers_whatever_bits_a_grey_mask_spares(tmp_path, bits):
    fill(tmp_path / "images", tmp_path / "masks", values=(0, 1))
    labels = np.random.default_rng(0).integers(0, min(2**bits, 9), (30, 40))
    (tmp_path / "masks/0.png").write_bytes(grey_png(labels, bits))
    assert np.array_equal(read_mask(tmp_path / "masks/0.png", "mask"), labels)
    assert np.array_equal(read_mask((tmp_path / "masks/0.png").read_bytes(), "mask"), labels)
    names = [f"class_{label}" for label in range(min(2**bits, 9))]
    assert opened(root=str(tmp_path), **OWN).class_names == names
    for i in range(4):
        (tmp_path / f"masks/{i}.png").write_bytes(grey_png(labels, bits))
    assert opened(root=str(tmp_path), **OWN).class_names == names


def test_masks_of_another_format_are_read_however_short(tmp_path):
    (tmp_path / "mask.pgm").write_bytes(b"P5 1 1 255\n\x04")
    assert read_mask(tmp_path / "mask.pgm", "mask").tolist() == [[4]]


def test_a_file_of_names_may_begin_with_a_mark_of_its_encoding(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n", encoding="utf-8-sig")
    assert opened(root=str(tmp_path), **OWN).class_names == ["sky", "road", "car"]


def test_too_few_masks_to_hold_one_out_are_said(tmp_path):
    fill(tmp_path / "images", tmp_path / "masks", 1)
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.25 of 1 images leaves none"):
        opened(root=str(tmp_path), **OWN, batch_size=1)


def test_counted_classes_need_the_training_masks_in_evaluation_too(tmp_path):
    fill(tmp_path / "val/images", tmp_path / "val/masks")
    with pytest.raises(InputError, match=r"/train/images is missing;"):
        opened(root=str(tmp_path), stage="validate", **OWN)
    assert opened(root=str(tmp_path), stage="validate", **{**OWN, "num_classes": 3}).splits["train"] is None


def test_reading_again_counts_the_same_classes(tmp_path):
    """As after a first reading whose batch was too large."""
    fill(tmp_path / "images", tmp_path / "masks", values=(0, 3, 9, 255))
    data = SegmentationFolders(**{**SMALL, **OWN, "root": str(tmp_path), "batch_size": 100})
    with pytest.raises(InputError, match=r"data\.batch_size=100 is larger than the training set of 3"):
        data.setup()
    data.batch_size = 2
    data.setup()
    assert data.class_names == ["class_0", "class_3", "class_9"] and data.splits["train"][0][1].max() == IGNORE
