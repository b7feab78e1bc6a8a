"""Text to word ids: the vocabulary's rule, the formats, and a cache that cannot go stale unseen."""

import collections
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.texts import TEXTS, TRAIN, write

import neutreno.data.text
from neutreno.data.language_modeling import PythonDocs, TextFiles
from neutreno.data.text import EOS, UNK, VocabularyBuilder
from neutreno.data.text_files import open_folder
from neutreno.errors import InputError

SETTINGS = {"sequence_length": 2, "val_every_n_steps": 1, "batch_size": 2}


def read(root, **kwargs):
    data = TextFiles(str(root), **{**SETTINGS, **kwargs})
    data.setup("validate")
    return data


def independent(text):
    """Lines of words by Python's own reading of text files."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [line.split() for line in (lines if lines[-1] else lines[:-1])]


def expected():
    """The rule of the released code, by the standard library's counter."""
    counts = collections.Counter(word for line in independent(TRAIN) for word in line)
    return [EOS, *(word for word, _ in counts.most_common())]  # equal counts: in the order of first appearance


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_the_vocabulary_and_ids_equal_an_independent_count(tmp_path, monkeypatch, block):
    monkeypatch.setattr(neutreno.data.text_files, "BLOCK", block)
    data = read(write(tmp_path / "text"))
    words = expected()
    assert data.vocabulary.words == words and words[:3] == [EOS, "the", "cat"] and words.count("Dog") == 1
    index = {word: i for i, word in enumerate(words)}
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines = independent(TEXTS[name])
        ids = [index.get(word, index[UNK]) for line in lines for word in [*line, EOS]]
        assert data.splits[split].tolist() == ids
    counts = np.bincount(data.splits["train"], minlength=len(words))
    assert data.vocabulary.counts.tolist() == counts.tolist()


def test_ids_to_text_is_the_identity_up_to_unknown_words_and_white_space(tmp_path):
    data = read(write(tmp_path / "text"))
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        lines = [[w if w in data.vocabulary.index else UNK for w in line] for line in independent(TEXTS[name])]
        assert data.vocabulary.decode(data.splits[split]) == "".join(" ".join(line) + "\n" for line in lines)


def test_unknown_is_the_last_word_where_training_has_none(tmp_path):
    data = read(write(tmp_path / "text", {**TEXTS, "train": "b a b\n" * 3}))
    assert data.vocabulary.words == [EOS, "b", "a", UNK] and data.vocabulary.counts.tolist() == [3, 6, 3, 0]


def test_rare_words_count_as_unknown():
    builder = VocabularyBuilder(min_count=2)
    first, second = builder.add("a b a c\n"), builder.add("d a d\n")
    vocabulary, ids = builder.finish()
    assert dict(zip(vocabulary.words, vocabulary.counts, strict=True)) == {EOS: 2, "a": 3, UNK: 2, "d": 2}
    assert vocabulary.decode(ids[np.concatenate([first, second])]) == "a <unk> a <unk>\nd a d\n"


def test_unigram_counts_every_training_word_once_more():
    builder = VocabularyBuilder()
    builder.add("a a b\n")
    vocabulary, _ = builder.finish()  # <eos> 1, a 2, b 1, <unk> 0: 4 words, 4 kinds
    nll = vocabulary.unigram_nll(vocabulary.encode("a b x"))
    assert nll == pytest.approx(-np.log([3 / 8, 2 / 8, 1 / 8]).mean())


def parquet(root, rows):
    root.mkdir(exist_ok=True)
    for split, texts in rows.items():
        pq.write_table(pa.table({"text": texts}), root / f"{split}-00000-of-00001.parquet")
    return root


ROWS = {
    "train": [line + "\n" * (i % 2) for i, line in enumerate(TRAIN.replace("\r\n", "\n").split("\n"))],  # as on the hub
    "validation": ["the ant saw a whale\n", ""],
    "test": ["Dog", "end of the"],
}


def test_every_format_gives_the_same_ids(tmp_path):
    plain = read(write(tmp_path / "txt"))
    others = [read(write(tmp_path / "tokens", name="{}.tokens")), read(write(tmp_path / "wiki", name="wiki.{}.tokens"))]
    others += [read(parquet(tmp_path / "parquet", ROWS))]
    others += [read_hub(tmp_path / "parquet", cache=str(tmp_path / "cache"))]
    for data in others:
        assert data.vocabulary.words == plain.vocabulary.words
        assert all(np.array_equal(data.splits[s], plain.splits[s]) for s in ("train", "val", "test"))


