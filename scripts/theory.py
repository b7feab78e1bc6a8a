"""The same as ``neutreno theory``."""

import sys

from neutreno.cli.theory import main

if __name__ == "__main__":
    sys.exit(main())
