"""What counts as the name of a split, and what only seems one, alike for images, masks and text."""

import pytest

from neutreno.data.split_names import is_meant, seeming_split, split_of, split_of_shard


@pytest.mark.parametrize(
    "name, split", [("train", "train"), ("Training", "train"), ("DEV", "val"), ("valid", "val"), ("testing", "test")]
)
def test_a_split_is_named_in_any_case(name, split):
    assert split_of(name) == split_of_shard(name) == seeming_split(name) == split


@pytest.mark.parametrize("stem", ["val-00000-of-00002", "dev_0", "Validation1"])
def test_a_file_may_be_one_of_several(stem):
    assert split_of_shard(stem) == "val" and split_of(stem) is None


@pytest.mark.parametrize("name", ["my test_set", "TestData", "test.old", "2test", "testimages"])
def test_a_word_that_is_a_splits_name_seems_one(name):
    assert seeming_split(name) == "test" and split_of(name) is None


@pytest.mark.parametrize(
    "name", ["latest", "protest", "valley", "device", "strained", "prétest", "dataset", "images", ""]
)
def test_a_word_that_holds_a_splits_name_is_none(name):
    assert seeming_split(name) is None and split_of_shard(name) is None


@pytest.mark.parametrize(
    "path, meant", [("a/b.png", True), ("a/.b.png", False), (".git/b", False), ("__MACOSX/b", False)]
)
def test_what_editors_and_archives_leave_behind_is_not_meant(path, meant):
    assert is_meant(path.split("/")) == meant
