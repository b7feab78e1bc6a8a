"""Every figure of a trained model: ``python evaluate.py --help``."""

import sys

from neutreno.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
