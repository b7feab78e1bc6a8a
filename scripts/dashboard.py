"""The same as ``neutreno dashboard``."""

import sys

from neutreno.cli.dashboard import main

if __name__ == "__main__":
    sys.exit(main())
