import sys

from neutreno.cli.train import main

sys.argv[1:2] = []
sys.exit(main())
