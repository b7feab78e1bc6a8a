"""Text → token ids: the vocabulary's rule, where text is read from, and the memory-mapped arrays it is kept in."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from neutreno.data.base import check_root
from neutreno.data.images import load_hub
from neutreno.errors import InputError
from neutreno.files import UNFINISHED

EOS, UNK = "<eos>", "<unk>"
TEXTUAL = ("string", "large_string", "string_view")  # types of columns
BLOCK = 4 << 20  # bytes read at once, in whole lines: their words as Python strings take some 50 MiB
ENDINGS = (".txt", ".tokens", ".parquet")
SPLITS = {"train": ("train", "training"), "val": ("valid", "validation", "val", "dev"), "test": ("test", "testing")}
AHEAD = 1 << 16  # bytes in which a cut looks for the end of a line


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


class Source(NamedTuple):
    """The text of a split: the files that it stands in, and what gives it in blocks, which end between words."""

    files: list[Path]
    blocks: Callable[[], Iterator[str]]


def _read_plain(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """A file in UTF-8, or its bytes from ``start`` to ``stop``, some megabytes at once, also where a text is a single
    line."""
    offset, rest, block, last = start, b"", b"", False
    with open(path, "rb") as file:
        file.seek(start)
        while not last:
            read = file.read(BLOCK if stop is None else min(BLOCK, stop - file.tell()))
            last, content = len(read) < BLOCK, rest + read
            end = len(content) if last else 1 + max(content.rfind(b"\n"), content.rfind(b" "))
            found, rest = content[:end], content[end:]
            if not found:
                continue
            block = found
            try:
                text = block.decode()
            except UnicodeDecodeError as error:
                where = f"byte {offset + error.start:,} ({error.reason})"
                raise InputError(f"{path} is not UTF-8 at {where}; convert it, e.g. with iconv -t UTF-8") from error
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(block)
    if not block.endswith((b"\n", b"\r")):  # both end a line
        yield "\n"


def _read_parquet(files: list[Path]) -> Iterator[str]:
    """Parquet as Hugging Face ``datasets`` writes it: a column ``text``, one line a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            table = pq.ParquetFile(path)
            if "text" not in table.schema_arrow.names:
                raise InputError(f"{path} has no column text; it has: {', '.join(table.schema_arrow.names)}")
            kind = table.schema_arrow.field("text").type
            if str(kind.value_type if pa.types.is_dictionary(kind) else kind) not in TEXTUAL:
                raise InputError(f"{path}: its column text holds {kind}, not strings")
            for batch in table.iter_batches(10_000, columns=["text"]):
                yield _lines(batch.column(0).cast(pa.string()).to_pylist())
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a readable parquet file ({' '.join(str(error).split())})") from error


def _read_hub(dataset: Any) -> Iterator[str]:
    return (_lines(batch["text"]) for batch in dataset.iter(10_000))


def _lines(rows: list[str | None]) -> str:
    return "".join((row or "").removesuffix("\n") + "\n" for row in rows)


def open_folder(root: str | Path | None) -> dict[str, Source]:
    """The three splits under ``root``: ``train.txt``, ``train.tokens``, ``wiki.train.tokens``, ``train-*.parquet`` or
    the files of a folder ``train``, and so on, in capitals, too; for the other names see :data:`SPLITS`.

    Raises:
        InputError: no such folder, a split that is missing, there twice, or empty.
    """
    path = check_root(root)
    return _all_of(_splits_in(path, _files_in(path)), root)


def _all_of(sources: dict[str, Source], root: str | Path) -> dict[str, Source]:
    for split, (name, *_) in SPLITS.items():
        if split not in sources:
            expected = f"{name}.txt, {name}.tokens, wiki.{name}.tokens, {name}-*.parquet or {name}/*.txt"
            raise InputError(f"data.root={root} has no {name} split: expected {expected}")
    return sources


def _files_in(root: Path) -> list[Path]:
    """Those that may be text, in the order of their names; none of what hides, as versions and checkpoints do."""
    entries = list(root.iterdir())
    below = (Path(at, name) for entry in entries for at, _, names in os.walk(entry) for name in names)
    # os.walk, not rglob, bears folders that vanish, as that of ids which another process makes.
    files = (path for path in itertools.chain(entries, below) if path.suffix.lower() in ENDINGS and path.is_file())
    return sorted(f for f in files if not any(p[0] == "." or p == "__MACOSX" for p in f.relative_to(root).parts))


