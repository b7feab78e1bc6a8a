"""Run folders and checkpoints that are made to execute, to exhaust or to confuse: each is refused in a line.

Every case runs a command on one such folder, in a process with a bounded memory. What it must not do is to execute what
was planted (the file ``ran`` would appear), to end in a traceback, to hang, or to end well with other results.
"""

import contextlib
import io
import json
import os
import pickle
import pkgutil
import resource
import runpy
import shutil
import subprocess
import zipfile

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text
from support import Forked
from support.hostile import HOSTILE, change, nested
from support.same_run import assert_equal, assert_same_run, load
from support.torture import SHORT_RUN, SilentlyWrong, assert_no_traceback, ended

from neutreno.config.composing import compose

MEMORY = 3 * 2**30  # bytes beyond what the process of the tests holds
COMMANDS = {
    "tables": ["scripts/tables.py", "outputs"],
    "figures": ["scripts/figures.py", "outputs", "--output", "f"],
    "dashboard": ["scripts/dashboard.py", "outputs", "--output", "dashboard.html"],
    "evaluate": ["evaluate.py", "outputs/x"],
    "theory": ["scripts/theory.py", "outputs/x"],
    "profile": ["scripts/profile_model.py", "outputs/x"],
    "resume": ["train.py", *SHORT_RUN, "resume=true"],
    "start from it": ["train.py", *SHORT_RUN[:-1], "name=y", "model.weights=outputs/x", "trainer.max_epochs=1"],
}
OF_ALL = ("tables", "figures", "dashboard")  # they show what is left
OF_WEIGHTS = ("evaluate", "resume", "start from it")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still read
EXECUTE = "open('ran', 'w')"
SHOWN = {  # of it, by what shows all
    "tables": "neutreno λ̃=0.5",
    "figures": r"$\tilde{\lambda}$=0.5",
    "dashboard": '{"name":"good",',
}