def read_hub(folder, **kwargs):
    data = TextFiles(None, reader=f"hfds/{folder}", **{**SETTINGS, **kwargs})
    data.setup("validate")
    return data


def test_ids_are_memory_mapped_and_text_is_split_only_once(tmp_path, monkeypatch):
    root = write(tmp_path / "text")
    first = read(root)
    assert isinstance(first.splits["train"], np.memmap) and first.splits["train"].dtype == np.int32

    def split_again(text):
        raise AssertionError("split again")

    monkeypatch.setattr(neutreno.data.text, "split_words", split_again)
    again = read(root)
    assert again.vocabulary.words == first.vocabulary.words and again.vocabulary.sha256 == first.vocabulary.sha256
    assert again.vocabulary.counts.tolist() == first.vocabulary.counts.tolist()
    assert all(np.array_equal(again.splits[s], first.splits[s]) for s in again.splits)
    with pytest.raises(AssertionError, match="split again"):
        read(root, min_count=2)  # other ids


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("change", ["truncate", "replace"])
def test_a_source_that_changed_is_noticed(tmp_path, split, change):
    root = write(tmp_path / "text")
    read(root)
    file = root / f"{split}.txt"
    before = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[:-3] if change == "truncate" else content.replace(b"the", b"teh"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy may keep the time, and a change the size
    with pytest.raises(InputError, match=rf"the {split} text of data.root=.* changed or cut short; restore it, or"):
        read(root)
    file.write_bytes(content)
    read(root)


@pytest.mark.parametrize("name", ["train.ids", "val.ids", "test.ids", "vocabulary.tsv"])
@pytest.mark.parametrize("change", ["truncate", "flip", "remove"])
def test_a_cached_array_that_does_not_match_is_noticed(tmp_path, name, change):
    root = write(tmp_path / "text")
    read(root)
    file = root / "ids" / name
    content = file.read_bytes()
    if change == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-4] if change == "truncate" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(
        InputError, match=rf"{name} does not match its source.*; remove the folder .*ids to build it again"
    ):
        read(root)
    shutil.rmtree(root / "ids")
    read(root)


def test_a_record_that_is_cut_short_is_noticed(tmp_path):
    root = write(tmp_path / "text")
    read(root)
    (root / "ids/record.json").write_text("{")
    with pytest.raises(InputError, match=r"record\.json is not readable; remove the folder"):
        read(root)


def test_processes_that_prepare_at_once_get_one_cache(tmp_path):
    root, pids = write(tmp_path / "text", {**TEXTS, "train": TRAIN * 3000}), []
    before = list(root.iterdir())
    for i in range(4):
        if pid := os.fork():
            pids.append(pid)
            continue
        try:
            build = neutreno.data.text._build

            def counted(*args, i=i, build=build):
                (tmp_path / f"built{i}").touch()
                build(*args)

            neutreno.data.text._build = counted
            ids = read(root).splits["train"]
            (tmp_path / f"ids{i}").write_bytes(np.array(ids).tobytes())
        finally:
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    assert len(list(tmp_path.glob("built*"))) == 1
    assert {(tmp_path / f"ids{i}").read_bytes() for i in range(4)} == {np.array(read(root).splits["train"]).tobytes()}
    assert sorted(p.name for p in root.iterdir() if not p.name.startswith(".")) == sorted(
        ["ids", *(p.name for p in before)]
    )


def test_what_a_killed_process_left_is_cleaned_up(tmp_path):
    root = write(tmp_path / "text")
    (root / "ids.unfinished123").mkdir()
    (root / "ids.unfinished123/train.ids").write_bytes(b"half")
    read(root)
    assert not list(root.glob("*unfinished*"))


def test_texts_may_share_a_cache_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "text", {**TEXTS, "train": f"{name} a b\n"})
    data = [read(tmp_path / name / "text", cache=str(tmp_path / "cache")) for name in ("a", "b")]
    assert data[0].vocabulary.words != data[1].vocabulary.words
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 2
    assert not (tmp_path / "a/text/ids").exists()


