"""What processes for tests have imported when they begin; see `warm.py`."""

import lightning.pytorch  # noqa: F401
import torch.distributed  # noqa: F401

import lightning_topo._notebook
import lightning_topo.callbacks
import lightning_topo.loops
import lightning_topo.metrics
import lightning_topo.outputs.page  # noqa: F401
import tests.outputs.driving  # noqa: F401
