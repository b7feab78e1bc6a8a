"""The example of a job for SLURM."""

import re

from support import ROOT

SCRIPT = ROOT / "scripts/slurm/train.sbatch"


def test_the_example_asks_slurm_for_what_it_relies_on():
    lines = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), re.MULTILINE)
    assert "--requeue" in lines and any(re.fullmatch(r"--signal=B:USR1@\d+", line) for line in lines)
    assert "--open-mode=append" in lines  # else the second start overwrites the log of the first
    assert any(line.startswith("--ntasks-per-node=") for line in lines)  # Lightning refuses --ntasks alone
