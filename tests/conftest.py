"""Shapes are checked here, and only here: every annotation of the package is enforced while the tests run."""

import torch
from jaxtyping import install_import_hook

import tests.typecheck

install_import_hook("lightning_topo", f"{tests.typecheck.__name__}.check")
torch.set_num_threads(1)  # the networks of the tests are too small for more
