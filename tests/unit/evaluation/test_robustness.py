import pytest
from support import make_image
from support.corruptions import link_corruptions, write
from torch import nn

from neutreno.data.classification import ImageClassification
from neutreno.errors import InputError
from neutreno.evaluation.robustness import (
    ALEXNET,
    SEVERITIES,
    check_classes,
    check_corruptions,
    check_folders,
    corruption_error,
    wnids,
)


@pytest.fixture
def data():
    sizes = {"img_size": 16, "in_chans": 3, "num_classes": 1000, "eval_batch_size": 2}
    return ImageClassification(root=None, mean=[0.5] * 3, std=[0.5] * 3, **sizes)


def test_mean_corruption_error_by_hand():
    """Each corruption's mean error over AlexNet's; 100 for AlexNet itself."""
    errors = {c: dict.fromkeys(SEVERITIES, 100 * a) for c, a in ALEXNET.items()}
    assert corruption_error(errors)["mce"] == pytest.approx(100)
    # Noise 2.703536 + blur 3.230456 + weather 3.077304 + digital 2.823600 = 11.834896; / 15 = 0.788993.
    assert corruption_error(errors)["mean_error"] == pytest.approx(78.8993, abs=1e-4)
    errors["fog"] = {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 5: 50.0}  # mean 30: 30 / 0.819324 = 36.6155
    found = corruption_error(errors)
    assert found["normalised"]["fog"] == pytest.approx(36.6155, abs=1e-4)
    assert found["mce"] == pytest.approx((14 * 100 + 36.6155) / 15, abs=1e-4)
    assert found["mean_error"] == pytest.approx((1183.4896 - 81.9324 + 30) / 15, abs=1e-4)


def test_alexnets_published_errors_of_the_fifteen_corruptions():
    assert len(ALEXNET) == 15
    assert ALEXNET["gaussian_noise"] == 0.886428 and ALEXNET["brightness"] == 0.564592


def test_class_lists_are_timms():
    classes = wnids()
    assert len(classes) == 1000 and list(classes) == sorted(classes)
    assert classes[0] == "n01440764" and classes[1] == "n01443537"  # tench, goldfish
    for name in ("imagenet_a", "imagenet_r"):
        assert len(set(wnids(name))) == 200 and set(wnids(name)) <= set(classes)


def test_missing_corruptions_and_severities_are_listed_and_others_ignored(tmp_path):
    classes = ["n01440764", "n01443537"]
    whole = write(tmp_path / "set", {wnid: [make_image(0)] for wnid in classes})
    root = link_corruptions(tmp_path / "c", lambda corruption, severity: whole)
    (root / "speckle_noise").mkdir()
    check_corruptions(root, classes)
    (root / "fog" / "3").unlink()
    (root / "fog" / "5").unlink()
    (root / "snow").rename(root / "schnee")
    with pytest.raises(InputError, match=r"missing: snow; fog/3,5$"):
        check_corruptions(root, classes)
    with pytest.raises(InputError, match="imagenet_c=nowhere is not a folder"):
        check_corruptions("nowhere")


def test_missing_and_unknown_classes_are_counted(tmp_path):
    folder = write(tmp_path / "a", {wnid: [make_image(0)] for wnid in wnids("imagenet_a")[:3]})
    with pytest.raises(InputError, match=r"a lacks 197 of its 200 classes \(n01558993, n01580077, n01614925, …\)"):
        check_classes(folder, wnids("imagenet_a"))
    (folder / "extra").mkdir()
    with pytest.raises(InputError, match=r"holds 1 folders that are none of its classes \(extra\)"):
        check_classes(folder, wnids("imagenet_a")[:3])
    with pytest.raises(InputError, match="nowhere is not a folder"):
        check_classes(tmp_path / "nowhere", wnids("imagenet_a"))


def test_a_model_of_other_classes_is_refused(data):
    model = nn.Identity()
    model.num_classes = 10
    with pytest.raises(InputError, match="imagenet_r needs a model of ImageNet's 1,000 classes; this one has 10"):
        check_folders({"imagenet_r": "anywhere"}, model, data)
