"""A file of JSON objects, one a line: appended as whole lines, and read without trust in who wrote it."""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

MAX_LINE = 1 << 22
"""No line is longer, in bytes: a longer one is not read into memory."""

MAX_WAITING = 1 << 26
"""So many bytes of lines wait for room; of more, the oldest are lost, and counted."""

_CHUNK = 1 << 16
_BLOCK = 1 << 20

Line = dict[str, Any]
"""One object, as decoded."""


class JsonLines:
    """Appends to one file; each line is in the file, or kept to be tried again, when `append` returns or raises.

    An unfinished line, as a killed process can leave, is cut off. A link is not followed, so that nobody can redirect
    lines elsewhere. If the file is deleted, it is created again, with its folder and its header. `n_lost` counts the
    deleted lines, and those dropped because too many waited for room.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path, self._header = path, dict(header)
        self._file = _open_to_append(path)
        self._backlog: deque[bytes] = deque()
        self._waiting_bytes = self._n_written = 0
        self.n_lost: int = 0
        _cut_partial_line(path)
        if path.stat().st_size == 0:
            self._n_written = -1
            self.append(header)

    def append(self, line: Mapping[str, Any]) -> None:
        """Append an object; raises `OSError` where it must wait, and `ValueError` where it is too long."""
        text = encoded(line)
        if len(text) > MAX_LINE:
            raise ValueError(f"expected a line of at most {MAX_LINE:,} bytes, got {len(text):,}")
        self._backlog.append(text)
        self._waiting_bytes += len(text)
        while self._waiting_bytes > MAX_WAITING and len(self._backlog) > 1:
            self._waiting_bytes -= len(self._backlog.popleft())
            self.n_lost += 1
        self._flush()

    @property
    def n_waiting(self) -> int:
        """How many lines wait for room."""
        return len(self._backlog)

    def _flush(self) -> None:
        if self._backlog:
            self._find_again()
        while self._backlog:
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(self._backlog[0]) != len(self._backlog[0]):
                    raise OSError(f"no room to append a line to {self._path.name}")
            except OSError:
                self._file.truncate(end)
                raise
            self._waiting_bytes -= len(self._backlog.popleft())
            self._n_written += 1

    def _find_again(self) -> None:
        """Create the file again if it is gone; go on with another that has the same header."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = _open_to_append(self._path)
        else:
            if os.path.samestat(found, os.fstat(self._file.fileno())):
                return
            fresh = _open_to_append(self._path)
            if found.st_size > 0:
                self._go_on_in(fresh)
                return
        self._file.close()
        self._file = fresh
        self.n_lost += max(self._n_written, 0)
        self._n_written = 0
        header = encoded(self._header)
        if fresh.write(header) != len(header):
            fresh.truncate(0)
            raise OSError(f"no room to begin {self._path.name} again")

    def _go_on_in(self, fresh: FileIO) -> None:
        """Someone has put another file in place: an edited copy of ours, or another run's."""
        if first_object(self._path).get("run_id") != self._header.get("run_id"):
            fresh.close()
            raise OSError(f"another run's {self._path.name} has taken the place of this run's")
        self._file.close()
        self._file = fresh
        _cut_partial_line(self._path)

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return os.fstat(self._file.fileno()).st_size

    def rewrite(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Put these lines, the header among them, in the place of all; a kill leaves the old file or the new one.

        Raises `OSError` where there is no room; the old file then stays. What waits to be written goes on waiting.
        """
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.writelines(map(encoded, lines))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._file.close()
        self._file = _open_to_append(self._path)

    def close(self) -> None:
        """Close the file, after one last try at what has waited; raises `OSError` where that fails.

        Where the file is gone, and was not made again, `n_lost` counts its lines too.
        """
        try:
            self._flush()
        finally:
            self._file.close()
            if not self._path.exists():
                self.n_lost += max(self._n_written, 0)
                self._n_written = 0


def encoded(line: Mapping[str, Any]) -> bytes:
    """An object as a line of strict JSON."""
    return json.dumps(line, allow_nan=False, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def read_objects(path: Path) -> Iterator[Line]:
    """The objects of a file in order, its header first; a line that is no JSON object comes as an empty one.

    A file that is not there, or is no plain file, has no lines.
    """
    return map(decoded, LineReader(path).read_on(whole=True))


def first_object(path: Path) -> Line:
    """The first line of a file as an object; an empty one where it is too long, or none."""
    with path.open("rb") as file:
        text = file.readline(MAX_LINE + 1)
    return decoded(text) if len(text) <= MAX_LINE else {}


class LineReader:
    """Reads the lines of a file that may grow, each as bytes; one that is too long comes as an empty one.

    `n_read` counts them. `is_replaced` where another file has taken the place of the one that was read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._file: tuple[int, int] | None = None
        self.n_read: int = 0

    @property
    def is_replaced(self) -> bool:
        """Whether what was read is no longer there."""
        if self._file is None:
            return False
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset

    def read_on(self, *, whole: bool) -> Iterator[bytes]:
        """The lines that were not read yet; with `whole` also a last line without its newline."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            self._file = found.st_dev, found.st_ino
            file.seek(self._offset)
            while text := file.readline(MAX_LINE + 1):
                is_whole, length = len(text) <= MAX_LINE, len(text)
                while not is_whole and text and not text.endswith(b"\n"):
                    text = file.readline(_CHUNK)
                    length += len(text)
                if not whole and not text.endswith(b"\n"):
                    return
                self._offset += length
                self.n_read += 1
                yield text if is_whole else b""


def find_lines(path: Path, *words: bytes) -> Iterator[tuple[int, bytes]]:
    """Each line that holds one of the words, with its number, at the speed of the disk; at last (number of lines, b"").

    A line that is too long counts, and is not looked into.
    """
    n, begun, is_long = 0, b"", False
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(_BLOCK):
                end = chunk.rfind(b"\n") + 1
                if end == 0:
                    is_long = is_long or len(begun) + len(chunk) > MAX_LINE
                    begun = b"" if is_long else begun + chunk
                    continue
                if is_long:  # what is left of it
                    begun, chunk, end, n = b"", chunk[chunk.find(b"\n") + 1 :], end - chunk.find(b"\n") - 1, n + 1
                block, begun, is_long = begun + chunk[:end], chunk[end:], False
                yield from _found_in(block, n, words)
                n += block.count(b"\n")
    if begun or is_long:
        yield from _found_in(begun, n, words)
        n += 1
    yield n, b""


def _found_in(block: bytes, n: int, words: tuple[bytes, ...]) -> Iterator[tuple[int, bytes]]:
    counted = 0
    at = min((k for k in (block.find(word) for word in words) if k >= 0), default=-1)
    while at >= 0:
        begin, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at)
        length = (len(block) if end < 0 else end + 1) - begin  # as the reader counts: with the end of the line
        end = len(block) if end < 0 else end
        n, counted = n + block.count(b"\n", counted, begin), begin
        yield n, block[begin:end] if length <= MAX_LINE else b""
        at = min((k for k in (block.find(word, end) for word in words) if k >= 0), default=-1)


def decoded(text: bytes) -> Line:
    """A line as the object that it holds, or an empty one."""
    try:
        line = json.loads(text.decode(errors="replace"))
    # Brackets nested by the thousand are a RecursionError.
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}


def _cut_partial_line(path: Path) -> None:
    """Drop an unfinished line at the end."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _CHUNK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def _open_to_append(path: Path) -> FileIO:
    return open(path, "ab", buffering=0, opener=_open_no_link)  # closed by `close`


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
