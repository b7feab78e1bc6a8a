"""Speed and memory as ratios of two things measured in one alternating run: A B A B …, median of the paired ratios.

    python scripts/benchmark.py                 everything; a row of CPU time takes up to four minutes
    python scripts/benchmark.py step attention  parts of it
    python scripts/benchmark.py --device cuda

A ratio above 1 says that the first of the two is faster.
"""

import argparse
from functools import partial

import benchmarks
import torch
from benchmarks import attention, graph, loading, runs, scale, shares, term, text

from neutreno.results import environment

PARTS = {
    "step": attention.bench_step,
    "term": term.bench_term,
    "attention": attention.bench_attention,
    "memory": attention.bench_memory,
    "scale": scale.bench_scale,
    "probe": runs.bench_probe,
    "loop": runs.bench_loop,
    "loading": loading.bench_loading,
    "digits": loading.bench_digits,
    "jpeg": loading.bench_jpeg,
    "lm": text.bench_lm,
    "shares": shares.bench_shares,
    "prepare": text.bench_prepare,
    "graph": graph.bench_graph,
    "graph_epoch": graph.bench_epoch,
}
PASSES = {kind: partial(attention.attention_pass, built) for kind, built in attention.ATTENTIONS.items()}
PASSES |= {name: partial(attention.model_pass, name) for name in attention.MODELS}
PASSES |= {kind: partial(graph.norm_pass, built) for kind, built in graph.NORMS.items()} | {"gain": graph.gain_pass}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "N"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        print(text.measure_prepare(arguments.prepare))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is to be seen here")
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    benchmarks.DEVICE = torch.device(arguments.device)
    torch.manual_seed(0)
    if arguments.peak:
        kind, tokens = arguments.peak
        print(attention.measure_peak(PASSES[kind], int(tokens)))
        return
    where = environment()
    hardware = where["hardware"].get("gpu", [where["hardware"]["cpu"]])[0]
    print(f"torch {where['versions']['torch']}, {hardware}, {torch.get_num_threads()} threads\n", flush=True)
    print("| measured | result |\n|---|---|")
    for part in arguments.parts or PARTS:
        for what, result in PARTS[part](arguments.repeats):
            print(f"| {what} | {result} |", flush=True)


if __name__ == "__main__":
    main()