def test_a_folder_that_cannot_be_written_asks_for_another(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be kept in .*file: .*; name another folder, data\.cache=FOLDER"):
        read(write(tmp_path / "text"), cache=str(tmp_path / "file"))


def test_a_missing_split_is_named(tmp_path):
    root = write(tmp_path / "text")
    (root / "valid.txt").unlink()
    with pytest.raises(InputError, match=r"has no valid split: expected valid\.txt, valid\.tokens"):
        read(root)
    with pytest.raises(InputError, match="is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data\.root is not set"):
        TextFiles(None, **SETTINGS).setup()


def test_a_split_in_two_files_is_refused(tmp_path):
    write(tmp_path / "text", name="wiki.{}.tokens")
    with pytest.raises(InputError, match=r"train split more than once: train\.txt, wiki\.train\.tokens"):
        read(write(tmp_path / "text"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_file_is_named(tmp_path, split):
    root = write(tmp_path / "text", {**TEXTS, split: ""})
    with pytest.raises(InputError, match=rf"{split}\.txt is empty"):
        read(root)


def test_blank_lines_alone_are_no_text(tmp_path):
    with pytest.raises(InputError, match=r"train\.txt holds no word"):
        read(write(tmp_path / "text", {**TEXTS, "train": "\n \n"}))
    assert not list((tmp_path / "text").glob("ids*"))


@pytest.mark.parametrize("block", [4, 1 << 20])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_text_that_is_not_utf8_is_named_with_its_offset(tmp_path, monkeypatch, split, block):
    monkeypatch.setattr(neutreno.data.text_files, "BLOCK", block)
    root = write(tmp_path / "text")
    (root / f"{split}.txt").write_bytes("né a b\nc d".encode() + b"e\xff f\n")
    with pytest.raises(InputError, match=rf"{split}\.txt is not UTF-8 at byte 12 \(invalid start byte\)"):
        read(root)


def test_a_character_that_the_file_cuts_is_named(tmp_path):
    root = write(tmp_path / "text")
    (root / "train.txt").write_bytes("a bé".encode()[:-1])
    with pytest.raises(InputError, match=r"train\.txt is not UTF-8 at byte 3"):
        read(root)


def test_parquet_that_is_none_or_has_no_text_is_named(tmp_path):
    root = parquet(tmp_path / "p", ROWS)
    pq.write_table(pa.table({"line": ["a"]}), root / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="has no column text; it has: line"):
        read(root)
    pq.write_table(pa.table({"text": [1, 2]}), root / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="holds int64, not strings"):
        read(root)
    numbers = parquet(tmp_path / "numbers", {split: [1, 2] for split in ROWS})
    with pytest.raises(InputError, match="holds int64, not strings"):
        read_hub(numbers, cache=str(tmp_path / "cache"))
    (root / "test-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="is not a readable parquet file"):
        read(root)


def test_readers_that_give_no_text_are_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.reader=torch/wikitext is not known for text; write hfds/HUB_ID"):
        TextFiles(None, reader="torch/wikitext", **SETTINGS).setup()
    with pytest.raises(InputError, match="cannot be read"):
        TextFiles(None, reader=f"hfds/{tmp_path}/nowhere", **SETTINGS).setup()
    parquet(tmp_path / "p", {"train": ["a"]})
    with pytest.raises(InputError, match=r"has no valid split; it has: train"):
        read_hub(tmp_path / "p", cache=str(tmp_path))


def test_the_first_kind_of_file_that_is_there_is_read(tmp_path):
    sources = open_folder(write(tmp_path / "text", name="wiki.{}.tokens"))
    assert [s.files[0].name for s in sources.values()] == ["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"]


def test_the_embedded_text_is_the_same_each_time_and_splits_by_topic():
    data = [PythonDocs(min_count=3, **SETTINGS) for _ in range(2)]
    for docs in data:
        docs.setup()
    assert data[0].record() == data[1].record() and set(data[0].record()["text"]) >= {"sha256", "python", "tokens"}
    sizes = data[0].record()["text"]["tokens"]
    assert sizes["train"] > 50_000 and min(sizes["val"], sizes["test"]) > 3_000
    unknown = (data[0].splits["train"] == data[0].vocabulary.unk).mean()
    assert 0.001 < unknown < 0.1


LINES = [f"w{i % 7} é a{i}\n" for i in range(1000)]


def read_cutting(root, **kwargs):
    return read(root, cut=True, **kwargs)


def decoded(data):
    """The words of every split again; all are known, since none is rare."""
    return {split: data.vocabulary.decode(ids) for split, ids in data.splits.items()}


def whole_text(data, texts):
    """Which words of the texts stand in the splits, in order, known or not."""
    return sum(len(ids) for ids in data.splits.values()) == sum(len(line.split()) + 1 for line in texts)


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_text_without_splits_is_cut_by_position_at_ends_of_lines(tmp_path, monkeypatch, block):
    monkeypatch.setattr(neutreno.data.text_files, "BLOCK", block)
    data = read_cutting(write(tmp_path / "text", {"b": "".join(LINES[600:]), "a": "".join(LINES[:600])}))
    assert whole_text(data, LINES)
    train = data.vocabulary.decode(data.splits["train"])
    share = len(train.encode()) / len("".join(LINES).encode())
    assert 0.79 < share < 0.81 and "".join(LINES).startswith(train) and train.endswith("\n")
    sizes = {split: len(ids) for split, ids in data.splits.items()}
    assert abs(sizes["val"] - sizes["test"]) < 20
    said = "no valid and no test text: cut by position of 2 files in the order of their names"
    assert data.notes == [f"{said}, train 80%, val 10%, test 10%"]


def test_a_single_file_is_a_text(tmp_path):
    root = write(tmp_path / "text", {"book": "".join(LINES), "other": "not read\n"})
    data = read_cutting(root / "book.txt")
    assert whole_text(data, LINES) and "other" not in data.vocabulary.index
    assert next(path.name for path in root.iterdir() if path.is_dir()).startswith("book.txt-")  # others may follow


def test_what_is_missing_alone_is_cut(tmp_path):
    lines = "".join(LINES)
    no_test = read_cutting(write(tmp_path / "no_test", {"train": lines, "valid": lines}))
    assert len(no_test.splits["train"]) == 4000 and 1900 < len(no_test.splits["val"]) < 2100
    assert len(no_test.splits["val"]) + len(no_test.splits["test"]) == 4000
    assert no_test.notes == ["no test text: cut by position of valid.txt, val 50%, test 50%"]
    no_valid = read_cutting(write(tmp_path / "no_valid", {"train": lines, "test": lines}))
    assert 3550 < len(no_valid.splits["train"]) < 3650 and len(no_valid.splits["test"]) == 4000


def test_text_with_all_splits_is_not_cut(tmp_path):
    whole, cutting = read(write(tmp_path / "a")), read_cutting(write(tmp_path / "b"))
    assert decoded(whole) == decoded(cutting) and cutting.notes == []


def test_text_of_one_line_is_cut_between_words(tmp_path):
    words = [f"wörd{i}" for i in range(3000)]
    data = read_cutting(write(tmp_path / "text", {"line": " ".join(words)}))
    assert data.vocabulary.decode(data.splits["train"]).split() == words[: len(data.splits["train"]) - 1]
    assert sum(len(ids) for ids in data.splits.values()) == 3003


@pytest.mark.parametrize(
    "texts, said",
    [
        ({}, "holds no .txt file; give a folder with text, or a file"),
        ({"a": ""}, "too short to be cut"),
        ({"a": "short\n"}, "too short to be cut"),
        ({"valid": "a b\n"}, "has no train split: expected"),
        ({"train": "", "valid": "a"}, "train.txt is empty"),
    ],
)
def test_text_that_cannot_be_cut_is_refused_in_a_line(tmp_path, texts, said):
    with pytest.raises(InputError) as error:
        read_cutting(write(tmp_path / "text", texts))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_text_that_is_too_short_is_named_with_the_length_that_fits(tmp_path):
    with pytest.raises(InputError) as error:
        read_cutting(write(tmp_path / "text", {"a": "".join(LINES)}), sequence_length=500)
    assert re.fullmatch(
        r"data\.sequence_length=500 is longer than the val text of \d+ tokens and the test text of \d+ tokens; "
        r"lower it, e\.g\. data\.sequence_length=\d+",
        str(error.value),
    )


def put(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("train/a.txt", "valid/a.txt", "test/a.txt"),
        ("Training/deep/a.TXT", "DEV/a.txt", "Testing/a.tokens"),
        ("Train.txt", "Valid.txt", "Test.txt"),
        ("train.txt", "dev.txt", "test.TXT"),
        ("WIKI.train.tokens", "validation.txt", "test/b.txt"),
    ],
)
def test_splits_are_files_or_folders_in_capitals_too(tmp_path, names):
    texts = dict(zip(names, TEXTS.values(), strict=True))
    data = read_cutting(put(tmp_path / "own", {**texts, "README.txt": "not read\n"}))
    assert decoded(data) == decoded(read(write(tmp_path / "text"))) and data.notes == []


def test_the_files_of_a_splits_folder_are_one_text_in_the_order_of_their_names(tmp_path):
    texts = {"train/b.txt": "c d", "train/a.txt": "a b", "dev/a.txt": "a\nb c\n" * 9, "test.txt": "d e"}
    root = put(tmp_path / "own", texts)
    assert decoded(read(root))["train"] == "a b\nc d\n"
    assert read_cutting(put(tmp_path / "no_test", {k: t for k, t in texts.items() if k != "test.txt"})).notes == [
        "no test text: cut by position of a.txt, val 50%, test 50%"
    ]


def test_shards_of_parquet_may_lie_in_a_splits_folder(tmp_path):
    (tmp_path / "p").mkdir()
    for split, rows in ROWS.items():
        parquet(tmp_path / "p" / split, {"part": rows})
    assert decoded(read(tmp_path / "p")) == decoded(read(write(tmp_path / "text")))


@pytest.mark.parametrize(
    "names, named",
    [
        (["mytrain.txt", "mytest.txt"], "mytrain.txt"),
        (["data/train.txt", "data/test.txt"], "data/test.txt"),
        (["en.test.txt", "en.rest.txt"], "en.test.txt"),
        (["TrainSet/a.txt", "b.txt"], "TrainSet/a.txt"),
        (["train.txt", "test.txt", "dev_set/a.txt"], "dev_set/a.txt"),
        (["train.txt/part.txt", "b.txt"], "train.txt/part.txt"),
    ],
)
def test_what_seems_to_be_a_split_is_neither_merged_nor_left_out(tmp_path, names, named):
    with pytest.raises(InputError, match=rf" {re.escape(named)} is named like a split, but not read as one; rename"):
        read_cutting(put(tmp_path, dict.fromkeys(names, "a b\n" * 50)))


def test_words_that_hold_the_letters_of_a_splits_name_are_no_splits(tmp_path):
    names = ["latest.txt", "device.txt", "evaluation.txt", "contest/greatest.txt"]
    assert "4 files" in read_cutting(put(tmp_path, dict.fromkeys(names, "a b\n" * 50))).notes[0]


def test_hidden_files_and_folders_are_no_text(tmp_path):
    hidden = [".git/desc.txt", ".ipynb_checkpoints/a.txt", "b/.a.txt", "__MACOSX/b/a.txt", "b/__MACOSX/train.txt"]
    data = read_cutting(put(tmp_path, {"b/a.TXT": "".join(LINES), **dict.fromkeys(hidden, "hidden\n" * 50)}))
    assert whole_text(data, LINES) and "hidden" not in data.vocabulary.index
    (tmp_path / "folder.txt").mkdir()
    assert whole_text(read_cutting(tmp_path), LINES)


def test_a_splits_folder_may_be_a_link(tmp_path):
    root = put(tmp_path, {"own/train/a.txt": "a b\n", "own/valid.txt": "a b\n", "elsewhere/a.txt": "b b\n"}) / "own"
    (root / "test").symlink_to(tmp_path / "elsewhere")
    assert decoded(read(root))["test"] == "b b\n"


def test_short_files_are_cut_at_their_ends(tmp_path):
    texts = {f"{i:02}": f"w{i:02} b{i:02} c{i:02}" + "z" * (i % 3) for i in range(30)}
    parts = decoded(read_cutting(write(tmp_path / "text", texts))).values()
    assert all(part.endswith("\n") for part in parts)
    lines = [line.split() for part in parts for line in part.splitlines()]
    assert [len(line) for line in lines] == [3] * 30 and lines[23][0] == "w23"


def test_a_last_line_that_holds_several_splits_is_cut_between_words(tmp_path):
    texts = {"a": "a b\n", "b": " ".join(f"w{i}" for i in range(500)), "c": "c"}
    assert min(len(ids) for ids in read_cutting(write(tmp_path / "text", texts)).splits.values()) > 40


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_other_ends_of_lines_are_ends_of_lines(tmp_path, end):
    data = read_cutting(write(tmp_path / "text", {"a": "".join(LINES).replace("\n", end)}))
    assert whole_text(data, LINES) and all(len(ids) % 4 == 0 for ids in data.splits.values())
