"""JSON from the other side: what Python's parser lets pass, and its users stumble over, refused."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from invirtibuilder.errors import Malformed

DEPTH = 32
"""Lists and objects within each other; a report of ours has five."""

LARGEST = 1 << 63


def loads(data: bytes) -> Any:
    """The value of this JSON text. Raises Malformed.

    No name twice in an object, no NaN or infinity, no integer over 64 bits, no half of a
    surrogate pair (which no log could be given), nothing nested deeper than DEPTH.
    """
    try:
        value = json.loads(
            data,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        _check(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name twice")
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _integer(text: str) -> int:
    value = int(text)
    if not -LARGEST <= value < LARGEST:
        raise ValueError("a number that is too large")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


def _check(value: Any) -> None:
    pending = [(value, 0)]
    while pending:
        part, depth = pending.pop()
        if isinstance(part, str):
            # UnicodeEncodeError is a ValueError.
            part.encode()
        elif isinstance(part, dict | list):
            if depth >= DEPTH:
                raise ValueError("nested too deeply")
            inner = [*part, *part.values()] if isinstance(part, dict) else part
            pending += ((each, depth + 1) for each in inner)
