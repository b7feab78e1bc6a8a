"""The same as ``neutreno figures``."""

import sys

from neutreno.cli.figures import main

if __name__ == "__main__":
    sys.exit(main())
