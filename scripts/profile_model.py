"""The same as ``neutreno profile``."""

import sys

from neutreno.cli.profile import main

if __name__ == "__main__":
    sys.exit(main())
