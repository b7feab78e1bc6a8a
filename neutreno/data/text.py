"""Text → token ids: the vocabulary's rule, and the memory-mapped arrays that the ids are kept in."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from neutreno.data.text_files import BLOCK, SPLITS, Source
from neutreno.errors import InputError
from neutreno.files import UNFINISHED

EOS, UNK = "<eos>", "<unk>"


class Vocabulary:
    """Words by id, and how often each stands in the training text (if that is known).

    The released code's rule: words are what white space separates, case kept; ``<eos>`` ends every line and is id 0;
    the rest is numbered by falling count in the training text, ties by first appearance; a word that is not in it
    becomes ``<unk>`` (counted as any word where the text holds it, the last id where it does not).
    """

    def __init__(self, words: Sequence[str], counts: Sequence[int] | None = None) -> None:
        self.words, self.counts = list(words), counts if counts is None else np.asarray(counts, dtype=np.int64)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.unk = self.index[UNK]

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32; every line that ends adds ``<eos>``."""
        words = split_words(text)
        return np.fromiter(map(self.index.get, words, itertools.repeat(self.unk)), np.int32, len(words))

    def decode(self, ids: Iterable[int]) -> str:
        """The text again, up to white space and unknown words."""
        words = (self.words[i] for i in ids)
        return re.sub(r" ?\n ?", "\n", " ".join("\n" if word == EOS else word for word in words))

    def unigram_nll(self, ids: np.ndarray) -> float:
        """Mean negative log-likelihood of ``ids`` under the words' frequencies in training, each counted once more."""
        log_p = np.log((self.counts + 1) / (self.counts.sum() + len(self)))
        return float(-(np.bincount(ids, minlength=len(self)) @ log_p) / len(ids))

    def check(self, words: str | None, source: str | Path) -> None:
        """Refuse a checkpoint, ``source``, that was trained with other ``words`` (a line each; None: it does not say).

        Raises:
            InputError: says in what they differ.
        """
        if words is None or words == "\n".join(self.words):
            return
        if not isinstance(words, str):
            raise InputError(f"{source} holds no vocabulary where one is expected")
        theirs = words.split("\n")
        pairs = enumerate(itertools.zip_longest(theirs, self.words))
        differ, (there, here) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise InputError(
            f"{source} was trained with another vocabulary than the data's: it has {len(theirs):,} tokens, the data "
            f"{len(self):,}; they first differ at token {differ}, {there!r} there and {here!r} here"
        )


class PreparedText(NamedTuple):
    """The ids of every split, their vocabulary, and the checksum of what they were made of."""

    splits: dict[str, np.ndarray]
    vocabulary: Vocabulary
    sources: dict[str, str]


