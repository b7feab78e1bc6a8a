"""What the metrics of a graph cost, in a process of its own, whose memory can be told."""

import subprocess
import sys

from support import ROOT

PUBMED = """
import resource, torch
from neutreno.oversmoothing.metrics import known_metrics
from neutreno.oversmoothing.tokens import LayerTokens
torch.set_num_threads(1)
x, inputs, labels = torch.randn(1, 19_717, 16), torch.rand(1, 19_717, 500), torch.arange(19_717)[None] % 3
tokens = LayerTokens(x, None, labels, inputs)
metrics = [metric for metric in known_metrics().values() if {"labels", "inputs"} & set(metric.needs)]
print(len(metrics), all(metric.function(tokens).isfinite().all() for metric in metrics))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_a_graph_of_pubmeds_size_is_measured_within_a_process_of_two_gib():
    done = subprocess.run([sys.executable, "-c", PUBMED], capture_output=True, text=True, check=True, cwd=ROOT)
    measured, gib = done.stdout.splitlines()
    assert measured == "3 True" and float(gib) < 2
