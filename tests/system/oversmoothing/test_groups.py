import subprocess
import sys

from support import ROOT

PUBMED = """
import resource, torch
from neutreno.oversmoothing import groups
torch.set_num_threads(1)
labels, x = torch.arange(19_717) % 3, torch.randn(19_717, 16)
groups.distance_ratio(x, labels)
groups.information_gain(labels, groups.kernel(torch.rand(19_717, 500)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_a_graph_of_pubmeds_size_is_measured_within_a_process_of_two_gib():
    done = subprocess.run([sys.executable, "-c", PUBMED], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 2
