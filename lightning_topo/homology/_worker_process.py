"""The other end of `Worker`: a process without torch that computes homology, and nothing else.

It is run by its path: to import `lightning_topo.homology` would import torch. A request is the number of a job and a
file; what was computed is written into the same file, and the number sent back.

    python -P worker_process.py <socket's descriptor> <parent's process id> <parent's module path as JSON>
"""

import ctypes
import importlib.util
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

NUMBER = struct.Struct("=Q")
"""How the number of a job is sent."""


def main(descriptor: int, parent: int) -> None:
    """Answer requests, one after the other, until the parent hangs up or dies."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engines, spanning = _sibling("_engines"), _sibling("_spanning")
    with socket.socket(fileno=descriptor) as connection:
        while True:
            data, descriptors, _, _ = socket.recv_fds(connection, NUMBER.size, 1)
            if not data:
                return
            with os.fdopen(descriptors[0], "r+b") as file:
                _answer(file, engines, spanning)
            connection.sendall(data)


def _answer(file: BinaryIO, engines: Any, spanning: Any) -> None:
    """Replace the matrices of a file by what was computed of them; one emptied in the meantime is left empty."""
    import numpy as np

    file.seek(0)
    head = file.readline()
    if not head:
        return
    request = json.loads(head)
    results: list[tuple[str | None, list[Any]]] = []
    for _ in range(request["n_matrices"]):
        try:
            matrix = np.load(file, allow_pickle=False)
        except (EOFError, ValueError):  # emptied just now: nobody waits for it
            return
        arrays = [spanning.prim(matrix)] if request["spanning"] else []
        try:
            arrays += engines.rips_intervals(matrix, request["max_dim"], request["engine"])
            results.append((None, arrays))
        except RuntimeError as error:
            results.append((str(error), []))
    file.seek(0)
    file.truncate()
    file.write(json.dumps([[error, len(arrays)] for error, arrays in results]).encode() + b"\n")
    for _, arrays in results:
        for array in arrays:
            np.save(file, array, allow_pickle=False)


def _die_with(parent: int) -> None:
    """Die when the parent does, also in the midst of a computation; where the system cannot, at the next request."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _sibling(name: str) -> Any:
    """A module of this folder, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.path += [path for path in json.loads(sys.argv[3]) if path not in sys.path]
    main(int(sys.argv[1]), int(sys.argv[2]))
