"""Page data as JSON that is small, strict, and safe inside a `<script>` element."""

import base64
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
from jaxtyping import Num

SIGNIFICANT_DIGITS = 4
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_HTML_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def to_json(data: object) -> str:
    r"""Dataclasses, mappings, sequences and numbers as strict JSON without `<`, `>` and `&`.

    Floats keep 4 significant digits; NaN becomes null, infinities the strings "inf" and "-inf"; arrays become
    `{"dtype", "bdata", "shape"}`, the base64 form that plotly.js reads.

    >>> to_json({"name": "</script>", "r": [1 / 3, float("inf"), float("nan"), 2.0]})
    '{"name":"\\u003c/script\\u003e","r":[0.3333,"inf",null,2]}'
    """
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_HTML_ESCAPES)


def visible(text: str) -> str:
    r"""A name as it can be shown: what is not a character of its own (controls, direction marks) is spelt out.

    >>> visible("net\u202e.0\n")
    'net\\u202e.0\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _UNSEEN else letter
        for letter in text
    )


def _plain(value: object) -> Any:
    match value:
        case None | bool():
            return value
        case Enum():
            return value.value
        case str():
            return visible(value)
        case int():
            return int(value)
        case float():
            return _rounded(value)
        case np.ndarray():
            return _packed(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case Sequence():
            return [_plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"expected data that JSON can hold, got {type(value).__name__}")


def _rounded(value: float) -> float | int | str | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return str(value)
    rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if math.isinf(rounded):  # rounded up beyond the largest float
        return value
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _packed(array: Num[np.ndarray, "..."]) -> dict[str, str]:
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    shape = ", ".join(str(n) for n in array.shape)
    return {"dtype": kind, "bdata": base64.b64encode(data).decode(), "shape": shape}
