"""Checkpoints that are damaged or exchanged: refused in a line, or read as exactly what was written."""

import json
import shutil

from support import Forked
from support.same_run import assert_equal, assert_same_run, load
from support.torture import SHORT_RUN, SilentlyWrong, assert_refused, ended

from neutreno.checkpoints import read_checkpoint
from neutreno.errors import InputError

ENDS = 8_000  # bytes at the front and the end of a file in which its structure lies


def flip(draw, data, other, bits=1):
    for _ in range(bits):
        data[place(draw, data)] ^= 1 << draw.randrange(8)


def flip_many(draw, data, other):
    flip(draw, data, other, draw.randint(2, 1000))


def zero(draw, data, other):
    start, size = place(draw, data), draw.choice([1, 64, 512, 4096, 65_536])
    data[start : start + size] = bytes(len(data[start : start + size]))


def overwrite(draw, data, other):
    start, size = place(draw, data), draw.choice([1, 4, 64, 4096])
    data[start : start + size] = draw.randbytes(len(data[start : start + size]))


def cut_off(draw, data, other):
    del data[place(draw, data) :]


def cut_off_the_front(draw, data, other):
    del data[: 1 + place(draw, data)]


def lose_a_block(draw, data, other):
    start = place(draw, data)
    del data[start : start + draw.choice([1, 64, 512, 4096])]


def repeat_a_block(draw, data, other):
    start = place(draw, data)
    data[start:start] = data[start : start + draw.choice([1, 64, 512, 4096])]


def exchange_blocks(draw, data, other):
    size = draw.choice([8, 64, 512])
    here, there = (min(place(draw, data), len(data) - size) for _ in range(2))
    data[here : here + size], data[there : there + size] = data[there : there + size], data[here : here + size]


def append(draw, data, other):
    data += draw.choice([b"\0", bytes(4096), draw.randbytes(100), bytes(data)])


def mix_with_anothers(draw, data, other):
    """From a place in its second half on, the bytes of another run's file from there on: of about the same size."""
    start = draw.randrange(len(data) // 2, len(data))
    data[start:] = other[start:]


def empty(draw, data, other):
    data.clear()


def be_anothers(draw, data, other):
    """Of the same run but for the seed: its weights would fit."""
    data[:] = other


BROKEN = [flip, flip_many, zero, overwrite, cut_off, cut_off_the_front, lose_a_block, repeat_a_block]
BROKEN += [exchange_blocks, append, mix_with_anothers, empty]
WAYS = ["read"] * 8 + ["resume", "evaluate"]


def place(draw, data):
    """Anywhere, or where the structure of the file lies."""
    if draw.random() < 0.5:
        return draw.randrange(len(data))
    return draw.choice([draw.randrange(ENDS), len(data) - 1 - draw.randrange(ENDS)])


def check_reading(file, truth):
    try:
        found = read_checkpoint(file)
    except InputError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return
    try:
        assert_equal(found, truth)
    except AssertionError as error:
        raise SilentlyWrong(f"read, with another {error}") from error


def check_resuming(cwd, whole):
    done = ended(Forked("train.py", *SHORT_RUN, "resume=true", cwd=cwd))
    if done.returncode:
        return assert_refused(done)
    try:
        assert_same_run(cwd / "outputs/x", whole)
    except AssertionError as error:
        raise SilentlyWrong(f"resumed, with another {error}") from error


def check_evaluating(cwd, truth):
    done = ended(Forked("evaluate.py", "outputs/x", cwd=cwd))
    if done.returncode:
        return assert_refused(done)
    if json.loads((cwd / "outputs/x/evaluation.json").read_text())["metrics"] != truth:
        raise SilentlyWrong("evaluated, with other metrics")


def test_a_damaged_checkpoint_is_refused_or_what_it_was(damage, runs, tmp_path):
    way = WAYS[damage.number % len(WAYS)]
    source = runs / ("killed" if way == "resume" else "whole")
    how = be_anothers if way != "read" and damage.random() < 0.3 else damage.choice(BROKEN)
    damage.told |= {"way": way, "damage": how.__name__}
    shutil.copytree(source / "outputs", tmp_path / "outputs")
    file = tmp_path / "outputs/x/checkpoints/last.ckpt"
    data = bytearray(file.read_bytes())
    how(damage, data, (runs / "other/outputs/x/checkpoints/last.ckpt").read_bytes())
    file.write_bytes(data)
    if way == "read":
        check_reading(file, load(source / "outputs/x"))
    elif way == "resume":
        check_resuming(tmp_path, runs / "whole/outputs/x")
    else:
        (tmp_path / "outputs/x/evaluation.json").unlink()
        check_evaluating(tmp_path, json.loads((source / "outputs/x/evaluation.json").read_text())["metrics"])
