"""Data for language modeling: text as parallel streams of tokens, read sequence by sequence."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from neutreno.config.options import EXECUTION, FREE, Count, Size, checked
from neutreno.data.base import SplitData
from neutreno.data.loading import Resumable
from neutreno.data.text import PreparedText, Vocabulary, VocabularyBuilder, open_folder, open_hub, prepare
from neutreno.errors import InputError, check_number

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
        self.sequence_length, self.steps, self.micro_batches, self.epoch = sequence_length, steps, micro_batches, 0
        self.sequences = sequences_in(length, sequence_length)
        self.sampler = self  # where Lightning sets the epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(self._begin(), len(self)):
            step, micro_batch = divmod(batch, self.micro_batches)
            start = (self.epoch * self.steps + step) % self.sequences * self.sequence_length
            end = start + self.sequence_length + 1
            tokens = torch.from_numpy(self.streams[micro_batch, :, start:end].astype(np.int64))
            self.given += 1
            yield tokens[:, :-1], tokens[:, 1:]


class SequenceLoader:
    """Batches to evaluate: a text cut into sequences, each read without what stands before it.

    The last one may be shorter and is a separate batch, because positions count from a sequence's end. Every process
    takes every ``world``-th batch.
    """

    def __init__(self, ids: np.ndarray, sequence_length: int, batch_size: int, world: int = 1, rank: int = 0) -> None:
        self.ids, self.sequence_length = ids, sequence_length
        whole = (len(ids) - 1) // sequence_length
        starts = [np.arange(i, min(i + batch_size, whole)) * sequence_length for i in range(0, whole, batch_size)]
        if whole * sequence_length < len(ids) - 1:
            starts.append(np.array([whole * sequence_length]))
        self.starts = starts[rank::world]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Batch]:
        for starts in self.starts:
            tokens = np.stack([self.ids[i : i + self.sequence_length + 1] for i in starts])
            tokens = torch.from_numpy(tokens.astype(np.int64))
            yield tokens[:, :-1], tokens[:, 1:]


def sequences_in(length: int, sequence_length: int) -> int:
    """How many sequences a stream of ``length`` tokens has: its last token is only ever predicted."""
    return -(-(length - 1) // sequence_length)


class TextData(SplitData):
    """Text for a language model, as token ids.

    Args:
        sequence_length: tokens that the model sees at once.
        val_every_n_steps: optimizer steps between two validations. This counts as an epoch here: steps, not passes
            through the text, bound a run (trainer.max_steps).
        min_count: tokens that are rarer in the training text become ``<unk>``.
        kwargs: of :class:`neutreno.data.base.SplitData`; ``batch_size`` is the number of streams.

    Raises:
        InputError: a split is shorter than a sequence.
    """

    samples_are = "tokens"

    @checked
    def __init__(
        self,
        sequence_length: Annotated[Size, FREE],
        val_every_n_steps: Count,
        min_count: Annotated[Count, FREE] = 1,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.sequence_length, self.val_every_n_steps, self.min_count = sequence_length, val_every_n_steps, min_count
        self.text: PreparedText | None = None

    @classmethod
    def bound(cls, trainer: DictConfig, data: DictConfig) -> None:
        """Steps bound the run; an epoch of Lightning's loop is what lies between two validations."""
        steps, between = trainer.max_steps, data.val_every_n_steps
        check_number("trainer.max_steps", steps, 1, integer=True)
        if trainer.max_epochs is not None:
            raise InputError(f"trainer.max_epochs={trainer.max_epochs}: steps bound this run; set trainer.max_steps")
        if steps % between:
            raise InputError(
                f"trainer.max_steps={steps} is not a multiple of data.val_every_n_steps={between}; change one of them"
            )
        trainer.max_epochs = steps // between

    def prepare_text(self) -> PreparedText:
        raise NotImplementedError

    @property
    def vocabulary(self) -> Vocabulary:
        return self.text.vocabulary

    def setup(self, stage: str | None = None) -> None:
        if self.text is None:
            self.text = self.prepare_text()
            self.splits = dict(self.text.splits)
        for split, ids in self.splits.items():
            rows = self.batch_size if split == "train" and stage != "validate" else 1
            if len(ids) // rows <= self.sequence_length:
                streams = "" if rows == 1 else f", {len(ids) // rows:,} in each of data.batch_size={rows} streams"
                raise InputError(
                    f"data.sequence_length={self.sequence_length} is longer than the {split} text of {len(ids):,} "
                    f"tokens{streams}; lower it" + (" or data.batch_size" if rows > 1 else "")
                )

    def model_arguments(self) -> dict[str, Any]:
        self.setup("validate")
        return {"vocabulary": self.vocabulary}

    def record(self) -> dict[str, Any]:
        tokens = {split: len(ids) for split, ids in self.splits.items()}
        vocabulary = {"size": len(self.vocabulary), "sha256": self.vocabulary.sha256}
        text = {"sha256": self.text.sources, "tokens": tokens, "vocabulary": vocabulary}
        return {"text": text, "digests": self.text.sources}

    def baselines(self) -> dict[str, float]:
        """Perplexity of the tokens' frequencies in training, without any context."""
        return {
            f"unigram/{split}_ppl": float(np.exp(self.vocabulary.unigram_nll(self.splits[split][1:])))
            for split in ("val", "test")
        }

    @property
    def steps_per_epoch(self) -> int:
        limit = self.trainer.limit_train_batches if self.trainer else None
        if isinstance(limit, float):
            return max(1, int(self.val_every_n_steps * limit))
        steps = self.val_every_n_steps
        return steps if limit is None else max(1, min(steps, limit // self._micro_batches))

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def eval_batches(self, world: int) -> int:
        return len(SequenceLoader(self.splits["val"], self.sequence_length, self.eval_batch_size, world))

    @property
    def _micro_batches(self) -> int:
        return self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> TokenStreamLoader:
        for split in ("val", "test"):  # before the long work
            if len(self.splits[split]) - 1 <= self.sequence_length * (self.trainer.world_size - 1):
                raise InputError(
                    f"the {split} text of {len(self.splits[split]):,} tokens has fewer sequences of "
                    f"{self.sequence_length} than there are processes ({self.trainer.world_size}); use fewer"
                )
        world, rank = self.trainer.world_size, self.trainer.global_rank
        ids, rows = self.splits["train"], self.batch_size
        return TokenStreamLoader(
            ids, rows, self.sequence_length, self.val_every_n_steps, self._micro_batches, world, rank
        )

    def _eval_loader(self, split: str) -> SequenceLoader:
        ids, world, rank = self.splits[split], self.trainer.world_size, self.trainer.global_rank
        share = max(1, sequences_in(len(ids), self.sequence_length) // world)  # every process gets a batch
        return SequenceLoader(ids, self.sequence_length, min(self.eval_batch_size, share), world, rank)

    def probe_samples(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Sequences (n, N) and the tokens that follow each of theirs, (n, N)."""
        ids, length = self.splits["val"], self.sequence_length
        whole = (len(ids) - 1) // length
        starts = np.linspace(0, whole - 1, min(num_samples, whole)).round()
        tokens = np.stack([ids[i : i + length + 1] for i in starts.astype(int) * length]).astype(np.int64)
        return torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(tokens[:, 1:].copy())


class TextFiles(TextData):
    """Text from ``root`` (see :func:`neutreno.data.text.open_folder`) or from Hugging Face ``datasets``.

    Its ids are kept in a folder beside it, so that they are made once.

    Args:
        root: folder with the splits.
        reader: instead of it ``hfds/HUB_ID``; reader_args: further arguments of ``datasets.load_dataset``, ``name``
            among them.
        cache: folder to keep the ids in; null: ``root``, and for a ``reader`` that of ``datasets``.
    """

    @checked
    def __init__(
        self,
        root: Annotated[str | Path | None, EXECUTION],
        reader: Annotated[str | None, FREE] = None,
        reader_args: Annotated[dict[str, Any] | None, FREE] = None,
        cache: Annotated[str | Path | None, EXECUTION] = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.reader, self.reader_args, self.cache = root, reader, dict(reader_args or {}), cache

    def prepare_text(self) -> PreparedText:
        if self.root is None and self.reader is None:
            raise InputError(
                "data.root is not set: give the folder of the text, data.root=FOLDER, or data.reader=hfds/…"
            )
        rare = "" if self.min_count == 1 else f"-min{self.min_count}"
        if self.root is not None:
            sources, where, here = open_folder(self.root), f"data.root={self.root}", str(Path(self.root).resolve())
            beside = Path(self.root)
        else:
            from datasets import config

            sources, where = open_hub(self.reader, self.reader_args), f"data.reader={self.reader}"
            here, beside = (
                f"{self.reader} {sorted(self.reader_args.items())}",
                Path(config.HF_DATASETS_CACHE) / "neutreno",
            )
        name = f"ids{rare}"
        if self.root is None or self.cache is not None:  # a folder that texts share
            digest = hashlib.sha256(here.encode()).hexdigest()[:8]
            name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', Path(self.root or self.reader).name)}-{digest}-{name}"
        return prepare(sources, Path(self.cache or beside) / name, self.min_count, where)


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
            raise InputError(
                "this Python comes without pydoc_data.topics, the text of data=python_docs; take another data=…"
            ) from error
        texts = {"train": "", "val": "", "test": ""}
        for i, name in enumerate(sorted(topics, key=lambda name: (len(topics[name]), name))):
            split = {4: "val", 9: "test"}.get(i % 10, "train")
            for line in topics[name].splitlines():
                if line.strip():
                    texts[split] += " ".join(match.group() for match in self._WORD.finditer(line)) + "\n"
        builder = VocabularyBuilder(self.min_count)
        preliminary = builder.add(texts["train"])
        vocabulary, ids = builder.finish()
        splits = {"train": ids[preliminary], **{s: vocabulary.encode(texts[s]) for s in ("val", "test")}}
        return PreparedText(splits, vocabulary, {s: hashlib.sha256(t.encode()).hexdigest() for s, t in texts.items()})

    def record(self) -> dict[str, Any]:
        record = super().record()
        record["text"]["python"] = platform.python_version()
        return record
