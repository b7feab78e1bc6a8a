"""The same as ``neutreno reproduce``."""

import sys

from neutreno.cli.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
