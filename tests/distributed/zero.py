"""DeepSpeed's ZeRO-3 on CPUs, which Lightning refuses and DeepSpeed does not. For tests only."""

import importlib

import deepspeed
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy


class CPUZero(DeepSpeedStrategy):
    """Without what asks for a GPU."""

    def __init__(self):
        super().__init__(stage=3, process_group_backend="gloo", zero_allow_untested_optimizer=True)

    @property
    def root_device(self):
        return torch.device("cpu", 0)

    def setup_environment(self):
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()
        self._set_node_environment_variables()
        # It would compile an operator for shared memory, which gloo does without.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
        deepspeed.init_distributed("gloo")
