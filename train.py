"""Train a network and watch how similar its tokens become with depth: ``python train.py --help``."""

import sys

from neutreno.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
