"""Graphs in npz files: what is read, and files that are broken or hostile."""

import io
import os
import zipfile

import numpy as np
import pytest
from scipy import sparse
from support.graphs import STEPS, Calls, npz, ready, write_npz

from neutreno.config.building import build
from neutreno.config.composing import compose
from neutreno.data.graphs import NpzGraph
from neutreno.errors import InputError


def coauthors(folder, **kwargs):
    kwargs = {"per_class": {"train": 3, "val": 2}, **kwargs}
    return ready(NpzGraph(file="ms_academic_cs.npz", root=folder, **STEPS, **kwargs))


def test_an_npz_file_gives_words_edges_without_direction_and_a_drawn_split(tmp_path):
    held, data = npz(), coauthors(write_npz(tmp_path))
    words = sparse.csr_array((held["attr_data"], held["attr_indices"], held["attr_indptr"]), held["attr_shape"])
    assert np.array_equal(data.graph.features, words.toarray() > 0)
    links = sparse.csr_array((held["adj_data"], held["adj_indices"], held["adj_indptr"]), held["adj_shape"]).tocoo()
    pairs = {(int(a), int(b)) for a, b in zip(*links.coords, strict=True) if a != b}
    assert sorted(pairs | {(b, a) for a, b in pairs}) == sorted(map(tuple, data.graph.edges.T.tolist()))
    assert data.record()["graph"]["splits"] == {"train": 12, "val": 8, "test": 20}
    with pytest.raises(InputError, match="has no split of its own; draw one"):
        coauthors(tmp_path, per_class=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.array([0, 1] * 20, dtype=object)}, "cut short or broken"),
        ({"attr_data": np.array([Calls(os.system, "true")] * 9, dtype=object)}, "cut short or broken"),
        ({"attr_indices": np.full_like(npz()["attr_indices"], 10**6)}, "holds a broken sparse matrix"),
        ({"adj_indices": np.full_like(npz()["adj_indices"], -5)}, "holds a broken sparse matrix"),
        ({"attr_shape": np.array([40, 10**12])}, "holds 40 x 1,000,000,000,000 features"),
        ({"adj_shape": np.array([10**12, 40])}, "holds a broken sparse matrix"),
        ({"adj_shape": np.array([np.inf, 40])}, "holds a broken sparse matrix"),
        ({"adj_shape": np.array(40)}, "holds a broken sparse matrix"),
        ({"adj_data": npz()["adj_data"].astype("M8[s]")}, "holds a sparse matrix of datetime64[s], int32, int32"),
        ({"attr_data": npz()["attr_data"] * 1j}, "holds a sparse matrix of complex64, int32, int32"),
        ({"adj_indices": npz()["adj_indices"].astype(float)}, "holds a sparse matrix of float32, float64, int32"),
        ({"adj_indices": npz()["adj_indices"] > 0}, "holds a sparse matrix of float32, bool, int32"),
        ({"attr_indptr": npz()["attr_indptr"].astype(float)}, "holds a sparse matrix of float32, int32, float64"),
        *[({"attr_data": npz()["attr_data"] * n}, "counts a word NaN, Inf or less") for n in (np.nan, np.inf, -1)],
        ({"labels": np.arange(39) % 4}, "does not hold a label for each of 40 nodes"),
        ({"labels": np.zeros(40)}, "does not hold a label for each of 40 nodes"),
        ({"labels": np.arange(40) % 4 - 1}, "label -1 is out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_npz_file_that_is_hostile_or_broken_is_refused_in_a_line(tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        coauthors(write_npz(tmp_path, **changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_npz_file_that_is_cut_short_or_lacks_a_part_is_named(tmp_path):
    file = write_npz(tmp_path) / "ms_academic_cs.npz"
    content = file.read_bytes()
    for left in (0, 0.5, 0.99):
        file.write_bytes(content[: int(left * len(content))])
        with pytest.raises(InputError, match=r"ms_academic_cs\.npz is cut short or broken"):
            coauthors(tmp_path)
    directory = content.index(b"PK\1\2")
    file.write_bytes(content[: directory + 8] + b"\1" + content[directory + 9 :])
    with pytest.raises(InputError, match=r"ms_academic_cs\.npz is cut short or broken \(.* is encrypted"):
        coauthors(tmp_path)
    held = io.BytesIO()
    np.save(held, npz()["labels"])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("adj_data.npy", held.getvalue().replace(b"(40,), }" + 20 * b" ", b"(%d,), }" % 10**21))
    with pytest.raises(InputError, match=r"ms_academic_cs\.npz is cut short or broken \(Python int too large"):
        coauthors(tmp_path)
    np.savez(file, labels=np.zeros(3))
    with pytest.raises(InputError, match="adj_data is not a file in the archive"):
        coauthors(tmp_path)


@pytest.mark.parametrize("name", ["../other.npz", "..", ".", "", "*.npz", "ms_academic_c?.npz", "[a-z].npz"])
def test_a_name_of_several_files_or_of_another_folder_is_refused(tmp_path, name):
    for option in ({"file": name}, {"file": "ms_academic_cs.npz", "folders": [name]}):
        with pytest.raises(InputError, match="should be the name of a file or folder, without those above it"):
            NpzGraph(root=tmp_path, **option, **STEPS)


@pytest.mark.parametrize("below", ["", "raw", "coauthor_cs", "CS/raw", "Coauthor_CS/raw"])
def test_the_file_is_found_in_the_folders_that_the_config_names(tmp_path, below):
    write_npz(tmp_path / below)
    config = compose(["data=coauthor_cs", "data.per_class={train:3,val:2}"]).settings["data"]
    assert ready(build(config, root=tmp_path)).count("train") == 12


def test_a_folder_without_the_file_is_named(tmp_path):
    write_npz(tmp_path / "other")
    with pytest.raises(InputError, match=r"holds no ms_academic_cs\.npz, nor do folders in it named cs, raw; scripts"):
        coauthors(tmp_path, folders=["cs"])
    with pytest.raises(InputError, match=r"data\.root is not set: .*, or data\.reader=pyg/NAME$"):
        coauthors(None)


def test_a_word_that_the_parts_give_twice_occurs_once(tmp_path):
    """And counts of a byte, which would sum to 0, are counts."""
    columns, ends = np.zeros(80, np.int32), np.arange(0, 81, 2, dtype=np.int32)
    parts = {"attr_data": np.full(80, 128, np.uint8), "attr_indices": columns, "attr_indptr": ends}
    assert coauthors(write_npz(tmp_path, **parts)).graph.features.sum(0).tolist() == [40, 0, 0, 0, 0, 0]
