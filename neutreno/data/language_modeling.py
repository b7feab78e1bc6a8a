"""Data for language modeling: text as parallel streams of tokens, read sequence by sequence."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from neutreno.config.options import FREE, Count, Reader, ReaderArgs, Root, Size, checked
from neutreno.data.kinds import SteppedData
from neutreno.data.loading import Resumable
from neutreno.data.text import PreparedText, Vocabulary, VocabularyBuilder, prepare
from neutreno.data.text_files import open_cutting, open_folder, open_hub
from neutreno.errors import InputError

Batch = tuple[Tensor, Tensor]  # ids (B, N) and the tokens that follow them (B, N)


class TokenStreamLoader(Resumable):
    """Training batches of one process: the text cut into ``rows`` streams of equal length, a sequence of each per step.

    As in the released code, each step continues a row where the previous one ended; after the row's last tokens (fewer
    than ``sequence_length``, perhaps) it starts over. What a step reads is a function of its number alone. A process
    takes the same rows in every step; accumulated micro-batches are further rows of the same step.

    Args:
        ids: the text's. rows: global batch. steps: in what Lightning calls an epoch.
    """

    def __init__(
        self,
        ids: np.ndarray,
        rows: int,
        sequence_length: int,
        steps: int,
        micro_batches: int = 1,
        world: int = 1,
        rank: int = 0,
    ) -> None:
        length = len(ids) // rows
        rows_of_rank = rows // (micro_batches * world)
        self.streams = ids[: rows * length].reshape(micro_batches, world, rows_of_rank, length)[:, rank]
        self.sequence_length, self.steps, self.micro_batches = sequence_length, steps, micro_batches
        self.sequences = sequences_in(length, sequence_length)
        self.sampler = self  # where Lightning sets the epoch

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def batches_from(self, first: int) -> Iterator[Batch]:
        for batch in range(first, len(self)):
            step, micro_batch = divmod(batch, self.micro_batches)
            start = (self.epoch * self.steps + step) % self.sequences * self.sequence_length
            yield inputs_and_targets(self.streams[micro_batch, :, start : start + self.sequence_length + 1])


class SequenceLoader(Sequence):
    """Batches to evaluate: a text cut into sequences, each read without what stands before it.

    The last one may be shorter and is a separate batch, because positions count from a sequence's end. Every process
    takes every ``world``-th batch.

    Args:
        least: sequences that a batch must have. If more than one, fewer whole ones at the end join the batch before
            them, and a shorter last sequence is left out.
    """

    def __init__(
        self,
        ids: np.ndarray,
        sequence_length: int,
        batch_size: int,
        world: int = 1,
        rank: int = 0,
        least: int = 1,
    ) -> None:
        self.ids, self.sequence_length = ids, sequence_length
        whole = (len(ids) - 1) // sequence_length
        ends = [*range(batch_size, whole - least + 1, batch_size), whole]
        starts = [part for part in np.split(np.arange(whole) * sequence_length, ends[:-1]) if len(part) >= least]
        if whole * sequence_length < len(ids) - 1 and least == 1:
            starts.append(np.array([whole * sequence_length]))
        self.starts = starts[rank::world]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        return inputs_and_targets([self.ids[i : i + self.sequence_length + 1] for i in self.starts[index]])


def inputs_and_targets(sequences: Sequence[np.ndarray]) -> Batch:
    """Of sequences (B, N + 1), the first N tokens, and the N that follow each of them."""
    tokens = torch.from_numpy(np.stack(sequences).astype(np.int64))
    return tokens[:, :-1], tokens[:, 1:]


def sequences_in(length: int, sequence_length: int) -> int:
    """How many sequences a stream of ``length`` tokens has: its last token is only ever predicted."""
    return -(-(length - 1) // sequence_length)


class TextData(SteppedData):
    """Text for a language model, as token ids.

    Args:
        sequence_length: tokens that the model sees at once.
        min_count: tokens that are rarer in the training text become ``<unk>``.
        kwargs: of :class:`neutreno.data.kinds.SteppedData`; ``batch_size`` is the number of streams.

    Raises:
        InputError: a split is shorter than a sequence.
    """

    samples_are = "tokens"

    @checked
    def __init__(
        self,
        sequence_length: Annotated[Size, FREE],
        min_count: Annotated[Count, FREE] = 1,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.sequence_length, self.min_count = sequence_length, min_count
        self.vocabulary: Vocabulary | None = None

    def prepare_text(self) -> PreparedText:
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.vocabulary is None:
            self.splits, self.vocabulary, self.sources = self.prepare_text()
        rows = {"train": 1 if stage == "validate" else self.batch_size, "val": 1, "test": 1}
        lengths = {split: len(ids) // rows[split] for split, ids in self.splits.items()}
        if short := {split: length for split, length in lengths.items() if length <= self.sequence_length}:
            streams = {"train": f" in each of data.batch_size={self.batch_size} streams"} if rows["train"] > 1 else {}
            texts = [
                f"the {split} text of {length:,} tokens{streams.get(split, '')}" for split, length in short.items()
            ]
            said = f"data.sequence_length={self.sequence_length} is longer than {' and '.join(texts)}"
            least, lower = min(short.values()), "one of them" if short.keys() & streams.keys() else "it"
            way = f"lower {lower}, e.g. data.sequence_length={least - 1}" if least > 1 else "give a longer text"
            raise InputError(f"{said}; {way}")

    def model_arguments(self) -> dict[str, Any]:
        if self.vocabulary is None:
            self.setup("validate")
        return {"vocabulary": self.vocabulary}

    def portable_arguments(self) -> dict[str, int | Tensor]:
        return {"vocabulary": len(self.model_arguments()["vocabulary"])}

    def input_facts(self) -> dict[str, Any]:
        """The tokens by id, by the rule of :class:`neutreno.data.text.Vocabulary`."""
        words = self.model_arguments()["vocabulary"].words
        return {"sequence_length": self.sequence_length, "vocabulary": words}

    @property
    def digests(self) -> dict[str, str]:
        return self.sources

    def record(self) -> dict[str, Any]:
        tokens = {split: len(ids) for split, ids in self.splits.items()}
        vocabulary = {"size": len(self.vocabulary), "sha256": self.vocabulary.sha256}
        text = {"sha256": self.sources, "tokens": tokens, "vocabulary": vocabulary}
        return {**super().record(), "text": text}

    def baselines(self) -> dict[str, float]:
        """Perplexity of the tokens' frequencies in training, without any context."""
        nll = {split: self.vocabulary.unigram_nll(self.splits[split][1:]) for split in ("val", "test")}
        return {f"unigram/{split}_ppl": float(np.exp(value)) for split, value in nll.items()}

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def eval_batches(self, world: int, split: str = "val") -> int:
        return len(self._sequences(split, world))

    def train_dataloader(self) -> TokenStreamLoader:
        length = self.sequence_length
        for split in ("val", "test"):  # before the long work
            self._sequences(split, self.trainer.world_size)
        share = {"micro_batches": self.trainer.accumulate_grad_batches, **self._share}
        return TokenStreamLoader(self.splits["train"], self.batch_size, length, self.val_every_n_steps, **share)

    def _eval_loader(self, split: str) -> SequenceLoader:
        if self.needs_others and (len(self.splits[split]) - 1) % self.sequence_length:
            rank_zero_warn(f"{self.needs_others}; the {split} text's last sequence, which is shorter, is left out")
        return self._sequences(split, **self._share)

    def _sequences(self, split: str, world: int, rank: int = 0) -> SequenceLoader:
        """
        Raises:
            InputError: a process would have no batch.
        """
        ids, length, least = self.splits[split], self.sequence_length, self.least_at_once
        most = max(least, sequences_in(len(ids), length) // world)
        cut = ids, length, min(self.eval_batch_size, most), world
        if not len(SequenceLoader(*cut, rank=world - 1, least=least)):
            few = f"has fewer sequences of {length} than the {least * world} that are needed by {world} process(es)"
            raise InputError(f"the {split} text of {len(ids):,} tokens {few}; use fewer, or shorter sequences")
        return SequenceLoader(*cut, rank=rank, least=least)

    def probe_samples(self, num_samples: int) -> Batch:
        """Sequences (n, N) and the tokens that follow each of theirs, (n, N)."""
        ids, length = self.splits["val"], self.sequence_length
        whole = (len(ids) - 1) // length
        starts = np.linspace(0, whole - 1, min(num_samples, whole)).round().astype(int) * length
        return inputs_and_targets([ids[i : i + length + 1] for i in starts])


class TextFiles(TextData):
    """Text from ``root`` (see :func:`neutreno.data.text_files.open_folder`) or from Hugging Face ``datasets``.

    Its ids are kept in a folder beside it, so that they are made once.

    Args:
        root: folder with the splits.
        reader: instead of it ``hfds/HUB_ID``; reader_args: further arguments of ``datasets.load_dataset``, ``name``
            among them.
        cache: folder to keep the ids in; null: ``root``, and for a ``reader`` that of ``datasets``.
        cut: ``root`` may be a single file, or a folder without all splits: those that are missing are cut by position,
            see :func:`neutreno.data.text_files.open_cutting`.
    """

    @checked
    def __init__(
        self,
        root: Root,
        reader: Reader = None,
        reader_args: ReaderArgs = None,
        cache: Root = None,
        cut: Annotated[bool, FREE] = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.reader, self.reader_args, self.cache = root, reader, dict(reader_args or {}), cache
        self.cut = cut

    def prepare_text(self) -> PreparedText:
        name = "ids" if self.min_count == 1 else f"ids-min{self.min_count}"
        if self.root is not None or self.reader is None:
            sources, self.notes = open_cutting(self.root) if self.cut else (open_folder(self.root), [])
            where, key, path = f"data.root={self.root}", str(Path(self.root).resolve()), Path(self.root)
            folder, shared = path.parent if path.is_file() else path, path.is_file()
        else:
            from datasets import config

            sources, where = open_hub(self.reader, self.reader_args), f"data.reader={self.reader}"
            folder, shared = Path(config.HF_DATASETS_CACHE) / "neutreno", True
            key = f"{self.reader} {sorted(self.reader_args.items())}"
        if shared or self.cache is not None:  # a folder that texts share
            text = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(self.root or self.reader).name)
            name = f"{text}-{hashlib.sha256(key.encode()).hexdigest()[:8]}-{name}"
        return prepare(sources, Path(self.cache or folder) / name, self.min_count, where)


class PythonDocs(TextData):
    """The embedded text: the language reference that ``help()`` of every CPython shows, some 65,000 tokens in topics.

    Words and punctuation are told apart. Of the topics in the order of their length every tenth validates and every
    tenth tests. The text changes with the Python release, so its checksum and that version are in every record.
    """

    _WORD = re.compile(r"\w+|([^\w\s])\1*")  # a row of the same sign, as under a title, is one word

    def prepare_text(self) -> PreparedText:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise InputError("this Python comes without pydoc_data.topics; take another data=…") from error
        texts = {"train": "", "val": "", "test": ""}
        for i, name in enumerate(sorted(topics, key=lambda name: (len(topics[name]), name))):
            split = {4: "val", 9: "test"}.get(i % 10, "train")
            lines = filter(str.strip, topics[name].splitlines())
            texts[split] += "".join(" ".join(m.group() for m in self._WORD.finditer(line)) + "\n" for line in lines)
        builder = VocabularyBuilder(self.min_count)
        preliminary = builder.add(texts["train"])
        vocabulary, ids = builder.finish()
        splits = {"train": ids[preliminary], **{s: vocabulary.encode(texts[s]) for s in ("val", "test")}}
        return PreparedText(splits, vocabulary, {s: hashlib.sha256(t.encode()).hexdigest() for s, t in texts.items()})

    def record(self) -> dict[str, Any]:
        record = super().record()
        record["text"]["python"] = platform.python_version()
        return record
