"""Shapes are checked here, and only here: every annotation of the package is enforced while the tests run."""

import warnings

import pytest
from jaxtyping import install_import_hook

install_import_hook("lightning_topo", "beartype.beartype")


@pytest.fixture(autouse=True)
def _third_party_warnings():
    """Warnings are errors, but for those that other packages raise about themselves."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(?!lightning_topo)")
    yield
