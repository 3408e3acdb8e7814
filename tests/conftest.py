"""Shapes are checked here, and only here: every annotation of the package is enforced while the tests run."""

import logging
import os

# What a module of ours is first to import under the checker's hook is compiled anew in every process, for seconds.
import lightning.pytorch  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pytest
import pytest_randomly
import scipy.optimize
import scipy.stats  # noqa: F401
import sympy  # noqa: F401
import torch
import torch.distributed.tensor
from hypothesis import HealthCheck, settings

import tests.typecheck

tests.typecheck.install("lightning_topo")
# A busy machine is no failure. For a long search: HYPOTHESIS_EXAMPLES=1000
settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "40")),
)
settings.load_profile("untimed")
# DeepSpeed would have itself imported into every test run here, to seed torch: tests that need a seed set it.
pytest_randomly.entrypoint_reseeds = []
torch.set_num_threads(1)  # the networks of the tests are too small for more


@pytest.fixture(autouse=True)
def lightning_can_be_heard():
    """Whatever ran before: MLflow's migrations disable every logger there is, and some trainings are to be quiet."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "lightning" and isinstance(logger, logging.Logger):
            logger.disabled = False
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


@pytest.fixture(scope="session")
def trackio_dir(tmp_path_factory):
    """Where Trackio keeps its runs in this process: it asks once, when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRACKIO_DIR", str(folder))
        pytest.importorskip("trackio")
    return folder


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
