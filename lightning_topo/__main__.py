"""`python -m lightning_topo`."""

import sys

from lightning_topo._cli import main

sys.exit(main())
