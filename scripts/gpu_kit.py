"""Every figure that needs a GPU, for a machine that is at hand for minutes and has no network. Two commands:

    python scripts/gpu_kit.py --carry --cifar10 FOLDER     here: collect wheels and images in .kit, at most 60 MB
    python scripts/gpu_kit.py --out DIR --minutes 8        there, with .kit in the repository: measure

The second needs torch, torchvision, timm and lightning; it says which further packages are missing, and installs from
.kit those that are. Its parts are processes of their own, in order of worth; each is written to DIR as it ends, as
gpu_kit.json, gpu_kit.md and pictures, so a part that fails or the end of the minutes costs no other. The same command
again goes on where it stopped, by the record in DIR or its copy in --work, where the runs are; to measure anew, choose
others. Packages that the machine has besides leave room for images: --have scipy pandas …. On a CPU, in a few minutes,
reduced: --device cpu --small.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]  # nothing is installed on a bare machine

from kit import PARTS, carry, supervise  # noqa: E402

from neutreno.errors import InputError, report  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = lambda text: Path(text).resolve()  # noqa: E731
    parser.add_argument("--out", type=folder, metavar="DIR", help="folder of the record, the page and the pictures")
    parser.add_argument("--minutes", type=float, default=8, help="stop after so many; default: %(default)g")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes of seconds, to try it out")
    parser.add_argument("--cifar10", type=folder, metavar="FOLDER", help="as data.root; default: the images of .kit")
    parser.add_argument(
        "--work",
        type=folder,
        default=ROOT / "outputs/gpu_kit",
        metavar="FOLDER",
        help="runs and logs; default: %(default)s",
    )
    parser.add_argument("--carried", type=folder, default=ROOT / ".kit", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--carry", action="store_true", help="fill that folder")
    parser.add_argument("--limit-mb", type=float, default=60, help="with --carry: its size; default: %(default)g")
    parser.add_argument(
        "--have", nargs="*", default=[], metavar="PACKAGE", help="with --carry: what the machine has besides"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.carry and arguments.out is None:
        parser.error("give --out DIR to measure, or --carry to collect what the measuring machine needs")
    try:
        if arguments.carry:
            carry.carry(arguments.carried, arguments.cifar10, int(1e6 * arguments.limit_mb), arguments.have)
        elif arguments.pictures:
            from kit import pictures  # needs matplotlib

            pictures.draw(arguments.out, arguments.work)
        elif arguments.part:
            supervise.run_cases(arguments)
        elif arguments.minutes <= 0:
            raise InputError(f"--minutes {arguments.minutes:g}: give a positive number")
        else:
            supervise.measure(arguments)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
