"""`python -m lightning_topo`."""

import sys

from lightning_topo.cli import main

sys.exit(main())
