"""Where text is read from: files and folders, in splits or cut into them, and Hugging Face ``datasets``."""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neutreno.data.base import check_root
from neutreno.data.readers import load_hub
from neutreno.data.split_names import is_meant, seeming_split, split_of, split_of_shard
from neutreno.errors import InputError

TEXTUAL = ("string", "large_string", "string_view")  # types of columns
BLOCK = 4 << 20  # bytes read at once, in whole lines: their words as Python strings take some 50 MiB
ENDINGS = (".txt", ".tokens", ".parquet")
SPLITS = {"train": "train", "val": "valid", "test": "test"}  # what WikiText calls them
AHEAD = 1 << 16  # bytes in which a cut looks for the end of a line


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
    the files of a folder ``train``, and so on, in capitals, too; for the other names see
    :data:`neutreno.data.split_names.NAMES`.

    Raises:
        InputError: no such folder, a split that is missing, there twice, or empty.
    """
    path = check_root(root)
    return _all_of(_splits_in(path, _files_in(path)), root)


def _all_of(sources: dict[str, Source], root: str | Path) -> dict[str, Source]:
    for split, name in SPLITS.items():
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
    return sorted(file for file in files if is_meant(file.relative_to(root).parts))


def _place(file: Path, root: Path) -> tuple[str | None, str]:
    """The split that a file belongs to, if any, and what holds that split: the file, shards of parquet, a folder."""
    first, *below = file.relative_to(root).parts
    kind = "*.parquet" if file.suffix.lower() == ".parquet" else "*.txt"
    if below:
        return split_of(first), f"{first}/{kind}"
    if kind == "*.parquet":
        return split_of_shard(file.stem), re.split(r"[-_\d]|\.", first)[0] + kind
    return split_of(file.stem.lower().removeprefix("wiki.")), first


def _splits_in(root: Path, files: list[Path]) -> dict[str, Source]:
    """Those of the three splits that are among the files."""
    found: dict[str, dict[str, list[Path]]] = {split: defaultdict(list) for split in SPLITS}
    for file in files:
        split, place = _place(file, root)
        if split is not None:
            found[split][place].append(file)
    sources = {}
    for split, places in found.items():
        if len(places) > 1:
            said = f"data.root={root} has the {SPLITS[split]} split more than once: {', '.join(places)}"
            raise InputError(f"{said}; keep one of them")
        for place, there in places.items():
            if not any(path.stat().st_size for path in there):
                raise InputError(f"{there[0]} is empty")
            parquet = place.endswith(".parquet")
            sources[split] = Source(there, partial(_read_parquet, there)) if parquet else _plain(there)
    return sources


def _plain(files: list[Path]) -> Source:
    return Source(files, partial(_read_parts, [(file, 0, None) for file in files]))


def _refuse_names_of_splits(root: Path, files: Iterable[Path]) -> None:
    """Files that seem to be a split, but are not read as one, would be trained on, or left out, unsaid.

    Raises:
        InputError: one is called so; says which names are read.
    """
    for path in (file.relative_to(root) for file in files):
        if any(map(seeming_split, (*path.parts[:-1], path.stem))):
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
    note = f"no {' and no '.join(SPLITS[split] for split in missing)} text: cut by position {of}, {parts}"
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
            raise InputError(f"{files[0].parent}: the text is too short to be cut: nothing is left for {SPLITS[split]}")
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
    found = load_hub(reader, **{**reader_args, "keep_in_memory": False})  # on disk, where changes are noticed
    sources = {}
    for split, said in SPLITS.items():
        name = next((name for name in found if split_of(name) == split), None)
        if name is None:
            raise InputError(f"data.reader={reader} has no {said} split; it has: {', '.join(found)}")
        if "text" not in found[name].column_names:
            raise InputError(f"data.reader={reader} has no column text; it has: {', '.join(found[name].column_names)}")
        if (kind := getattr(found[name].features["text"], "dtype", None)) not in TEXTUAL:
            raise InputError(f"data.reader={reader}: its column text holds {kind}, not strings")
        files = [Path(file["filename"]) for file in found[name].cache_files]
        sources[split] = Source(files, partial(_read_hub, found[name]))
    return sources
