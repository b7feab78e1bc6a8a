"""Run folders and checkpoints that are made to execute, to exhaust or to confuse: each is refused in a line.

Every case runs a command on one such folder, in a process with a bounded memory. What it must not do is to execute what
was planted (the file ``ran`` would appear), to end in a traceback, to hang, or to end well with other results.
"""

import io
import json
import os
import pickle
import resource
import shutil
import zipfile

import torch
import yaml
from support import Forked
from support.hostile import HOSTILE, change, nested
from support.same_run import load
from support.torture import SHORT_RUN, SilentlyWrong, assert_no_traceback, ended

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
EXECUTE = "open('ran', 'w')"


class Call:
    """Unpickles as ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls():
    """What executes ``EXECUTE``, where pickles are trusted."""
    import runpy
    import subprocess

    return [
        Call(eval, EXECUTE),
        Call(exec, EXECUTE),
        Call(os.system, "touch ran"),
        Call(subprocess.check_call, ["touch", "ran"]),
        Call(open, "ran", "w"),
        Call(runpy.run_path, "ran.py"),
        Call(torch.load, "ran.pkl"),
        Call(map, exec, [EXECUTE]),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(torch.jit.load, "ran.pt"),
    ]


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
    call, content = draw.choice(calls()), load(file.parents[1])
    place = draw.choice(["state_dict", "callbacks", "x", "variants"])
    content = draw.choice([call, {**content, place: call}, {**content, place: [call]}])
    way = draw.choice(["zip", "legacy", "pickle"])
    if way == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=draw.choice([2, 4, 5])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=way == "zip")
    return f"a call of {call.call[0].__name__} in {place}, {way}"


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
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
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
    *({"_target_": name} for name in ("os.system", "builtins.eval", "torch.load", "neutreno.cli.train.main")),
    {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "ran", "source": "local"},
    {"_target_": "neutreno.data.digits.Digits", "_args_": ["x"]},
    {"_target_": "hydra.utils.get_method", "path": "os.system"},
    *("${oc.env:HOME}", "${oc.create:{a:1}}", "pipe:touch ran", "http://localhost:9/x", "file:///etc/passwd"),
    *("=1+1", "<script>", "\x1b[31m", "x" * 90_000, "../../x", "", None, True, -1, 1e300, float("nan"), [], {}),
    [[]] * 1000,
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


def scribbled(draw, file):
    """Bytes of a table that no run writes."""
    data = bytearray(file.read_bytes())
    start = draw.randrange(len(data))
    data[start : start + draw.choice([0, 1, 50])] = draw.choice(
        [b"\xff\xfe", b"\n" * 1000, b"," * 10_000, b'"', b"\0", b"=1+1", b"1e999", b"nan,inf", "\u202e".encode()]
    )
    file.write_bytes(data)
    return f"bytes in {file.name}"


def bounded():
    """A ``setup``: what asks for more memory fails, as it would on a small machine."""
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))


def plant(draw, run, command):
    """Put something hostile into a run folder; what it is."""
    if command in OF_WEIGHTS and draw.random() < 0.6:
        return draw.choice(CHECKPOINTS)(draw, run / "checkpoints/last.ckpt")
    if draw.random() < 0.5:
        name = draw.choice([*HOSTILE])
        HOSTILE[name][1](run)
        return f"{name} in {HOSTILE[name][0]}"
    file = draw.choice(["config.yaml", "config.yaml", "result.json", "metrics.csv", "oversmoothing.csv"])
    return (scribbled if file.endswith("csv") else edited)(draw, run / file)


def check_result(command, cwd, done, truth):
    """Of what ended well."""
    shown = {"tables": done.stdout, "dashboard": page.read_text() if (page := cwd / "dashboard.html").exists() else ""}
    score = json.loads((truth / "result.json").read_text())["metrics"]["test/top1"]
    if command in shown and f"{score:.2f}"[:4] not in shown[command]:
        raise SilentlyWrong("the other run is not shown")
    if command == "evaluate":
        found = json.loads((cwd / "outputs/x/evaluation.json").read_text())["metrics"]
        if found != json.loads((truth / "evaluation.json").read_text())["metrics"]:
            raise SilentlyWrong(f"evaluated, with other metrics: {found}")
    if command == "resume":
        ours, theirs = load(cwd / "outputs/x")["state_dict"], load(truth)["state_dict"]
        if any(not torch.equal(ours[name], theirs[name]) for name in theirs):
            raise SilentlyWrong("resumed, with other weights")


def test_a_hostile_run_folder_is_refused_and_runs_nothing(hostile, runs, tmp_path):
    command = [*COMMANDS][hostile.number % len(COMMANDS)]
    shutil.copytree(runs / ("killed" if command == "resume" else "whole"), tmp_path, dirs_exist_ok=True)
    shutil.copytree(runs / "whole/outputs/x", tmp_path / "outputs/good")  # beside it, untouched
    (tmp_path / "ran.py").write_text(EXECUTE)
    (tmp_path / "ran.pkl").write_bytes(pickle.dumps(Call(eval, EXECUTE)))
    hostile.told |= {"way": command, "planted": plant(hostile, tmp_path / "outputs/x", command)}
    done = ended(Forked(*COMMANDS[command], cwd=tmp_path, setup=bounded))
    hostile.told["end"] = f"{done.returncode} {done.stderr}"[:300]
    assert not (tmp_path / "ran").exists(), "executed"
    assert_no_traceback(done)
    assert done.returncode in (0, 2), done
    if done.returncode:
        assert all(line.startswith(("error: ", "warning: ", "WARNING: ")) for line in done.stderr.splitlines()), done
    else:
        check_result(command, tmp_path, done, runs / "whole/outputs/x")
