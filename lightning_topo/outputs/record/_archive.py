"""Named arrays in one .npz file: written whole or not at all, and read without trust in who wrote it."""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

_SMALL = 1 << 28
_MOST_TIMES = 32
"""A file may unpack to `_SMALL` bytes, or to this many times its own size: numbers never compress better."""

_KINDS = "biufU"


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
                        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _array(data: bytes) -> np.ndarray:
    """One array in NumPy's own format. Its header is believed only as far as there are bytes."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of format {version}")
    shape, columns_first, dtype = readers[version](file)
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of {dtype}")
    rest = bytearray(memoryview(data)[file.tell() :])
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"an array whose header promises the shape {shape}, with {len(rest):,} bytes of it")
    flat = np.frombuffer(rest, dtype) if rest else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if columns_first else "C")
