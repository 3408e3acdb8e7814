"""Named arrays in one .npz file: written whole or not at all, and read without trust in who wrote it."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

_SMALL = 1 << 28
_MOST_TIMES = 32
"""A file may unpack to `_SMALL` bytes, or to this many times its own size: numbers never compress better."""

_KINDS = "biufU"
_CHUNK = 1 << 24
_LOCAL_HEADER = 30
"""Bytes before a member's name."""


def write_arrays(path: Path, arrays: Iterable[tuple[str, np.ndarray]], *, compressed: bool = True) -> None:
    """Write to a temporary name, then rename: a reader sees the whole file or the one before it.

    Arrays are written as they come: no more than one need be in memory. Weights gain nothing by being `compressed`.

    Raises `OSError` where it cannot be written, also where the folder is a link to another.
    """
    own_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            with zipfile.ZipFile(file, "w", method) as archive:
                for name, array in arrays:
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        _write_array(member, np.asanyarray(array))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_array(file: Any, array: np.ndarray) -> None:
    """In NumPy's own format, without the copies that it makes for what is no plain file."""
    if array.dtype.hasobject or array.size == 0 or not array.flags.c_contiguous:
        np.lib.format.write_array(file, array, allow_pickle=False)
        return
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    data = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(data), _CHUNK):
        file.write(data[start : start + _CHUNK])


def own_folder(base: Path, *parts: str) -> Path:
    """A folder below `base`, made where it is missing.

    Raises `OSError` where one of `parts`, or the last folder, is a link: nothing is written through it.
    """
    base.mkdir(parents=True, exist_ok=True)
    folder = base
    for part in parts:
        folder = folder / part
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            break
    if folder.is_symlink():
        raise OSError(f"expected a folder, got a link: nothing is written through {folder}")
    return folder


def read_arrays(
    path: Path, only: Collection[str] | None = None, *, most_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """All arrays of a file, or `only` those of these names, by name.

    Nothing in it is executed, and it takes no more memory than its size allows, nor than `most_bytes`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no archive of arrays of numbers and text, or is made to fill the memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of arrays, found none at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total, most = sum(member.file_size for member in members), max(_SMALL, _MOST_TIMES * path.stat().st_size)
            most = most if most_bytes is None else min(most, most_bytes)
            if total > most:
                raise ValueError(f"it would unpack to {total:,} bytes, more than the limit of {most:,} for its numbers")
            named = {member.filename.removesuffix(".npy"): member for member in members}
            return {name: _array(archive.read(m)) for name, m in named.items() if only is None or name in only}
    # What zipfile raises on archives that were tampered with, encrypted or cut off.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, MemoryError, ValueError) as error:
        raise ValueError(f"expected arrays in {path}, which is read with allow_pickle=False: {error}") from error


def read_stored_array(path: Path, name: str, *, check: bool = True) -> np.ndarray:
    """One array of a file that was not compressed, with no copy beside it; `check` that its bytes are as written.

    Raises as `read_arrays` does, and `KeyError` where there is no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return _stored(file, archive.getinfo(f"{name}.npy"), check=check)
    except (zipfile.BadZipFile, EOFError, RuntimeError, MemoryError, ValueError) as error:
        raise ValueError(f"expected the array {name} in {path}: {error}") from error


def _stored(file: Any, member: zipfile.ZipInfo, *, check: bool) -> np.ndarray:
    """An array read from where it lies in the file of an archive."""
    file.seek(member.header_offset)
    local = file.read(_LOCAL_HEADER)
    if member.compress_type != zipfile.ZIP_STORED or len(local) < _LOCAL_HEADER:
        raise ValueError("it is compressed or cut off")
    # The lengths of the name and of what else comes before the data.
    start = file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
    shape, columns_first, dtype = _header(file)
    n_before = file.tell() - start
    n_bytes = math.prod(shape) * dtype.itemsize
    has_room = start + member.file_size <= os.fstat(file.fileno()).st_size
    if min(shape, default=0) < 0 or n_before + n_bytes != member.file_size or not has_room:
        raise ValueError(f"an array whose header promises the shape {shape}, and not as many bytes")
    flat = np.fromfile(file, dtype, math.prod(shape))
    if check:
        file.seek(start)
        if zlib.crc32(flat.view(np.uint8).data, zlib.crc32(file.read(n_before))) != member.CRC:
            raise ValueError("its bytes are not those that were written")
    return flat.reshape(shape, order="F" if columns_first else "C")


def _array(data: bytes) -> np.ndarray:
    """One array in NumPy's own format. Its header is believed only as far as there are bytes."""
    file = io.BytesIO(data)
    shape, columns_first, dtype = _header(file)
    rest = bytearray(memoryview(data)[file.tell() :])
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"an array whose header promises the shape {shape}, with {len(rest):,} bytes of it")
    flat = np.frombuffer(rest, dtype) if rest else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if columns_first else "C")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What an array's header says: its shape, whether columns come first, and its type, which is one of numbers."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of format {version}")
    shape, columns_first, dtype = readers[version](file)
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of {dtype}")
    return shape, columns_first, dtype
