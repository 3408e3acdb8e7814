"""Named arrays in a file: whole or not at all, and never more than the file's size allows."""

import io
import os
import zipfile

import numpy as np
import pytest

from lightning_topo.outputs.record._archive import own_folder, read_arrays, read_stored_array, write_arrays


def everything(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"a.npy": npy(np.zeros(3 << 27, np.uint8))}, "unpack to"),
        ({f"{i}.npy": npy(np.zeros(1 << 26, np.uint8)) for i in range(5)}, "unpack to"),
        # Headers that promise more than there is.
        ({"a.npy": npy(np.zeros(8)).replace(b"(8,)", b"(9999999999999,)")}, "promises"),
        ({"a.npy": npy(np.zeros((2, 4))).replace(b"(2, 4)", b"(-1, 4)")}, "promises"),
        ({"a.npy": b"\x93NUMPY\x03\x00" + b"\xff" * 40}, "format"),
        ({"a.npy": npy(np.zeros(2, dtype=[("x", "<f8")]))}, "array of"),
        ({"a.npy": b"no array"}, "magic"),
    ],
)
def test_archives_that_lie_or_swell_are_an_error(tmp_path, members, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_arrays(zipped(tmp_path / "bomb.npz", members))


def test_a_size_that_a_zip_lies_about_is_not_exceeded(tmp_path):
    path = zipped(tmp_path / "lie.npz", {"a.npy": npy(np.zeros(1 << 22, np.uint8))})
    data = path.read_bytes()
    size = (1 << 22) + 128
    assert data.count(size.to_bytes(4, "little")) == 2
    path.write_bytes(data.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"CRC|promises"):
        read_arrays(path)


def test_names_inside_an_archive_lead_nowhere(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    path = zipped(tmp_path / "in" / "x.npz", {"../../evil.npy": npy(np.ones(2)), "/abs.npy": npy(np.ones(1))})
    assert read_arrays(path)["../../evil"].tolist() == [1.0, 1.0]
    assert list(everything(tmp_path)) == [path]


ARRAYS = {
    "a/b": np.arange(6.0).reshape(2, 3).T,
    "text": np.array("\u5c42"),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 2), np.float32),
    "one": np.array(7, np.int64),
}


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_back_as_they_were(tmp_path, compressed):
    path = tmp_path / "deep" / "arrays.npz"
    write_arrays(path, ARRAYS.items(), compressed=compressed)
    found = read_arrays(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert list(read_arrays(path, only=("one", "absent"))) == ["one"]
    with np.load(path, allow_pickle=False) as numpys:
        np.testing.assert_array_equal(numpys["a/b"], ARRAYS["a/b"])


def test_one_array_is_read_from_where_it_lies(tmp_path):
    path = tmp_path / "arrays.npz"
    write_arrays(path, {**ARRAYS, "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3))}.items(), compressed=False)
    for name, array in read_arrays(path).items():
        for check in (True, False):
            found = read_stored_array(path, name, check=check)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found, array)
    with pytest.raises(KeyError, match="absent"):
        read_stored_array(path, "absent")


def test_one_array_that_was_tampered_with_is_an_error(tmp_path):
    path = tmp_path / "arrays.npz"
    write_arrays(path, [("a", np.arange(1000.0))], compressed=False)
    whole = path.read_bytes()
    at = whole.index(np.float64(500.0).tobytes())
    path.write_bytes(whole[:at] + np.float64(-1.0).tobytes() + whole[at + 8 :])
    with pytest.raises(ValueError, match="not those that were written"):
        read_stored_array(path, "a")
    assert read_stored_array(path, "a", check=False)[500] == -1.0
    path.write_bytes(whole[:60])
    with pytest.raises(ValueError, match="array a"):
        read_stored_array(path, "a")
    path.write_bytes(whole.replace(b"(1000,)", b"(9000,)"))
    with pytest.raises(ValueError, match="promises"):
        read_stored_array(path, "a", check=False)
    write_arrays(path, [("a", np.arange(1000.0))])
    with pytest.raises(ValueError, match="compressed"):
        read_stored_array(path, "a")
    zipped(path, {"a.npy": b"no array"})
    with pytest.raises(ValueError, match="array a"):
        read_stored_array(path, "a")


def test_a_write_that_fails_leaves_the_file_before_it_and_nothing_else(tmp_path):
    path = tmp_path / "arrays.npz"
    write_arrays(path, [("a", np.ones(2))])

    def failing():
        yield "a", np.zeros(3)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_arrays(path, failing())
    with pytest.raises(ValueError, match="pickle"):
        write_arrays(path, [("a", np.array([object()]))])
    assert read_arrays(path)["a"].tolist() == [1.0, 1.0]
    assert os.listdir(tmp_path) == ["arrays.npz"]


def test_a_limit_of_bytes_counts_what_is_unpacked(tmp_path):
    path = tmp_path / "zeros.npz"
    write_arrays(path, [("a", np.zeros(10_000))])
    assert path.stat().st_size < 2_000
    assert len(read_arrays(path, most_bytes=80_200)["a"]) == 10_000
    with pytest.raises(ValueError, match=r"unpack to .* more than the limit of 80,000"):
        read_arrays(path, most_bytes=80_000)
    with pytest.raises(FileNotFoundError, match="found none"):
        read_arrays(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "diagrams").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="a link"):
        write_arrays(tmp_path / "run" / "diagrams" / "x.npz", ARRAYS.items())
    with pytest.raises(OSError, match="a link"):
        own_folder(tmp_path / "run", "diagrams", "below")
    assert not list((tmp_path / "outside").iterdir())
    assert own_folder(tmp_path / "run", "a", "b").is_dir()
