"""Starting several processes that train together, with a time limit after which all of them are killed."""

import json
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from tests import warm


def train_together(names, out, *, size=2, seconds=120):
    """Run scenarios in `size` processes; by scenario, what each rank saw. Fails if they are not done in time.

    A process that dies fails the scenario that was begun last; fresh processes go on with the next.
    """
    deadline = time.monotonic() + seconds
    dead = {}
    left = list(names)
    while left:
        codes = wait(launch(left, out, size), deadline - time.monotonic())
        if codes == [0] * size:
            break
        ends = [_end(code, Path(out) / f"log-{rank}.txt") for rank, code in enumerate(codes)]
        begun = [k for k, name in enumerate(left) if (Path(out) / name).is_dir()]
        if not any(codes) or not begun:
            pytest.fail(f"not done in {seconds} s, or not begun: {left}\n" + "\n".join(ends), pytrace=False)
        dead[left[begun[-1]]] = [{} if code == 0 else {"error": end} for code, end in zip(codes, ends, strict=True)]
        left = left[begun[-1] + 1 :]
    done = [name for name in names if name not in dead]
    return Seen(dead | {name: [_read(Path(out) / name / f"rank-{r}.json") for r in range(size)] for name in done})


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
    """By scenario, what each rank saw; asking for one that raised, or that a process died in, fails."""

    def __getitem__(self, name):
        every = super().__getitem__(name)
        errors = [f"{name} on process {rank}: {saw['error']}" for rank, saw in enumerate(every) if "error" in saw]
        if errors:
            pytest.fail("\n".join(errors), pytrace=False)
        return every


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


def _end(code, log):
    """How a process ended, and the last that it wrote."""
    how = "was killed: it did not end" if code is None else f"ended with {_named(code)}"
    said, _, _ = log.read_text().partition("\nExtension modules: ")  # a long list below a fault's frames
    return f"{how}\n{said[-8000:]}"


def _named(code):
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
