"""One writer a folder: an advisory lock that ends with its process."""

import json
import os
import socket
from pathlib import Path
from types import ModuleType

try:
    import fcntl as _fcntl
except ImportError:  # not on Windows
    _FCNTL: ModuleType | None = None
else:
    _FCNTL = _fcntl

LOCK = ".lock"
_MOST_TRIES = 5


class FolderLock:
    """The lock of a folder while its record is written; `release` gives it back. See `lock_folder`."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path, self._descriptor = path, descriptor

    @property
    def is_held(self) -> bool:
        """False where the file system knows no locks: nothing then keeps a second writer away."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let another writer have the folder."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            # Removed while it is still held: who opens it later finds another file, and looks again.
            if _is_at(descriptor, self._path):
                self._path.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            os.close(descriptor)


class FolderBusy(Exception):
    """Another process writes into the folder; `holder` says which."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(f"{folder} is being written by {holder}")
        self.holder = holder


def lock_folder(folder: Path) -> FolderLock:
    """Lock a folder for this process.

    Where the file system knows no locks, or the lock file cannot be made, the lock is one that is not held.

    Raises `FolderBusy` while another writer has it, in this process or another.
    """
    path = folder / LOCK
    if _FCNTL is None:
        return FolderLock(path, None)
    for _ in range(_MOST_TRIES):
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o666)
        except OSError:
            return FolderLock(path, None)
        try:
            _FCNTL.flock(descriptor, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            if _is_gone(holder):  # a worker that it forked may outlive the writer, with the lock
                return FolderLock(path, None)
            raise FolderBusy(folder, f"process {holder.get('pid')} on {holder.get('host')}") from None
        except OSError:
            os.close(descriptor)
            return FolderLock(path, None)
        if _is_at(descriptor, path):
            _sign(descriptor)
            return FolderLock(path, descriptor)
        os.close(descriptor)
    return FolderLock(path, None)


def _sign(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    except OSError:  # a full disk: the lock itself needs no room
        pass


def _holder(descriptor: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_gone(holder: dict[str, object]) -> bool:
    """Whether the process that took the lock is known to be no more."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
