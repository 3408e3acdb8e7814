"""Processes for tests, cheap: torch and Lightning are imported once, and each process is forked from that."""

import contextlib
import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(slots=True)
class Warm:
    """A process that was forked, with the face of a `Popen`."""

    process: multiprocessing.Process

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with all that it started; its log ends with where it was."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGUSR2)
            self.process.join(1)
            os.killpg(self.pid, signal.SIGKILL)


def start(what: str, *arguments: object, log: Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Warm:
    """Run a module (by its dotted name), a script (by its path) or else code; what it prints goes into `log`."""
    # The fork server finds the modules to import by this path only.
    path = os.environ.get("PYTHONPATH", "")
    if str(ROOT) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [path])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported"])
    process = context.Process(target=_run, args=(what, list(map(str, arguments)), str(log), str(cwd), dict(env or {})))
    process.start()
    return Warm(process)


def run(
    what: str, *arguments: object, folder: Path, timeout: float = 200.0, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; both streams come back in one. It is killed where it takes too long."""
    log = folder / "log.txt"
    process = start(what, *arguments, log=log, **options)  # type: ignore[arg-type]
    if process.wait(timeout) is None:
        process.kill()
        raise AssertionError(f"not done after {timeout} s\n{log.read_text()[-3000:]}")
    said = log.read_text()
    return subprocess.CompletedProcess([what], process.wait() or 0, said, said)


def _run(what: str, arguments: Sequence[str], log: str, cwd: str, env: Mapping[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.setsid()
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    # Asked for, not by a timer: a timer reads the frames of running threads, and ends some processes with a fault.
    faulthandler.register(signal.SIGUSR2, chain=False)
    faulthandler.enable()  # a process that a memory error ends shows where it was
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = [what, *arguments]
    if what.endswith(".py"):
        runpy.run_path(what, run_name="__main__")
    elif what.replace(".", "").replace("_", "").isalnum():
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<code>", "exec"), {"__name__": "__main__"})