class Call:
    """Unpickles as ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {  # execute ``EXECUTE``, where pickles are trusted
    "eval": Call(eval, EXECUTE),
    "exec": Call(exec, EXECUTE),
    "os.system": Call(os.system, "touch ran"),
    "subprocess": Call(subprocess.check_call, ["touch", "ran"]),
    "open": Call(open, "ran", "w"),
    "runpy": Call(runpy.run_path, "ran.py"),
    "a pickle within": Call(pickle.loads, pickle.dumps(Call(eval, EXECUTE))),
    "map": Call(list, Call(map, exec, [EXECUTE])),
    "getattr": Call(list, Call(map, Call(getattr, Call(__import__, "os"), "system"), ["touch ran"])),
    "TorchScript": Call(torch.jit.load, "ran.pt"),
}
TARGETS = {  # do so, where the ``_target_`` of a config is trusted
    "os.system": {"command": "touch ran"},
    "builtins.eval": {"_args_": [EXECUTE]},
    "subprocess.call": {"args": ["touch", "ran"]},
    "runpy.run_path": {"path_name": "ran.py"},
    "torch.load": {"f": "ran.pkl", "weights_only": False},
    "torch.jit.load": {"f": "ran.pt"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "ran", "source": "local"},
}


class Script(torch.nn.Module):
    """TorchScript that writes the file ``ran`` as it is loaded."""

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        torch.save(state[0], "ran")
        self.training = state[1]


def write_what_executes(folder):
    """The files that :data:`CALLS`, :data:`TARGETS` and plants name."""
    (folder / "ran.py").write_text(EXECUTE)
    (folder / "hubconf.py").write_text(f"def ran():\n    {EXECUTE}\n")
    (folder / "ran.pkl").write_bytes(pickle.dumps(CALLS["eval"]))
    torch.jit.save(torch.jit.script(Script()), folder / "ran.pt")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_executes_where_pickles_are_trusted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_what_executes(tmp_path)
    pickle.loads(pickle.dumps(CALLS[name]))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_executes_where_it_is_called(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_what_executes(tmp_path)
    arguments = dict(TARGETS[name])
    with contextlib.suppress(RuntimeError):  # torch.load unpickles, and misses its magic number then
        pkgutil.resolve_name(name)(*arguments.pop("_args_", ()), **arguments)
    assert (tmp_path / "ran").exists()


def laughs(depth=40):
    """A list of lists that are the same: small here, and 2 ** depth for who walks through it."""
    found = ["ha"]
    for _ in range(depth):
        found = [found, found]
    return found


def round_and_round():
    found = []
    found.append(found)
    return found


VALUES = {  # of plain data and tensors, that nobody wrote
    "nothing": lambda: None,
    "a list": lambda: [],
    "a dictionary": lambda: {},
    "a text": lambda: "\x1b[31m=1+1\n",
    "a number": lambda: -1,
    "NaN": lambda: float("nan"),
    "a huge number": lambda: 10**400,
    "a deep list": lambda: json.loads(nested(150)),
    "laughs": laughs,
    "a circle": round_and_round,
    "a long text": lambda: "x" * 10**7,
    "a huge tensor of one number": lambda: torch.zeros(1).expand(10**6, 10**6),
    "a sparse tensor": lambda: torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True),
    "a tensor of no place": lambda: torch.empty(10**6, 10**6, device="meta"),
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "complex numbers": lambda: torch.ones(2, dtype=torch.complex64),
}


def pickled(draw, file):
    """A call in a pickle or in an archive of torch, beside or within what a run writes."""
    name, content = draw.choice([*CALLS]), load(file.parents[1])
    call = CALLS[name]
    place = draw.choice(["state_dict", "callbacks", "x", "variants"])
    content = draw.choice([call, {**content, place: call}, {**content, place: [call]}])
    way = draw.choice(["zip", "legacy", "pickle"])
    if way == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=draw.choice([2, 4, 5])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=way == "zip")
    return f"a call, {name}, in {place}, {way}"


def bombed(draw, file):
    """An archive of a few MiB that inflates to gigabytes, in one of its entries or in one more."""
    source = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    entries = [name for name in source.namelist() if "/data/" in name or name.endswith("data.pkl")]
    which, size = draw.choice([*entries, "archive/data/more"]), draw.choice([2**28, 2**30])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name in source.namelist():
            if name != which:
                target.writestr(name, source.read(name), zipfile.ZIP_STORED)
        with target.open(which, "w", force_zip64=True) as entry:
            for _ in range(size >> 26):
                entry.write(bytes(2**26))
    return f"{size:,} bytes of zeros, deflated, at {which}"


def torch_script(draw, file):
    torch.jit.save(torch.jit.script(Script()), file)
    return "a TorchScript archive"


def odd(draw, file):
    """Plain data that no run writes, in the place of something that a run writes.

    A checkpoint that is not damaged may be forged within, as a record may: what is checked is what each key is.
    """
    content, name = load(file.parents[1]), draw.choice([*VALUES])
    key = draw.choice([*content, "state_dict", "variants", "run"])
    node, path = content, [key]
    if key in ("state_dict", "variants", "run") and draw.random() < 0.7:
        node, path = content[key], [key, draw.choice([*content[key]])]
    node[path[-1]] = VALUES[name]()
    torch.save(content, file)
    return f"{name} at {'/'.join(path)}"


CHECKPOINTS = [pickled, pickled, odd, odd, odd, bombed, torch_script]
PLANTS = [
    *({"_target_": name, **more} for name, more in TARGETS.items()),
    {"_target_": "neutreno.cli.train.main"},
    {"_target_": "neutreno.data.digits.Digits", "_args_": ["x"]},
    {"_target_": "hydra.utils.get_method", "path": "os.system"},
    *("${oc.env:HOME}", "${oc.create:{a:1}}", "pipe:touch ran", "http://localhost:9/x", "file:///etc/passwd"),
    *("=1+1", "<script>", "\x1b[31m", "x" * 90_000, "../../x", "", None, True, -1, 1e300, float("nan"), [], {}),
    [[]] * 1000,
]  # fmt: skip


ELSEWHERE = [  # what a library could take for a command, a URL or a reader that unpickles
    *({"data": {"root": root}} for root in ("pipe:touch ran", "http://localhost:9/x", "file:///etc/passwd")),
    *({"data": {"root": "pipe:touch ran", "reader": reader}} for reader in ("wds/", "wds/x", "hfds/x")),
    {"data": {"reader": "hfds/pandas", "reader_args": {"data_files": "ran.pkl"}}},
    {"data": {"root": ".", "reader": "wds/", "reader_args": {"class_map": "ran.pkl"}}},
    *({"model": {"weights": file}} for file in ("pipe:touch ran", "http://localhost:9/x", "ran.pkl", "ran.pt")),
]  # fmt: skip


def keys_of(node, start=()):
    for key, value in node.items():
        yield (*start, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*start, key))


def edited(draw, file):
    """Another value at some key of a config or a record."""
    content = yaml.safe_load(file.read_text())
    key, value = draw.choice([*keys_of(content)]), draw.choice(PLANTS)
    change(file, **{"__".join(key): value})
    return f"{'.'.join(key)}={str(value)[:60]} in {file.name}"


def led_elsewhere(draw, file):
    """A config whose data, which are classes of images then, or weights are read in another way."""
    content, planted = yaml.safe_load(file.read_text()), draw.choice(ELSEWHERE)
    if "data" in planted:
        ours = {"img_size": 8, "in_chans": 1, "num_classes": 10, "mean": [0.5], "std": [0.5], "seed": 0}
        content["data"] = compose(["data=imagenet"]).settings["data"] | ours
    for part, more in planted.items():
        content[part] |= more
    file.write_text(yaml.safe_dump(content))
    return f"{planted} in {file.name}"


def scribbled(draw, file):
    """Bytes of a table that no run writes."""
    data = bytearray(file.read_bytes())
    start = draw.randrange(len(data))
    data[start : start + draw.choice([0, 1, 50])] = draw.choice(
        [b"\xff\xfe", b"\n" * 1000, b"," * 10_000, b'"', b"\0", b"=1+1", b"1e999", b"nan,inf", "\u202e".encode()]
    )
    file.write_bytes(data)
    return f"bytes in {file.name}"


def prepared():
    """A ``setup``: what asks for more memory fails, as on a small machine; ``texts`` takes the texts of the figures."""
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    savefig = Figure.savefig

    def noted(figure, *arguments, **more):
        with open("texts", "a") as texts:
            texts.write("\n".join(text.get_text() for text in figure.findobj(Text)))
        savefig(figure, *arguments, **more)

    Figure.savefig = noted


def plant(draw, run, command):
    """Put something hostile into a run folder; what it is."""
    if command in OF_WEIGHTS and draw.random() < 0.6:
        return draw.choice(CHECKPOINTS)(draw, run / "checkpoints/last.ckpt")
    if draw.random() < 0.5:
        name = draw.choice([*HOSTILE])
        HOSTILE[name][1](run)
        return f"{name} in {HOSTILE[name][0]}"
    if draw.random() < 0.3:
        return led_elsewhere(draw, run / "config.yaml")
    file = draw.choice(["config.yaml", "config.yaml", "result.json", "metrics.csv", "oversmoothing.csv"])
    return (scribbled if file.endswith("csv") else edited)(draw, run / file)


@pytest.fixture
def untouched(once, runs):
    """``untouched(command)``: the folder in which it ran beside what nobody changed."""

    def get(command):
        def make(folder):
            done = ended(Forked(*COMMANDS[command], cwd=lay_out(runs, folder, command), setup=prepared))
            assert done.returncode == 0, done.stderr
            (folder / "stdout").write_text(done.stdout)

        return once(f"untouched {command}", make)

    return get


def lay_out(runs, folder, command):
    shutil.copytree(runs / ("killed" if command == "resume" else "whole"), folder, dirs_exist_ok=True)
    shutil.copytree(runs / "good/outputs/x", folder / "outputs/good")
    write_what_executes(folder)
    return folder


def check_shown(command, cwd, done):
    """The other run has its row, its curve or its entry, whatever became of the hostile one."""
    assert done.returncode == 0, done
    texts = {"tables": lambda: done.stdout, "figures": (cwd / "texts").read_text}
    if SHOWN[command] not in texts.get(command, (cwd / "dashboard.html").read_text)():
        raise SilentlyWrong(f"the other run is not shown: {done}")


def check_result(command, cwd, done, truth):
    """Of what ended well: what was written is what an untouched run folder gives."""
    try:
        if command == "theory":
            assert_equal(done.stdout, (truth / "stdout").read_text())
        elif command == "profile":
            assert_equal(*((folder / "outputs/profile.csv").read_text() for folder in (cwd, truth)))
        elif command == "evaluate":
            assert_equal(*(evaluated(folder) for folder in (cwd, truth)))
        elif command == "start from it":
            assert_same_run(cwd / "outputs/y", truth / "outputs/y")
        else:
            assert_equal(*(load(folder / "outputs/x")["state_dict"] for folder in (cwd, truth)))
    except AssertionError as error:
        raise SilentlyWrong(f"ended well, with another result: {error}") from error


def evaluated(folder):
    return json.loads((folder / "outputs/x/evaluation.json").read_text())["metrics"]


def test_a_hostile_run_folder_is_refused_and_runs_nothing(hostile, runs, untouched, tmp_path):
    command = [*COMMANDS][hostile.number % len(COMMANDS)]
    lay_out(runs, tmp_path, command)
    hostile.told |= {"way": command, "planted": plant(hostile, tmp_path / "outputs/x", command)}
    done = ended(Forked(*COMMANDS[command], cwd=tmp_path, setup=prepared))
    hostile.told["end"] = f"{done.returncode} {done.stderr}"[:300]
    assert not (tmp_path / "ran").exists(), "executed"
    assert_no_traceback(done)
    assert done.returncode in (0, 2), done
    if command in OF_ALL:
        check_shown(command, tmp_path, done)
    elif done.returncode:
        assert all(line.startswith(("error: ", "warning: ", "WARNING: ")) for line in done.stderr.splitlines()), done
    else:
        check_result(command, tmp_path, done, untouched(command))
