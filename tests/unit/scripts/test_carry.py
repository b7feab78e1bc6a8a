"""What travels to a machine without a network: which packages, how large, which images."""

import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import kit.carry
import pytest
from kit.carry import choose, closure, pack, squeezed, to_carry, wheel
from support import encode, make_image, write_parquet
from torch.autograd import DeviceType

from neutreno.errors import InputError


def test_what_a_bare_machine_has_is_not_carried():
    names = set(to_carry())
    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "pydantic", "pydantic-core", "scipy"} <= names
    assert not names & {"torch", "numpy", "lightning", "torchmetrics", "pyyaml", "datasets", "pyarrow", "plotly"}
    assert "iniconfig" not in to_carry(have=["pytest", "SciPy"]) and "scipy" not in to_carry(have=["pytest", "SciPy"])
    assert not closure(["no-such-distribution"])


def test_small_files_are_chosen_before_large_ones_and_never_too_many():
    sized = [(Path(str(size)), size) for size in (50, 5, 30, 10, 40)]
    chosen, left_out = choose(sized, 60)
    assert [file.name for file in chosen] == ["5", "10", "30"] and {file.name for file in left_out} == {"40", "50"}


@pytest.mark.parametrize("built, fits", [("x-1-py3-none-any.whl", True), ("x-1-cp311-cp311-linux_x86_64.whl", False)])
def test_a_distribution_without_a_wheel_is_built_if_it_fits_the_target(built, fits, tmp_path, monkeypatch):
    def run(command, **_):
        if "download" in command:
            assert "3.12" in command and "manylinux2014_x86_64" in command and "x==1" in command
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")
        with zipfile.ZipFile(tmp_path / built, "w") as file:
            file.writestr("x.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(kit.carry.subprocess, "run", run)
    if fits:
        assert wheel("x", "1", tmp_path).name == built
    else:
        with pytest.raises(InputError, match="was built for this machine"):
            wheel("x", "1", tmp_path)


def test_a_squeezed_wheel_is_smaller_and_holds_the_same_without_tests(tmp_path):
    file, content = tmp_path / "x-1-py3-none-any.whl", "".join(f"name{i} = {i * i}\n" for i in range(5000))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x/a.py", content)
        packed.writestr("x/tests/test_a.py", content)
    before = file.stat().st_size
    assert squeezed(file) == file and file.stat().st_size < before
    with zipfile.ZipFile(file) as packed:
        assert packed.namelist() == ["x/a.py"] and packed.read("x/a.py").decode() == content


def images(root, layout):
    for split, count in (("train", 40), ("test", 8)):
        pictures = [encode(make_image(i, 32)) for i in range(count)]
        if layout == "parquet":
            labels = [i % 2 for i in range(count)]
            write_parquet(root / f"{split}-00000-of-00001.parquet", pictures, labels, ["cat", "dog"])
        else:
            for i, picture in enumerate(pictures):
                file = root / split / ("cat", "dog")[i % 2] / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture)


@pytest.mark.parametrize("layout", ["parquet", "folders"])
def test_as_many_images_as_fit_the_same_share_of_every_class(layout, tmp_path):
    images(tmp_path / "all", layout)
    archive = tmp_path / "some.tar.xz"
    assert pack(tmp_path / "all", archive, 10**7) == {"train": 40, "test": 8}
    whole = archive.stat().st_size
    count = pack(tmp_path / "all", archive, whole // 2)
    assert archive.stat().st_size <= whole // 2 and 10 <= count["train"] <= 22 and count["test"] in (2, 4)
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        assert {name[: name.rindex("/")] for name in names} == {"train/cat", "train/dog", "test/cat", "test/dog"}
        assert len(names) == sum(count.values()) and all(name.endswith(".png") for name in names)
        first = packed.extractfile("test/dog/00000.png").read()
    assert first == encode(make_image(1, 32))
    with pytest.raises(InputError, match="left for images"):
        pack(tmp_path / "all", archive, 1000)
    with pytest.raises(InputError, match="expected train and test"):
        pack(tmp_path / "nowhere", archive, 10**7)


def test_kernels_are_what_runs_on_the_gpu_without_copies_and_annotations():
    from kit.measure import kernels_in

    events = [
        SimpleNamespace(name=name, device_type=kind, self_device_time_total=time, is_user_annotation=False)
        for name, kind, time in (
            ("flash_fwd_kernel", DeviceType.CUDA, 5),
            ("vectorized_elementwise_kernel", DeviceType.CUDA, 2),
            ("Memcpy HtoD (Pageable -> Device)", DeviceType.CUDA, 100),
            ("Memset (Device)", DeviceType.CUDA, 100),
            ("aten::add", DeviceType.CPU, 100),
        )
    ]
    events.append(SimpleNamespace(name="step", device_type=DeviceType.CUDA, is_user_annotation=True))
    assert kernels_in(SimpleNamespace(events=lambda: events)) == (2, pytest.approx(7e-6))
