"""Conversion of byte counts from and to text such as `8GB`."""

import re
from typing import Any

_UNITS = {"": 1, "B": 1, **{f"{unit}B": 1000**i for i, unit in enumerate("KMGT", start=1)}}
_UNITS |= {f"{unit}IB": 1024**i for i, unit in enumerate("KMGT", start=1)}


def parse_size(value: Any) -> int:
    """Return the bytes of `8GB` (8 * 10**9), `8GiB` (8 * 2**30) or a plain number. Raises ValueError, also for 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", str(value).strip().upper())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"{value!r} is no size: write 8GB, 7.5GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(count: int) -> str:
    """Return a number of bytes as a readable text, such as `98.4 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
