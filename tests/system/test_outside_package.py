"""A package outside the repository trains, resumes, is swept, evaluated, tabled and drawn like ours.

Its model is no transformer (layers that mix the elements of a set by their mean), its axis is its own (``centring``),
its task is judged by a metric that is better when smaller. No file of ``neutreno/`` knows of it.
"""

import json
import os
import re
import shutil
import sys
import textwrap

import pytest
from support import ROOT, TINY, assert_one_line_error, result, run_forked, runs_are_forks
from support.same_run import assert_same_run, dies_after

from neutreno.reports.layers import curve

PACKAGE = {
    "data.py": """
        import torch
        from torch.utils.data import TensorDataset

        from neutreno.config.options import Size, checked
        from neutreno.data.base import SplitData


        class Sets(SplitData):
            '''Sets of points; the target is the largest coordinate that the set's mean has.'''

            samples_are = "sets"

            @checked
            def __init__(self, points: Size, dim: Size, train_sets: Size = 256, **kwargs) -> None:
                super().__init__(**kwargs)
                self.points, self.dim, self.train_sets = points, dim, train_sets

            def read(self):
                draw = torch.Generator().manual_seed(1)
                sizes = {"train": self.train_sets, "val": 64, "test": 64}
                splits = {}
                for name, sets in sizes.items():
                    x = torch.randn(sets, self.points, self.dim, generator=draw)
                    splits[name] = TensorDataset(x, x.mean(1).amax(-1))
                return splits

            def train_transform(self):
                return lambda x, y: (x + 0.1 * torch.randn(x.shape), y)

            def eval_transform(self):
                return lambda x, y: (x, y)
        """,
    "model.py": """
        from collections.abc import Callable
        from typing import Annotated

        import torch
        from torch import nn

        from neutreno.config.options import SUPPLIED, DropRate, Positive, Size, checked


        class NoNorm(nn.Module):
            @checked
            def __init__(self, dim: Annotated[int, SUPPLIED]) -> None:
                super().__init__()

            def forward(self, x):
                return x


        class Centre(nn.Module):
            '''Takes the share ``scale`` of the mean element away.'''

            @checked
            def __init__(self, dim: Annotated[int, SUPPLIED], scale: Positive = 1.0) -> None:
                super().__init__()
                self.scale = scale

            def forward(self, x):
                return x - self.scale * x.mean(1, keepdim=True)


        class Layer(nn.Module):
            def __init__(self, dim, norm, drop) -> None:
                super().__init__()
                self.own, self.others, self.drop = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Dropout(drop)
                self.norm = norm(dim=dim)

            def forward(self, x):
                mixed = self.own(x) + self.others(x.mean(1, keepdim=True))
                return x + self.drop(torch.relu(self.norm(mixed)))


        class SetNet(nn.Module):
            @checked
            def __init__(
                self,
                points_dim: Size,
                width: Size,
                depth: Size,
                centring: Callable[..., nn.Module],
                drop: DropRate = 0.0,
            ) -> None:
                super().__init__()
                self.embed, self.head = nn.Linear(points_dim, width), nn.Linear(width, 1)
                self.layers_ = nn.ModuleList(Layer(width, centring, drop) for _ in range(depth))

            def token_layers(self):
                return {"layers": [f"layers_.{i}" for i in range(len(self.layers_))]}

            def forward(self, x):
                x = self.embed(x)
                for layer in self.layers_:
                    x = layer(x)
                return self.head(x.mean(1)).squeeze(-1)
        """,
    "metrics.py": """
        import torch

        from neutreno.oversmoothing.tokens import layerwise_metric


        @layerwise_metric(needs=["labels"], whole_set=True)
        def target_correlation(tokens):
            '''Correlation over all sets of their target with the length of their mean element.'''
            length = tokens.features.mean(1).norm(dim=-1)
            return torch.corrcoef(torch.stack([length, tokens.labels]))[0, 1]
        """,
    "task.py": """
        from functools import partial

        from torchmetrics import MeanMetric

        from neutreno.config.options import Positive, checked
        from neutreno.tasks.base import Task


        class SetRegression(Task):
            '''Huber loss; mean absolute error.'''

            main_metric = "val/mae"
            main_metric_mode = "min"
            evaluators = ("metrics", "per_layer", "mine.evaluators.ErrorBySize")

            @checked
            def __init__(self, model, delta: Positive = 1.0, **kwargs) -> None:
                super().__init__(model, **kwargs)
                self.delta = delta
                self.metrics = self.per_network(partial(MeanMetric, nan_strategy="disable"))

            def loss(self, batch):
                from torch.nn.functional import huber_loss

                x, y = batch
                return huber_loss(self.model(x), y, delta=self.delta)

            def _evaluate(self, split, batch):
                x, y = batch
                for name, network in self.networks.items():
                    self.metrics[split][name or "raw"].update((network(x) - y).abs())

            def _report(self, split):
                report = {}
                for name in self.networks:
                    metric = self.metrics[split][name or "raw"]
                    report[f"{name}{split.removesuffix('_')}/mae"] = metric.compute().item()
                    metric.reset()
                self.report(report)
        """,
    "evaluators.py": """
        import torch

        from neutreno.config.options import Size, checked
        from neutreno.errors import InputError
        from neutreno.evaluation.base import Evaluator, Findings
        from neutreno.reports.evaluation import Table


        class ErrorBySize(Evaluator):
            '''Mean absolute error where the model sees some of a set's points alone.'''

            alone = True

            @checked
            def __init__(self, sizes: list[Size] | None = None) -> None:
                self.sizes = sizes

            def check(self, subject):
                points = subject.data.points
                if max(self.sizes or [1]) > points:
                    raise InputError(f"evaluator.ErrorBySize.sizes={self.sizes}: a set has {points} points")

            @torch.no_grad()
            def run(self, subject):
                sizes, model = self.sizes or [subject.data.points // 2, subject.data.points], subject.task.model.eval()
                x, y = subject.data.splits["val"].tensors
                errors = {size: (model(x[:, :size]) - y).abs().mean().item() for size in sizes}
                table = Table(["points seen", "mean absolute error"], [[str(n), f"{e:.3f}"] for n, e in errors.items()])
                return Findings({f"val_first{n}/mae": e for n, e in errors.items()}, tables=[table], record=errors)
        """,
    "report.py": """
        def elements(group, baseline, trust):
            return str(group.runs[0].config["data"]["points"])
        """,
    "__init__.py": "",
}
CONFIGS = {
    "centring/none.yaml": "{_target_: mine.model.NoNorm, _partial_: true}",
    "centring/centre.yaml": "{_target_: mine.model.Centre, _partial_: true, scale: 0.5}",
    "model/setnet.yaml": """
        # @package _global_
        defaults:
          - /centring: none
          - _self_

        family: setnet
        variants: {centring: none}
        labels: {model.depth: depth, centring.scale: s}
        model:
          _target_: mine.model.SetNet
          points_dim: ${data.dim}
          width: 16
          depth: 2
          drop: 0.1
          centring: ${centring}
        """,
    "data/sets.yaml": """
        _target_: mine.data.Sets
        points: 8
        dim: 4
        train_sets: 256
        batch_size: 64
        eval_batch_size: 64
        num_workers: 0
        seed: ${seed}
        """,
    "recipe/sets.yaml": """
        # @package _global_
        task:
          _target_: mine.task.SetRegression
          delta: 0.5
          lr: 1e-2
          warmup_epochs: 0
        trainer:
          max_epochs: 3
          log_every_n_steps: 1
        probe:
          every_n_epochs: 1
          num_samples: 8
          metrics: [cosine, mine.metrics.target_correlation]
        recipe: {}
        """,
    "table/sets.yaml": """
        title: Sets
        overrides: model=setnet data=sets
        columns: [mine.report.elements]
        rows:
          none: centring=none
          centre: centring=centre
        paper:
          none: {val/mae: {value: 0.5, provenance: "from memory, unverified"}}
        """,
}
TRAIN = ["model=setnet", "data=sets"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder in which the package ``mine`` and its config files lie."""
    home = tmp_path_factory.mktemp("outside")
    for folder, files in (("mine", PACKAGE), ("conf", CONFIGS)):
        for name, text in files.items():
            file = home / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text).lstrip("\n"))
    return home


def call(script, *words, package, cwd, setup=lambda: None):
    """The command line with the package on its path, from another folder."""

    def prepare():
        sys.path.insert(0, str(package))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        setup()

    return run_forked(script, *words, cwd=cwd, setup=prepare)


@pytest.fixture(scope="module")
def swept(package, tmp_path_factory):
    """Both choices of the axis over two seeds, from one command with ``--config-dir`` in its middle."""
    cwd = tmp_path_factory.mktemp("swept")
    done = call(
        *("train.py", "-m", "model=setnet", "--config-dir", str(package / "conf"), "data=sets"),
        *("centring=none,centre", "seed=0,1", "launcher.max_parallel=2"),
        package=package,
        cwd=cwd,
        setup=runs_are_forks,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return cwd / "outputs"


def test_it_is_swept_and_named_by_its_own_axis(swept):
    names = sorted(p.name for p in swept.iterdir() if p.name != ".sweeps")
    depth = "sets-setnet_depth2"
    assert names == sorted(f"{depth}-{norm}-seed{seed}" for norm in ("none", "centre-scale0.5") for seed in (0, 1))
    record = result(swept / f"{depth}-centre-scale0.5-seed1")
    assert record["status"] == "finished" and record["task"] == "mine.task.SetRegression"
    assert record["axes"]["centring"] == {"class": "mine.model.Centre", "arguments": {"scale": 0.5}, "baseline": False}
    assert (record["main_metric"], record["main_metric_mode"]) == ("val/mae", "min")
    assert "--config-dir" in record["command"] and record["started"]
    assert len(curve(record["oversmoothing"])) == 3


def test_its_layerwise_metric_of_labels_is_measured_and_drawn(package, swept, tmp_path):
    rows = result(swept / "sets-setnet_depth2-none-seed0")["oversmoothing"]
    found = curve(rows, metric="target_correlation")
    assert len(found) == 3 and all(-1 <= value <= 1 for value in found) and len({*found}) == 3
    words = ["--metric", "target_correlation", "--output", "f"]
    done = call("scripts/figures.py", str(swept), *words, package=package, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "f.png").stat().st_size > 10_000, done.stderr
    done = call("scripts/tables.py", str(swept), "--column", "target_correlation", package=package, cwd=tmp_path)
    assert "target correlation, trained" in done.stdout
    words = ["probe.metrics=[mine.metrics.target_corelation]", "--config-dir", str(package / "conf")]
    done = call("train.py", *TRAIN, *words, package=package, cwd=tmp_path)
    assert_one_line_error(done, "probe.metrics", "did you mean target_correlation")


def test_it_is_killed_and_resumes_exactly(package, tmp_path):
    conf = [*TRAIN, "--config-dir", str(package / "conf"), "+task.ema_decay=0.9", "checkpoint.every_n_steps=1"]
    assert call("train.py", *conf, "name=whole", package=package, cwd=tmp_path).returncode == 0
    killed = call("train.py", *conf, "name=cut", package=package, cwd=tmp_path, setup=dies_after(step=7))
    assert killed.returncode == -9
    done = call("train.py", *conf, "name=cut", "resume=true", package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "outputs/cut", tmp_path / "outputs/whole")


def test_it_is_evaluated_only_where_it_is_trusted(package, swept, tmp_path):
    run = str(swept / "sets-setnet_depth2-none-seed0")
    done = call("evaluate.py", run, package=package, cwd=tmp_path)
    assert_one_line_error(done, "mine.data.Sets", "trust=mine")
    done = call("evaluate.py", run, "trust=mine", "name=again", package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/evaluations/again/evaluation.json").read_text())
    trained = result(swept / "sets-setnet_depth2-none-seed0")["metrics"]
    assert {name: found["metrics"][name] for name in trained} == pytest.approx(trained)
    for word in ("trust=min", "trust=mine.model"):
        assert_one_line_error(call("evaluate.py", run, word, package=package, cwd=tmp_path), "mine.data.Sets")


IN_PYTHON = """
import sys

import neutreno

conf, swept = sys.argv[1:]
run = neutreno.train("--config-dir", conf, "model=setnet", "data=sets", name="x")
known = neutreno.load_run(swept, trust=["mine"])
for ours, theirs in zip(run.model.parameters(), known.model.parameters(), strict=True):
    assert (ours == theirs).all()
assert {*run.layers.metric} == {"cosine", "target_correlation"}
untrusted = neutreno.load_run(swept)
assert untrusted.metrics == run.metrics
for refused in (lambda: untrusted.model, lambda: untrusted.data, lambda: run.export("w.safetensors")):
    try:
        refused()
    except neutreno.errors.InputError as error:
        print(error)
"""


def test_it_is_trained_and_opened_in_python_and_of_others_only_where_trusted(package, swept, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IN_PYTHON)
    run = swept / "sets-setnet_depth2-none-seed0"
    done = call(str(script), str(package / "conf"), str(run), package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = done.stdout.splitlines()[-3:]
    assert all("'mine." in line and "trust=mine" in line for line in refused[:2])
    assert refused[2].startswith("timm has no SetNet")


def test_its_task_brings_its_own_evaluator(package, swept, tmp_path):
    words = [str(swept / "sets-setnet_depth2-centre-scale0.5-seed0"), "trust=mine", "name=x"]
    done = call("evaluate.py", *words, package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    assert found["settings"]["evaluators"] == ["metrics", "per_layer", "ErrorBySize"]
    assert found["metrics"]["val_first8/mae"] == pytest.approx(found["metrics"]["val/mae"], rel=1e-5)
    assert found["metrics"]["val_first4/mae"] == found["records"]["ErrorBySize"]["4"]
    assert "| points seen" in done.stdout and "| val_first4/mae" in done.stdout
    mine = ["evaluators=[ErrorBySize]", "+evaluator.ErrorBySize._target_=mine.evaluators.ErrorBySize"]
    done = call("evaluate.py", *words, *mine, "+evaluator.ErrorBySize.sizes=[3]", package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "outputs/evaluations/x/evaluation.json").read_text())
    assert found["of_evaluator"]["ErrorBySize"] == ["val_first3/mae"] and "metrics" in found["kept"]
    assert "val/mae" in found["metrics"] and "val_first4/mae" not in found["metrics"]  # what was found before stays
    for sizes, said in {"[9]": "a set has 8 points", "[0]": "sizes=[0]"}.items():
        done = call(
            "evaluate.py", *words, *mine, f"+evaluator.ErrorBySize.sizes={sizes}", package=package, cwd=tmp_path
        )
        assert_one_line_error(done, "evaluator.ErrorBySize.sizes", said)


def test_weights_of_its_other_variant_are_refused(package, swept, tmp_path):
    run = swept / "sets-setnet_depth2-none-seed0"
    shutil.copytree(run, tmp_path / "run")
    other = swept / "sets-setnet_depth2-centre-scale0.5-seed0"
    shutil.copy(other / "checkpoints/last.ckpt", tmp_path / "run/checkpoints/last.ckpt")
    done = call("evaluate.py", "run", "trust=mine", package=package, cwd=tmp_path)
    assert_one_line_error(done, "centring mine.model.Centre(scale=0.5)", "other_variants=[centring]")


def test_it_is_tabled_against_its_baseline_with_an_interval(package, swept, tmp_path):
    done = call("scripts/tables.py", str(swept), package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[0] == "|"]
    assert [row[:2] for row in lines[2:]] == [
        ["sets setnet-depth=2 none", "2"],
        ["sets setnet-depth=2 centre s=0.5", "2"],
    ]
    assert lines[0][2:4] == ["test/mae", "test/mae: difference, 95 % Welch, smaller is better"]
    assert lines[2][3] == "baseline" and re.fullmatch(r"[+-]\d+\.\d+ \(-?\d+\.\d+ to -?\d+\.\d+\)", lines[3][3])


def test_it_is_drawn_and_shown_in_the_dashboard(package, swept, tmp_path):
    done = call("scripts/figures.py", str(swept), "--output", "f", package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.png").stat().st_size > 10_000
    done = call("scripts/dashboard.py", str(swept), "--output", "d.html", package=package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "d.html").read_text()
    assert "sets setnet-depth=2 centre s=0.5" in page and "test/mae" in page and "4 runs" in done.stdout


def test_its_table_is_reproduced_with_a_column_of_its_own(package, tmp_path):
    conf = ["--config-dir", str(package / "conf")]
    words = ["scripts/reproduce.py", "sets", *conf, "--seeds", "1"]
    done = call(*words, package=package, cwd=tmp_path, setup=runs_are_forks)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| none " in done.stdout and "| centre " in done.stdout and "departs" not in done.stdout
    tabled = call("scripts/tables.py", "sets", *conf, package=package, cwd=tmp_path)
    header, _, first, _ = (line.split("|") for line in tabled.stdout.splitlines() if line.startswith("|"))
    assert first[1].strip() == "none" and "0.50 (from memory, unverified)" in tabled.stdout
    assert header[-2].strip() == "elements" and first[-2].strip() == "8"
    assert "| sets/none " in call("scripts/tables.py", "outputs", *conf, package=package, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["centring=centered"], ["centring=centered", "did you mean centre"]),
        (["attention=xsa"], ["attention=xsa", "no axis attention; its axes are centring"]),
        (["centring=centre", "centring.scale=-1"], ["centring.scale=-1 should be greater than 0"]),
        (["centring=centre", "+centring.power=1"], ["centring.power", "Centre has no such option"]),
        (["model.dept=3"], ["did you mean model.depth"]),
        (["centring._target_=mine.model.Center"], ["centring._target_", "did you mean Centre"]),
        (["centring._target_=their.model.Centre"], ["no module their"]),
        (["data.points=100000000"], ["data.points=100000000 should be less than or equal to 65536"]),
        (["task.delta=0"], ["task.delta=0 should be greater than 0"]),
        (["task.ema_decay=0.9"], ["no key task.ema_decay", "+task.ema_decay=0.9"]),
    ],
)
def test_what_is_wrong_with_its_words_is_one_line(words, said, package, tmp_path):
    conf = ["--config-dir", str(package / "conf")]
    assert_one_line_error(call("train.py", *TRAIN, *conf, *words, package=package, cwd=tmp_path), *said)
    assert not (tmp_path / "outputs").exists()


BUGS = {
    "in a constructor": ("model.py", "self.scale = scale", "self.scale = scael", "NameError"),
    "in a forward pass": ("model.py", "x - self.scale", "x - self.sclae", "AttributeError"),
    "in a loss": ("task.py", "delta=self.delta)", "dleta=self.delta)", "TypeError"),
    "in a transform": ("data.py", "0.1 * torch.randn", "0.1 * torch.radnn", "AttributeError"),
    "in the module": (
        "model.py",
        "from torch import nn",
        "from torch import nn\n\nimport missing_module",
        "missing_module",
    ),
}


@pytest.mark.parametrize("where", BUGS)
def test_its_own_bug_ends_in_its_traceback(where, package, tmp_path):
    name, right, wrong, kind = BUGS[where]
    shutil.copytree(package, tmp_path / "copy")
    file = tmp_path / "copy/mine" / name
    file.write_text(file.read_text().replace(right, wrong, 1))
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if wrong.splitlines()[-1] in text)
    conf = ["--config-dir", str(tmp_path / "copy/conf"), "centring=centre", "name=x"]
    done = call("train.py", *TRAIN, *conf, package=tmp_path / "copy", cwd=tmp_path)
    assert done.returncode == 1 and kind in done.stderr, done.stderr
    assert f'{file}", line {line}' in done.stderr
    log = tmp_path / "outputs/x/train.log"
    if log.exists():
        assert f'{file}", line {line}' in log.read_text() and result(log.parent)["status"] == "failed"
    assert log.exists() == (where in ("in a forward pass", "in a loss", "in a transform"))


def test_a_folder_of_configs_has_to_be_there_and_be_read(package, tmp_path):
    assert_one_line_error(call("train.py", "--config-dir", "no", package=package, cwd=tmp_path), "--config-dir no")
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/vit.yaml").touch()
    done = run_forked("train.py", *TINY, "--config-dir", "conf", cwd=tmp_path)
    assert_one_line_error(done, "--config-dir ", "own model/vit.yaml hides yours; rename it")
    done = run_forked("train.py", *TRAIN, cwd=tmp_path)
    assert done.returncode == 2 and "no option model=setnet" in done.stderr and "no option data=sets" in done.stderr


def test_no_file_of_the_project_knows_of_it():
    files = [file for kind in ("py", "js", "html") for file in (ROOT / "neutreno").rglob(f"*.{kind}")]
    assert len(files) > 50
    for file in files:
        assert not re.search(r"setnet|SetNet|\bmae\b|mine\.model|target_corr", file.read_text()), file