def _place(file: Path, root: Path, names: Iterable[str]) -> str | None:
    """What holds the split of these names, if the file belongs to it: a file, shards of parquet, a folder."""
    first, *below = file.relative_to(root).parts
    names, kind = "|".join(names), "*.parquet" if file.suffix.lower() == ".parquet" else "*.txt"
    if below:
        return f"{first}/{kind}" if re.fullmatch(names, first, re.IGNORECASE) else None
    if shard := re.fullmatch(rf"({names})(-.*)?\.parquet", first, re.IGNORECASE):
        return f"{shard[1]}{kind}"
    return first if re.fullmatch(rf"(wiki\.)?({names})\.(txt|tokens)", first, re.IGNORECASE) else None


def _splits_in(root: Path, files: list[Path]) -> dict[str, Source]:
    """Those of the three splits that are among the files."""
    sources = {}
    for split, names in SPLITS.items():
        found: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            if place := _place(file, root, names):
                found[place].append(file)
        if len(found) > 1:
            raise InputError(
                f"data.root={root} has the {names[0]} split more than once: {', '.join(found)}; keep one of them"
            )
        for place, there in found.items():
            if not any(path.stat().st_size for path in there):
                raise InputError(f"{there[0]} is empty")
            sources[split] = (
                Source(there, partial(_read_parquet, there)) if place.endswith(".parquet") else _plain(there)
            )
    return sources


def _plain(files: list[Path]) -> Source:
    return Source(files, partial(_read_parts, [(file, 0, None) for file in files]))


def _refuse_names_of_splits(root: Path, files: Iterable[Path]) -> None:
    """Files that seem to be a split, but are not read as one, would be trained on, or left out, unsaid.

    Raises:
        InputError: one is called so; says which names are read.
    """
    for path in (file.relative_to(root) for file in files):
        words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", path.as_posix().rpartition(".")[0])]
        names = {name for names in SPLITS.values() for name in names}
        if any(word in names or word.startswith("train") or word.endswith("train") for word in words):
            expected = "train.txt, valid.txt, test.txt, or folders train, valid, test"
            raise InputError(
                f"data.root={root}: {path} is named like a split, but not read as one; rename or move what are splits "
                f"to {expected}, and what is none to another name"
            )


def open_cutting(root: str | Path | None) -> tuple[dict[str, Source], list[str]]:
    """As :func:`open_folder`, but splits that are missing are cut by position, which the note says: of the training
    text, of the validation text where only the test split is missing, or of all ``*.txt`` of a folder without splits.
    A file that seems to be a split under another name is refused.

    Args:
        root: a folder, or a single file.

    Raises:
        InputError: no text there, or one that is too short to be cut; a validation or test split without training text.
    """
    path = Path(root) if root is not None and Path(root).is_file() else check_root(root)
    files = [path] if path.is_file() else _files_in(path)
    found = {} if path.is_file() else _splits_in(path, files)
    if len(found) < len(SPLITS) and path.is_dir():
        read = {file for source in found.values() for file in source.files}
        _refuse_names_of_splits(path, (file for file in files if file not in read))
    if not found:
        files = [file for file in files if file == path or file.suffix.lower() == ".txt"]
        if not files:
            raise InputError(f"data.root={root} holds no .txt file; give a folder with text, or a file")
        found = {"train": _plain(files)}
    missing = tuple(split for split in SPLITS if split not in found)
    if not missing:
        return found, []
    cut_of, shares = CUTS.get(missing, ("", {}))
    if not cut_of or any(file.suffix.lower() == ".parquet" for file in found[cut_of].files):
        return _all_of(found, root), []  # refuses
    files = found[cut_of].files
    parts = ", ".join(f"{split} {share:.0%}" for split, share in shares.items())
    of = f"of {len(files)} files in the order of their names" if files[1:] else f"of {files[0].name}"
    note = f"no {' and no '.join(SPLITS[split][0] for split in missing)} text: cut by position {of}, {parts}"
    return found | _cut(files, shares), [note]


CUTS = {  # missing splits: which one is cut, in which shares, from its beginning on
    ("val", "test"): ("train", {"train": 0.8, "val": 0.1, "test": 0.1}),
    ("val",): ("train", {"train": 0.9, "val": 0.1}),
    ("test",): ("val", {"val": 0.5, "test": 0.5}),
}


