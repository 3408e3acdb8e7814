"""Lines of JSON: whole ones, appended, found again and read on."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_topo.outputs.record import _jsonl as jsonl
from lightning_topo.outputs.record._jsonl import JsonLines, LineReader, decoded, encoded, read_objects


@given(
    st.lists(st.sampled_from([b"\n", b"rewind", b"x" * 7, b"x" * 50, b"coverage", b"ab"]), max_size=40),
    st.integers(1, 70),
)
@example([b"x" * 7, b"x" * 7, b"coverage", b"coverage", b"coverage", b"ab"], 1)  # as long as a line may be
@example([b"rewind", b"x" * 33, b"\n", b"rewind", b"x" * 34, b"\n"], 9)
def test_the_quick_search_counts_lines_as_the_reader_does(parts, block):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(jsonl, "_BLOCK", block)
        patch.setattr(jsonl, "MAX_LINE", 40)
        patch.setattr(jsonl, "_CHUNK", 8)
        path = Path(folder) / "lines"
        path.write_bytes(b"".join(parts))
        lines = list(jsonl.LineReader(path).read_on(whole=True))
        *found, (n, _) = jsonl.find_lines(path, b"rewind", b"coverage")
        assert n == len(lines)
        expected = [(i, line.rstrip(b"\n")) for i, line in enumerate(lines) if b"rewind" in line or b"coverage" in line]
        # A line that is too long comes without its text, if at all.
        assert [(i, text) for i, text in found if text] == expected


HEADER = {"schema": 1, "run_id": "r"}


def numbers(path):
    return [line.get("k") for line in read_objects(path)][1:]


TEXTS = st.text('a"\\\n\r\x00\u2028\u5c42\ud800', max_size=5)
VALUES = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_any_object_is_one_line_and_comes_back(line):
    text = encoded(line)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    assert decoded(text) == json.loads(text)
    if "\\ud" not in repr(line):  # half a character is written as its escape
        assert decoded(text) == line


@pytest.mark.parametrize("text", [b"", b"[1]\n", b"3\n", b'{"a": \n', b"[" * 100_000, b'\xff{"a"}\n'])
def test_what_is_no_object_is_an_empty_one(text):
    assert decoded(text) == {}


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    lines = JsonLines(tmp_path / "a.jsonl", HEADER)
    with pytest.raises(ValueError, match="JSON"):
        lines.append({"k": float("nan")})
    lines.append({"k": 1})
    lines.close()
    assert numbers(tmp_path / "a.jsonl") == [1]


def test_an_unfinished_line_is_cut_off_and_a_new_one_begins(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(encoded(HEADER) + encoded({"k": 1}) + b'{"k": 2' + b" " * 200_000)
    lines = JsonLines(path, HEADER)
    lines.append({"k": 3})
    lines.close()
    assert numbers(path) == [1, 3]
    path.write_bytes(b'{"schema"')  # nothing whole at all
    JsonLines(path, HEADER).close()
    assert list(read_objects(path)) == [HEADER]


def test_a_deleted_file_is_made_again_and_its_lines_are_counted_as_lost(tmp_path):
    path = tmp_path / "deep" / "a.jsonl"
    path.parent.mkdir()
    lines = JsonLines(path, HEADER)
    for k in range(3):
        lines.append({"k": k})
    path.unlink()
    path.parent.rmdir()
    lines.append({"k": 3})
    assert (lines.n_lost, numbers(path), next(read_objects(path))) == (3, [3], HEADER)
    path.unlink()
    lines.close()
    assert lines.n_lost == 4


def test_an_edited_copy_of_the_file_is_gone_on_with_and_anothers_is_not(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path, HEADER)
    lines.append({"k": 1})
    (tmp_path / "edited").write_bytes(path.read_bytes() + encoded({"k": 10}))
    os.replace(tmp_path / "edited", path)
    lines.append({"k": 2})
    assert numbers(path) == [1, 10, 2]
    (tmp_path / "other").write_bytes(encoded({"schema": 1, "run_id": "another"}))
    os.replace(tmp_path / "other", path)
    with pytest.raises(OSError, match=r"another run's a\.jsonl"):
        lines.append({"k": 3})
    assert (numbers(path), lines.n_waiting) == ([], 1)
    path.unlink()
    lines.append({"k": 4})
    assert numbers(path) == [3, 4]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        JsonLines(tmp_path / "a.jsonl", HEADER)
    assert (tmp_path / "precious").read_text() == "mine"


def test_lines_put_in_the_place_of_all_are_whole_or_not_there(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path, HEADER)
    for k in range(5):
        lines.append({"k": k})

    def failing():
        yield HEADER
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        lines.rewrite(failing())
    assert numbers(path) == [0, 1, 2, 3, 4]
    lines.rewrite([HEADER, {"k": 9}])
    lines.append({"k": 10})
    assert numbers(path) == [9, 10]
    assert lines.size == path.stat().st_size
    assert os.listdir(tmp_path) == ["a.jsonl"]


@given(st.lists(st.sampled_from([b"a\n", b"bb\n", b"\n", b"c", b"x" * 50, b"\n"]), max_size=20), st.data())
def test_reading_on_as_a_file_grows_is_reading_it_at_once(parts, data):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(jsonl, "MAX_LINE", 40)
        patch.setattr(jsonl, "_CHUNK", 8)
        path = Path(folder) / "lines"
        reader, found = LineReader(path), []
        for part in parts:
            with path.open("ab") as file:
                file.write(part)
            if data.draw(st.booleans()):
                found += reader.read_on(whole=False)
                assert not reader.is_replaced
        found += reader.read_on(whole=True)
        assert found == list(LineReader(path).read_on(whole=True))
        whole = b"".join(parts).splitlines(keepends=True)
        assert found == [line if len(line) <= 40 else b"" for line in whole]
