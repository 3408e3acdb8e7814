"""Shapes are checked here, and only here: every annotation of the package is enforced while the tests run."""

from jaxtyping import install_import_hook

import tests.typecheck

install_import_hook("lightning_topo", f"{tests.typecheck.__name__}.check")
