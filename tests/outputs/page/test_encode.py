import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.outputs.page._encode import to_json, visible
from lightning_topo.outputs.page._thinning import StepTable
from lightning_topo.phases import Phase


@given(st.text())
def test_any_name_survives_and_stays_text(name: str) -> None:
    written = to_json([name])
    assert not set("<>&") & set(written)
    written.encode()
    assert json.loads(written) == [visible(name)]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])))
def test_a_plain_name_is_left_alone(name: str) -> None:
    assert visible(name) == name


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_four_digits(value: float) -> None:
    assert json.loads(to_json(value)) == pytest.approx(value, rel=5.1e-4)


def test_what_json_lacks_is_spelt_out() -> None:
    assert json.loads(to_json([math.nan, math.inf, -math.inf, None])) == [None, "inf", "-inf", None]


def test_dataclasses_and_enums_become_plain() -> None:
    table = StepTable((0, 5), {"r": (0.5, None)}, 2)
    assert json.loads(to_json({"t": table, "p": Phase.BREAKDOWN})) == {
        "t": {"steps": [0, 5], "columns": {"r": [0.5, None]}, "merged": 2},
        "p": 3,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_arrays_are_packed_exactly(dtype: type) -> None:
    array = np.array([[0, 1, 2], [3, 4, 255]], dtype=dtype)
    packed = json.loads(to_json(array))
    assert packed["dtype"] == f"u{array.dtype.itemsize}"
    assert packed["shape"] == "2, 3"
    read = np.frombuffer(base64.b64decode(packed["bdata"]), f"<{packed['dtype']}").reshape(2, 3)
    np.testing.assert_array_equal(read, array)


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="got complex"):
        to_json([1j])