def _cut(files: list[Path], shares: dict[str, float]) -> dict[str, Source]:
    """Parts of texts one after the other, by their shares of the bytes; each but the last ends with a line or a file,
    or where neither ends soon, with a word."""
    ends = np.cumsum([file.stat().st_size for file in files])
    cuts, shared = [0], np.cumsum([*shares.values()])[:-1] * ends[-1]
    for position, following in itertools.pairwise([*shared.astype(int).tolist(), int(ends[-1])]):
        number = min(int(np.searchsorted(ends, position)), len(files) - 1)
        begin = int(ends[number]) - files[number].stat().st_size
        cuts.append(begin + _line_end(files[number], position - begin, position + 0.9 * (following - position) - begin))
    sources = {}
    for split, first, last in zip(shares, cuts, [*cuts[1:], int(ends[-1])], strict=True):
        parts = []
        for file, end in zip(files, ends.tolist(), strict=True):
            begin = end - file.stat().st_size
            if (start := max(first, begin)) < (stop := min(last, end)):
                parts.append((file, start - begin, stop - begin))
        if not parts:
            raise InputError(
                f"{files[0].parent}: the text is too short to be cut: nothing is left for {SPLITS[split][0]}"
            )
        sources[split] = Source(files, partial(_read_parts, parts))
    return sources


def _line_end(file: Path, offset: int, limit: float) -> int:
    """Where the line that holds this byte ends; where none ends in :data:`AHEAD` bytes, where the file does; where
    it does not either, or from ``limit`` on, which would leave the next part nearly nothing: the word."""
    with open(file, "rb") as opened:
        opened.seek(offset)
        ahead = opened.read(AHEAD)
    if not (end := re.search(rb"\n|\r(?!\n|\Z)", ahead)):  # no cut between the two of an end of line
        if len(ahead) < AHEAD and offset + len(ahead) < limit:
            return offset + len(ahead)
        end = re.search(rb"[ \t]", ahead)
    return offset + (end.end() if end else len(ahead))


def _read_parts(parts: list[tuple[Path, int, int | None]]) -> Iterator[str]:
    return itertools.chain.from_iterable(_read_plain(*part) for part in parts)


def open_hub(reader: str, reader_args: dict[str, Any]) -> dict[str, Source]:
    """The three splits of ``hfds/HUB_ID`` (or ``hfds/FOLDER``); ``reader_args``, such as ``name``, go to ``datasets``.

    Raises:
        InputError: no such reader or data set, a split or the column ``text`` is missing.
    """
    if not reader.startswith("hfds/"):
        raise InputError(f"data.reader={reader} is not known for text; write hfds/HUB_ID")
    found, sources = (
        load_hub(reader, **{**reader_args, "keep_in_memory": False}),
        {},
    )  # on disk, where changes are noticed
    for split, names in SPLITS.items():
        name = next((name for name in names if name in found), None)
        if name is None:
            raise InputError(f"data.reader={reader} has no {names[0]} split; it has: {', '.join(found)}")
        if "text" not in found[name].column_names:
            raise InputError(f"data.reader={reader} has no column text; it has: {', '.join(found[name].column_names)}")
        if (kind := getattr(found[name].features["text"], "dtype", None)) not in TEXTUAL:
            raise InputError(f"data.reader={reader}: its column text holds {kind}, not strings")
        files = [Path(file["filename"]) for file in found[name].cache_files]
        sources[split] = Source(files, partial(_read_hub, found[name]))
    return sources


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
            f"the {SPLITS[changed[0]][0]} text of {where} is not the one that the ids in {folder} were made of: it was "
            f"changed or cut short; restore it, or {again}"
        )
    for name, expected in files.items():
        if not (folder / name).is_file() or checksum(folder / name) != expected:
            raise InputError(f"{folder / name} does not match its source: it was changed or cut short; {again}")
    lines = (folder / "vocabulary.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    counts, words = zip(*(line.split("\t", 1) for line in lines), strict=True)
    splits = {split: np.memmap(folder / f"{split}.ids", np.int32, "r") for split in SPLITS}
    return PreparedText(splits, Vocabulary(words, [int(c) for c in counts]), checksums)
