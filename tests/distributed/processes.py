"""Starting several processes that train together, with a time limit after which all of them are killed."""

import json
import random
import socket
import time
from pathlib import Path

import pytest

from tests import warm


def train_together(names, out, *, size=2, seconds=120):
    """Run scenarios in `size` processes; by scenario, what each rank saw. Fails if they are not done in time."""
    processes = launch(names, out, size)
    codes = wait(processes, seconds)
    if codes != [0] * size:
        pytest.fail(f"processes ended with {codes}, None: did not end in {seconds} s\n{_tails(out, size)}")
    return Seen({name: [_read(Path(out) / name / f"rank-{r}.json") for r in range(size)] for name in names})


def free_port():
    """A port that nobody listens on, below those that the kernel gives to connections: it stays free for a while."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def launch(names, out, size):
    """Start the processes, each with its log."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size), "NODE_RANK": "0"}
    return [
        warm.start(
            "tests.distributed.worker",
            out,
            *names,
            log=Path(out) / f"log-{rank}.txt",
            env=shared | {"LOCAL_RANK": str(rank), "RANK": str(rank), "DS_ACCELERATOR": "cpu"},
        )
        for rank in range(size)
    ]


class Seen(dict):
    """By scenario, what each rank saw; asking for one that raised fails."""

    def __getitem__(self, name):
        for rank, saw in enumerate(super().__getitem__(name)):
            if "error" in saw:
                pytest.fail(f"{name} on process {rank}: {saw['error']}", pytrace=False)
        return super().__getitem__(name)


def _read(path):
    return json.loads(path.read_text())


def wait(processes, seconds):
    """Their exit codes, None for one that had to be killed for taking too long; none is left running."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes):
                deadline = min(deadline, time.monotonic() + 20)  # the others cannot go on for long
            time.sleep(0.05)
        return [process.poll() for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _tails(out, size):
    return "\n".join(f"--- process {r}\n{(Path(out) / f'log-{r}.txt').read_text()[-3000:]}" for r in range(size))
