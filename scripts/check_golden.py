"""Compare our models with golden outputs of the authors' code, in float64.

    python scripts/check_golden.py tests/golden/*.npz

Prints a line per quantity with the largest difference; exits with 1 if one exceeds its tolerance.
"""

import argparse
import sys

from golden import check

from neutreno.errors import InputError, report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE.npz")
    agreed = True
    for path in parser.parse_args().files:
        try:
            for line in check(path):
                agreed &= line.ok
                verdict = "ok  " if line.ok else "FAIL"
                print(f"{verdict} {path}: {line.quantity:32} {line.difference:.2e} (≤ {line.tolerance:.0e})")
        except InputError as error:
            agreed = False
            report(error)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
