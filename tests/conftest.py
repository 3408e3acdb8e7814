"""Shapes are checked here, and only here: every annotation of the package is enforced while the tests run."""

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.typecheck

install_import_hook("lightning_topo", f"{tests.typecheck.__name__}.check")
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
torch.set_num_threads(1)  # the networks of the tests are too small for more
