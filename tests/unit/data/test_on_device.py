from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neutreno.data.classification import ImageClassification
from neutreno.data.loading import TrainBatchSampler
from neutreno.data.on_device import DeviceEvalLoader, DeviceLoader, crop_and_flip
from neutreno.errors import InputError


def loader(start=0, epoch=0, **sampler):
    images = torch.arange(23 * 3 * 6 * 6).reshape(23, 3, 6, 6).float()
    batches = TrainBatchSampler(23, 6, seed=3, **sampler)
    result = DeviceLoader(images, torch.arange(23), lambda x: x, batches, padding=2)
    result.load_state_dict({"given": start})
    batches.set_epoch(epoch)
    return result


def test_every_image_is_cropped_and_flipped_by_its_own_draws():
    images = torch.rand(64, 3, 8, 8)
    draws = torch.rand(3, 64)
    result = crop_and_flip(images, draws, padding=2)
    for i in range(64):
        padded = np.pad(images[i].numpy(), ((0, 0), (2, 2), (2, 2)))
        top, left = int(draws[0, i] * 5), int(draws[1, i] * 5)
        expected = padded[:, top : top + 8, left : left + 8]
        if draws[2, i] < 0.5:
            expected = expected[:, :, ::-1]
        np.testing.assert_array_equal(result[i].numpy(), expected)


def test_crops_reach_every_offset_and_half_of_the_images_are_flipped():
    image = torch.arange(64.0).reshape(1, 1, 8, 8).expand(4000, 1, 8, 8) + 1
    result = crop_and_flip(image, torch.rand(3, 4000), padding=1)
    centres = {int(x) for x in result[:, 0, 3, 3]}
    assert len(centres) == 12  # 3 x 3 offsets and their mirror images, which share columns
    flipped = (result[:, 0, 3, 4] < result[:, 0, 3, 3]).float().mean()
    assert abs(flipped - 0.5) < 0.05


@pytest.mark.parametrize("world, micro_batches", [(2, 1), (3, 1), (1, 2), (3, 2)])
def test_the_same_samples_and_augmentation_on_any_number_of_processes(world, micro_batches):
    whole = {int(y): x for images, labels in loader(epoch=2) for x, y in zip(images, labels, strict=True)}
    shares = [loader(epoch=2, world=world, rank=r, micro_batches=micro_batches) for r in range(world)]
    seen = {int(y): x for share in shares for images, labels in share for x, y in zip(images, labels, strict=True)}
    assert seen.keys() == whole.keys() and len(seen) == 18
    assert all(torch.equal(seen[y], whole[y]) for y in whole)


def test_a_resumed_loader_gives_the_rest_of_the_epoch():
    whole = list(loader(epoch=1))
    rest = list(loader(start=2, epoch=1))
    assert len(rest) == 1 and torch.equal(rest[0][0], whole[2][0])
    again = loader(epoch=2)
    assert not torch.equal(next(iter(again))[0], whole[0][0])


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_counts_every_sample_once(world):
    labels = torch.arange(23)
    share = {"batch_size": 4, "world": world}
    shares = [DeviceEvalLoader(torch.zeros(23, 1), labels, lambda x: x, **share, rank=r) for r in range(world)]
    assert sorted(int(y) for s in shares for _, ys in s for y in ys) == list(range(23))
    assert [len(s) for s in shares] == [sum(1 for _ in s) for s in shares]


def test_evaluates_on_the_same_pixels_as_image_by_image(image_folders):
    common = {"root": str(image_folders), "img_size": 12, "in_chans": 3, "num_classes": 2, "batch_size": 4}
    common |= {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3, "crop_pct": 1.0, "crop_padding": 2}
    batches = []
    for on_device in (False, True):
        data = ImageClassification(**common, on_device=on_device)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy, accumulate_grad_batches=1)
        data.setup()
        batches.append(next(iter(data.val_dataloader())))
    torch.testing.assert_close(batches[0][0], batches[1][0], rtol=0, atol=1e-6)
    assert torch.equal(batches[0][1], batches[1][1])


def test_a_corrupt_training_image_is_replaced_so_that_an_epoch_keeps_its_length(image_folders, tmp_path):
    common = {"root": str(image_folders), "img_size": 12, "in_chans": 3, "num_classes": 2, "batch_size": 4}
    common |= {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0, "crop_padding": 2, "max_corrupt": 0.2}
    (image_folders / "train/cat/0.png").write_bytes(b"")
    (image_folders / "val/cat/0.png").write_bytes(b"")
    data = ImageClassification(**common, on_device=True)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy, accumulate_grad_batches=1)
    data.setup()
    data.note_corrupt(tmp_path / "corrupt.txt")
    assert len(list(data.train_dataloader())) == 3
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 3
    assert len(data.corrupt.read()) == 2


def test_images_of_another_size_are_resized_one_by_one_instead(image_folders):
    common = {"root": str(image_folders), "img_size": 16, "in_chans": 3, "num_classes": 2, "batch_size": 4}
    data = ImageClassification(**common, mean=[0.5] * 3, std=[0.2] * 3, crop_pct=1.0, crop_padding=2, on_device=True)
    data.setup()
    assert not data.on_device


def test_augmentation_that_needs_single_images_is_refused():
    common = {"root": "x", "img_size": 12, "in_chans": 3, "num_classes": 2, "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(InputError, match=r"data\.on_device=false"):
        ImageClassification(**common, on_device=True, crop_padding=2, crop_pct=1.0, augment={"re_prob": 0.25})
