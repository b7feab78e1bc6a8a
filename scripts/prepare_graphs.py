"""Say where the files of a graph data set are, and check a download before training on it.

    python scripts/prepare_graphs.py cora
    python scripts/prepare_graphs.py cora FOLDER
    python scripts/prepare_graphs.py pubmed FOLDER --any-size

Reads the graph as training does, compares its size with the published one, and the raw files of Cora and Citeseer with
their SHA256. Prints a line for each problem and exits with 1 if there is one.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from neutreno.errors import InputError, report

PLANETOID = """\
The raw files are https://github.com/kimiyoung/planetoid/raw/master/data/ind.{name}.x, and so on for tx, allx, y, ty,
ally, graph and test.index. Put them into a folder; it is data.root (or a folder above it, where they lie in {name}/ or
{name}/raw/)."""
NPZ = """\
The file is https://github.com/shchur/gnn-benchmark/raw/master/data/npz/ms_academic_cs.npz. Put it into a folder; it is
data.root."""
SIZES = {  # as published, edges without direction, self-loops and duplicates
    "cora": {"nodes": 2708, "edges": 5278, "features": 1433, "classes": 7},
    "citeseer": {"nodes": 3327, "edges": 4552, "features": 3703, "classes": 6},
    "pubmed": {"nodes": 19717, "edges": 44324, "features": 500, "classes": 3},
    "coauthor_cs": {"nodes": 18333, "edges": 81894, "features": 6805, "classes": 15},
}
SHA256 = {
    "cora": {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
    "citeseer": {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", choices=SIZES, help=", ".join(SIZES))
    parser.add_argument("root", metavar="FOLDER", type=Path, nargs="?", help="what data.root will be")
    parser.add_argument("--any-size", action="store_true", help="another graph in the same format, however it is split")
    arguments = parser.parse_args()
    name, root = arguments.name, arguments.root
    source = (NPZ if name == "coauthor_cs" else PLANETOID).format(name=name)
    if root is None:
        print(source)
        return 0
    try:
        problems = check(name, root, arguments.any_size)
    except Exception as error:
        return report(error)
    for problem in problems:
        print(f"problem: {problem}")
    print(f"problems: {len(problems)}\n{source}" if problems else f"complete; train with data={name} data.root={root}")
    return 1 if problems else 0


def check(name: str, root: Path, any_size: bool) -> list[str]:
    from neutreno.config.building import build
    from neutreno.config.composing import compose
    from neutreno.data.graph_files import SPLITS, check_graph, find_folder

    data = build(compose([f"data={name}"]).settings["data"], root=root)
    try:
        if any_size:
            graph, where = data.read_graph()
            check_graph(graph, where)
        else:
            data.setup()
            graph = data.graph
    except InputError as error:
        return [str(error)]
    found = graph.sizes
    print(", ".join(f"{size:,} {key}" for key, size in found.items()))
    if any_size:
        return []
    print(", ".join(f"{data.count(split):,} to {split}" for split in SPLITS))
    wrong = [(key, size) for key, size in SIZES[name].items() if found[key] != size]
    problems = [f"{root} has {found[key]:,} {key}, not {size:,}; --any-size: another graph" for key, size in wrong]
    published = SHA256.get(name, {})
    folder = find_folder(root, f"ind.{name}.*", (name, "raw")) if published else root
    files = {folder / f"ind.{name}.{part}": digest for part, digest in published.items()}
    changed = [file for file, digest in files.items() if hashlib.sha256(file.read_bytes()).hexdigest() != digest]
    return [*problems, *(f"{file} is not the published file" for file in changed)]


if __name__ == "__main__":
    sys.exit(main())
