"""The same as ``neutreno tables``."""

import sys

from neutreno.cli.tables import main

if __name__ == "__main__":
    sys.exit(main())
