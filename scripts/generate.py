"""The same as ``neutreno generate``."""

import sys

from neutreno.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
