"""Texts as batches and their perplexity: streams, slices of processes, segments and sliding windows."""

import math
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import neutreno.evaluation.cost  # noqa: F401  (where nvcc is but no GPU, its first import says so on stderr)
from neutreno.attention import NeutrenoAttention
from neutreno.data.language_modeling import PythonDocs, SequenceLoader, TokenStreamLoader
from neutreno.errors import InputError
from neutreno.evaluation.perplexity import Perplexity, score, strides_and_limits
from neutreno.models.language_model import LanguageModel
from neutreno.tasks.language_modeling import LanguageModeling


def batchify(ids, rows, sequence_length, steps):
    """The released code's streams: columns of equal length, time first; sequences move on and start over."""
    length = len(ids) // rows
    columns = torch.from_numpy(ids[: rows * length].astype(np.int64)).view(rows, -1).t()
    batches = []
    while len(batches) < steps:
        for start in range(0, length - 1, sequence_length):
            size = min(sequence_length, length - 1 - start)
            batches.append((columns[start : start + size].t(), columns[start + 1 : start + 1 + size].t()))
    return batches[:steps]


@pytest.mark.parametrize("tokens", [100, 103, 97])  # a last segment that is whole, shorter, of one word
def test_streams_are_those_of_the_released_code(tokens):
    ids, rows, sequence_length, steps = np.arange(tokens, dtype=np.int32), 4, 6, 7
    loader, given = TokenStreamLoader(ids, rows, sequence_length, steps), []
    for epoch in range(3):
        loader.set_epoch(epoch)
        given += list(loader)
    expected = batchify(ids, rows, sequence_length, 3 * steps)
    assert len(given) == 21
    for ours, theirs in zip(given, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("micro_batches, world", [(2, 1), (1, 2), (3, 2)])
def test_processes_and_accumulated_batches_are_slices_of_the_same_rows(micro_batches, world):
    ids, rows, sequence_length = np.arange(500, dtype=np.int32), 12, 8
    whole = list(TokenStreamLoader(ids, rows, sequence_length, steps=3))
    shared = [
        list(TokenStreamLoader(ids, rows, sequence_length, 3, micro_batches, world, rank)) for rank in range(world)
    ]
    for step, (inputs, targets) in enumerate(whole):
        batches = [shared[rank][step * micro_batches + part] for part in range(micro_batches) for rank in range(world)]
        assert torch.equal(torch.cat([x for x, _ in batches]), inputs)
        assert torch.equal(torch.cat([y for _, y in batches]), targets)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("tokens", [97, 98, 101])
def test_segments_to_evaluate_give_every_word_but_the_first_once(tokens, world):
    ids = np.arange(tokens, dtype=np.int32)
    loaders = [SequenceLoader(ids, 8, 5, world, rank) for rank in range(world)]
    batches = [batch for loader in loaders for batch in loader]
    assert sum(map(len, loaders)) == len(batches)
    assert sorted(torch.cat([y.flatten() for _, y in batches]).tolist()) == list(range(1, tokens))
    assert all(torch.equal(x + 1, y) and x.shape[1] == min(8, tokens - 1 - int(x[0, 0])) for x, y in batches)


@pytest.fixture(scope="module")
def scored():
    """A model that depends on its context, and a text."""
    torch.manual_seed(0)
    model = LanguageModel(40, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, cutoffs=[10], init_std=0.5).double()
    return model.eval(), np.random.default_rng(0).integers(0, 40, 75).astype(np.int32)


def plain_nll(model, ids, context, target):
    with torch.no_grad():
        return -model(torch.from_numpy(ids[context:target].astype(np.int64))[None])[0, -1, ids[target]].item()


def plain_loop(model, ids, window, stride):
    """Each token by a separate pass over its context: the first ``window`` tokens from the text's beginning, each
    later one from the beginning of the first window that reaches it. (Positions count from a pass's end, so a shorter
    pass is another context for the model: the reference reads the whole window.)"""
    tokens, total = len(ids) - 1, {}
    for start in range(0, tokens, stride):
        end = min(start + window, tokens)
        words = torch.from_numpy(ids[start : end + 1].astype(np.int64))
        with torch.no_grad():
            log_p = model(words[None, :-1])[0]
        for i in range(end - start):
            total.setdefault(start + i + 1, -log_p[i, words[i + 1]].item())
    return total


@pytest.mark.parametrize("tokens", [75, 74, 73, 66])
@pytest.mark.parametrize("stride", [16, 7, 4, 1])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_perplexity_equals_a_plain_loop_whatever_the_stride(scored, tokens, stride, batch_size):
    model, ids = scored[0], scored[1][:tokens]
    found, plain = score(model, ids, 16, stride, batch_size), plain_loop(model, ids, 16, stride)
    assert set(plain) == set(range(1, tokens)) and found["tokens"] == tokens - 1  # every word but the first, once
    assert found["loss"] == pytest.approx(np.mean(list(plain.values())), rel=1e-12)
    assert found["ppl"] == pytest.approx(math.exp(found["loss"]))


def test_stride_one_is_every_word_of_the_first_window_then_the_last_of_each(scored):
    model, ids = scored
    log_p = model(torch.from_numpy(ids[:16].astype(np.int64))[None]).detach()[0]
    nll = [-log_p[i, ids[i + 1]].item() for i in range(16)]
    nll += [plain_nll(model, ids, target - 16, target) for target in range(17, len(ids))]
    assert score(model, ids, 16, 1, 8)["loss"] == pytest.approx(np.mean(nll), rel=1e-12)


def test_stride_window_is_what_validation_reports(scored):
    model, ids = scored
    task = LanguageModeling(model)
    task.trainer = SimpleNamespace(state=SimpleNamespace(fn=None), world_size=1)
    task.log_dict = lambda found, logger: reported.update(found)
    reported = {}
    task.on_validation_epoch_start()
    for batch in SequenceLoader(ids, 16, 3):
        task.validation_step(batch, 0)
    task.on_validation_epoch_end()
    assert reported["val/ppl"].item() == pytest.approx(score(model, ids, 16, 16, 3)["ppl"], rel=1e-12)


def test_a_limit_scores_the_texts_first_words(scored):
    model, ids = scored
    limited = score(model, ids, 16, 3, 4, limit=40)
    assert limited["tokens"] == 40 and limited["loss"] == score(model, ids[:41], 16, 3, 4)["loss"]
    assert score(model, ids, 16, 3, 4, limit=1000)["tokens"] == 74


@pytest.mark.parametrize("sliding", [[0], [17], [1.5], 32, "a", [{"tokens": 3}], [{"stride": 1, "tokens": 0}]])
def test_strides_that_are_none_are_refused(sliding):
    with pytest.raises(InputError, match="sliding"):
        strides_and_limits(Perplexity(sliding).strides(16), 16)


def test_probe_samples_are_whole_segments_spread_over_the_validation_text():
    data = PythonDocs(sequence_length=32, val_every_n_steps=1, batch_size=4)
    data.setup()
    ids, following = data.probe_samples(5)
    assert torch.equal(ids[:, 1:], following[:, :-1])
    starts = [int(np.flatnonzero([np.array_equal(data.splits["val"][i : i + 32], row) for i in
              range(0, len(data.splits["val"]) - 31, 32)])[0]) for row in ids.numpy()]  # fmt: skip
    assert ids.shape == (5, 32) and starts[0] == 0 and starts[-1] == (len(data.splits["val"]) - 1) // 32 - 1


@pytest.mark.parametrize("sequences, world", [(2, 2), (4, 3), (5, 3), (7, 4)])
def test_every_process_gets_a_batch_to_evaluate(sequences, world):
    data = PythonDocs(sequence_length=8, val_every_n_steps=1, batch_size=2, eval_batch_size=64)
    data.splits = {"val": np.arange(8 * sequences + 1, dtype=np.int32)}
    lengths = []
    for rank in range(world):
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
        lengths.append(len(data.val_dataloader()))
    assert min(lengths) > 0


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("whole", [4, 5, 6, 7])
def test_no_batch_to_evaluate_is_of_one_sequence_where_two_are_needed(whole, world):
    ids = np.arange(whole * 8 + 5, dtype=np.int32)
    loaders = [SequenceLoader(ids, 8, 2, world, rank, least=2) for rank in range(world)]
    batches = [batch for loader in loaders for batch in loader]
    assert all(len(x) in (2, 3) and x.shape[1] == 8 for x, _ in batches)
    assert sorted(torch.cat([y.flatten() for _, y in batches]).tolist()) == list(range(1, whole * 8 + 1))


@pytest.fixture
def of_others():
    return LanguageModel(9, 12, 2, 3, 2, attention=partial(NeutrenoAttention, anchor="shuffled"))


def test_a_single_sequence_at_a_time_is_refused_where_a_model_needs_another(of_others):
    data = PythonDocs(sequence_length=8, val_every_n_steps=1, batch_size=4, micro_batch_size=1)
    data.splits = dict.fromkeys(("train", "val", "test"), np.arange(22, dtype=np.int32))
    data.check_batches(of_others)
    with pytest.raises(InputError, match=r"data\.batch_size=4 in 1 processes x 4 .* is one .*anchor=shuffled takes"):
        data.accumulated_batches(1)
    data.micro_batch_size = 2
    assert data.accumulated_batches(1) == 2
    with pytest.raises(InputError, match=r"data\.batch_size=4 in 4 processes x 1"):
        data.accumulated_batches(4)
    data.eval_batch_size = 1
    with pytest.raises(InputError, match=r"data\.eval_batch_size=1, but anchor=shuffled takes"):
        data.check_batches(of_others)


def test_a_text_of_one_sequence_is_refused_where_a_model_needs_another(of_others):
    data = PythonDocs(sequence_length=8, val_every_n_steps=1, batch_size=4)
    data.splits = dict.fromkeys(("train", "val", "test"), np.arange(17, dtype=np.int32))
    data.check_batches(of_others)
    assert data.eval_batches(1) == 1
    data.splits["val"] = np.arange(16, dtype=np.int32)
    with pytest.raises(InputError, match="the val text of 16 tokens has fewer sequences of 8 than the 2 that"):
        data.eval_batches(1)


def test_a_model_asks_nothing_of_a_batch_by_default():
    data = PythonDocs(sequence_length=8, val_every_n_steps=1, batch_size=4, eval_batch_size=1)
    data.check_batches(LanguageModel(9, 12, 2, 3, 2, attention=NeutrenoAttention))
    assert data.accumulated_batches(4) == 1


@pytest.mark.parametrize("tokens, said", [(17, False), (18, True)])
def test_a_last_shorter_sequence_is_left_out_aloud(of_others, tokens, said):
    data = PythonDocs(sequence_length=8, val_every_n_steps=1, batch_size=4)
    data.splits, data.trainer = {"val": np.arange(tokens)}, SimpleNamespace(world_size=1, global_rank=0)
    data.check_batches(of_others)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (batch,) = data.val_dataloader()
    assert batch[0].shape == (2, 8)
    assert ["the val text's last sequence, which is shorter, is left out" in str(w.message) for w in caught] == [
        True
    ] * said