def split_words(text: str) -> list[str]:
    """Words of a text, ``<eos>`` at the end of every line."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n", f" {EOS} ").split()


class VocabularyBuilder:
    """Counts words while it numbers them, so that the training text is split into words only once.

    Args:
        min_count: rarer words count as ``<unk>``, so that a small text teaches what an unknown word is.
    """

    def __init__(self, min_count: int = 1) -> None:
        self.seen: dict[str, int] = defaultdict(itertools.count().__next__)  # numbers words as they are asked for
        self.min_count, self.counts = min_count, np.zeros(0, np.int64)

    def add(self, text: str) -> np.ndarray:
        """Preliminary ids, for :meth:`finish` to translate."""
        words = split_words(text)
        ids = np.fromiter(map(self.seen.__getitem__, words), np.int32, len(words))
        counts = np.bincount(ids, minlength=len(self.seen))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        return ids

    def finish(self) -> tuple[Vocabulary, np.ndarray]:
        """The vocabulary, and the id of every preliminary id."""
        eos, unk = self.seen[EOS], self.seen[UNK]
        counts = np.pad(self.counts, (0, len(self.seen) - len(self.counts)))
        rare = counts < self.min_count
        rare[[eos, unk]] = False
        counts[unk] += counts[rare].sum()
        rank = np.where(rare, 1, -counts)  # rare words last
        rank[eos] = np.iinfo(np.int64).min
        order = np.argsort(rank, kind="stable")[: np.count_nonzero(~rare)]
        ids = np.empty(len(counts), np.int32)
        ids[order] = np.arange(len(order))
        ids[rare] = ids[unk]
        words = list(self.seen)
        return Vocabulary([words[i] for i in order], counts[order]), ids


def prepare(sources: dict[str, Source], folder: Path, min_count: int, where: str) -> PreparedText:
    """The text of ``sources`` as ids, out of the cache ``folder``, which is made if it is not there.

    The whole of sources and cache is read for its checksums each time (some two seconds for WikiText-103); nothing is
    split into words twice. Processes that come at once wait for the first. ``where`` names the text in messages.

    Raises:
        InputError: a source or an array of the cache is not what it was when the cache was made; a source holds no
            word, or is not UTF-8; the cache cannot be written.
    """
    checksums, record = {split: checksum(*source.files) for split, source in sources.items()}, folder / "record.json"
    if not record.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists, but holds no ids of {where}; name another folder, data.cache=FOLDER")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not record.exists():
                    _build(sources, checksums, folder, min_count)
        except OSError as error:
            said = f"{error.strerror or error}; name another folder, data.cache=FOLDER"
            raise InputError(f"the ids of {where} cannot be kept in {folder.parent}: {said}") from error
    return _read(folder, checksums, where)


def checksum(*files: Path) -> str:
    """sha256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _build(sources: dict[str, Source], checksums: dict[str, str], folder: Path, min_count: int) -> None:
    """Write the cache beside ``folder`` and rename it as a whole; one process at a time."""
    for leftover in folder.parent.glob(f"{folder.name}{UNFINISHED}*"):
        shutil.rmtree(leftover)
    unfinished = folder.with_name(folder.name + UNFINISHED)
    unfinished.mkdir()
    try:
        builder = VocabularyBuilder(min_count)
        _write(unfinished / "train.ids", map(builder.add, sources["train"].blocks()))
        vocabulary, ids = builder.finish()
        if len(vocabulary) == 2:
            rare = f" that occurs {min_count} times or more (data.min_count)" if min_count > 1 else ""
            raise InputError(f"{sources['train'].files[0]} holds no word{rare}")
        preliminary = np.memmap(unfinished / "train.ids", np.int32, "r+")
        for start in range(0, len(preliminary), BLOCK):
            part = preliminary[start : start + BLOCK]
            part[:] = ids[part]
        preliminary.flush()
        for split in ("val", "test"):
            if not _write(unfinished / f"{split}.ids", map(vocabulary.encode, sources[split].blocks())):
                raise InputError(f"{sources[split].files[0]} holds no word")
        lines = (f"{count}\t{word}\n" for word, count in zip(vocabulary.words, vocabulary.counts, strict=True))
        (unfinished / "vocabulary.tsv").write_text("".join(lines), encoding="utf-8", newline="\n")
        files = {file.name: checksum(file) for file in unfinished.iterdir()}
        (unfinished / "record.json").write_text(json.dumps({"sources": checksums, "files": files}, indent=1))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(path: Path, blocks: Iterable[np.ndarray]) -> int:
    with open(path, "wb") as file:
        for block in blocks:
            block.tofile(file)
    return path.stat().st_size


def _read(folder: Path, checksums: dict[str, str], where: str) -> PreparedText:
    again = f"remove the folder {folder} to build it again"
    try:
        record = json.loads((folder / "record.json").read_text())
        files, before = record["files"], record["sources"]
        changed = [split for split, found in checksums.items() if before[split] != found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'record.json'} is not readable; {again}") from error
    if changed:
        raise InputError(
            f"the {SPLITS[changed[0]]} text of {where} is not the one that the ids in {folder} were made of: it was "
            f"changed or cut short; restore it, or {again}"
        )
    for name, expected in files.items():
        if not (folder / name).is_file() or checksum(folder / name) != expected:
            raise InputError(f"{folder / name} does not match its source: it was changed or cut short; {again}")
    lines = (folder / "vocabulary.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    counts, words = zip(*(line.split("\t", 1) for line in lines), strict=True)
    splits = {split: np.memmap(folder / f"{split}.ids", np.int32, "r") for split in SPLITS}
    return PreparedText(splits, Vocabulary(words, [int(c) for c in counts]), checksums)
