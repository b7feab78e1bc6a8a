"""The check of a graph's files, run as a user runs it, on small files in the real formats."""

import numpy as np
import pytest
from scipy import sparse
from support import run_forked
from support.graphs import write_npz, write_planetoid

from neutreno.config.composing import compose

SCRIPT = "scripts/prepare_graphs.py"


@pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
def test_whole_files_of_another_size_pass_only_if_any_size_will_do(tmp_path, name):
    write_planetoid(tmp_path / name / "raw", name)
    done = run_forked(SCRIPT, name, str(tmp_path), "--any-size", cwd=tmp_path)
    assert done.returncode == 0 and f"complete; train with data={name} data.root={tmp_path}" in done.stdout, done.stderr
    assert "539 nodes" in done.stdout
    done = run_forked(SCRIPT, name, str(tmp_path), cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert done.returncode == 1 and f"{tmp_path} has 539 nodes, not" in lines[0]
    assert "539 nodes" in done.stdout and "6 to train, 500 to val, 12 to test" in done.stdout
    changed = [line for line in lines if line.endswith("is not the published file")]
    assert len(changed) == (0 if name == "pubmed" else 8)
    assert f"raw/master/data/ind.{name}.x" in done.stdout and "Traceback" not in done.stderr


def test_an_npz_file_is_checked_with_the_name_and_the_split_of_training(tmp_path):
    config = compose(["data=coauthor_cs"]).settings["data"]
    per_class, nodes = config["per_class"], 400
    draw = np.random.default_rng(0)
    parts = {"labels": np.arange(nodes) % 2}
    for kind, width in (("adj", nodes), ("attr", 6)):
        matrix = sparse.csr_array((draw.random((nodes, width)) < 0.1).astype(np.float32))
        parts |= {f"{kind}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    write_npz(tmp_path / config["folders"][0], **parts)
    done = run_forked(SCRIPT, "coauthor_cs", str(tmp_path), cwd=tmp_path)
    train, val = 2 * per_class["train"], 2 * per_class["val"]
    assert f"{train} to train, {val} to val, {nodes - train - val} to test" in done.stdout, done.stderr
    assert done.returncode == 1 and f"{tmp_path} has 400 nodes, not 18,333" in done.stdout
    done = run_forked(SCRIPT, "coauthor_cs", cwd=tmp_path)
    assert f"/npz/{config['file']}." in done.stdout


def test_an_npz_file_too_small_for_the_split_is_whole_if_any_size_will_do(tmp_path):
    write_npz(tmp_path)
    done = run_forked(SCRIPT, "coauthor_cs", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and "the val split has no node" in done.stdout  # of 40 nodes all are to train
    assert "ms_academic_cs.npz" in done.stdout and "Traceback" not in done.stderr
    done = run_forked(SCRIPT, "coauthor_cs", str(tmp_path), "--any-size", cwd=tmp_path)
    assert done.returncode == 0 and f"complete; train with data=coauthor_cs data.root={tmp_path}" in done.stdout


def test_a_broken_file_is_one_problem_and_no_folder_says_where_to_get_it(tmp_path):
    file = write_planetoid(tmp_path) / "ind.cora.allx"
    file.write_bytes(file.read_bytes()[:100])
    done = run_forked(SCRIPT, "cora", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and f"problem: {file} is cut short or broken" in done.stdout, done.stderr
    assert "problems: 1" in done.stdout
    done = run_forked(SCRIPT, "cora", cwd=tmp_path)
    assert done.returncode == 0 and "https://github.com/kimiyoung/planetoid" in done.stdout
