"""Figures as a reader wants them: sensible digits, thin units, and a dash where there is none."""

from __future__ import annotations

import math
import re

DASH = "–"
_SCALES = (
    (1e24, "septillion"),
    (1e21, "sextillion"),
    (1e18, "quintillion"),
    (1e15, "quadrillion"),
    (1e12, "trillion"),
    (1e9, "billion"),
    (1e6, "million"),
)


def known(value: float | int | None) -> bool:
    """Whether there is a finite figure."""
    return value is not None and math.isfinite(value)


def finite(value: object) -> float:
    """``value`` as a float; NaN where it is no number."""
    return float(value) if isinstance(value, int | float) else math.nan


def percent(value: float, *, signed: bool = False) -> str:
    """A share as a percentage with one decimal, which 0 and 1 do without."""
    return f"{_percentage(value, signed)}%" if known(value) else DASH


def points(value: float) -> str:
    """A signed difference of two shares in percentage points."""
    return f"{_percentage(value, True)} points" if known(value) else DASH


def figure(value: float, *, signed: bool = False) -> str:
    """A figure with three significant digits, from 1,000 on without decimals; a fraction of zeros is left out."""
    if not known(value):
        return DASH
    sign = "+" if signed else ""
    size = abs(value)
    if size >= 1000 or size == 0:
        text = f"{value:{sign},.0f}"
    elif size >= 1e-4:
        text = f"{value:{sign}.{min(2 - math.floor(math.log10(size)), 4)}f}"
        text = re.sub(r"\.0+$", "", text)
    else:
        text = f"{value:{sign}.1e}"
    return _minus(text)


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A figure with this many decimals, as a column of like figures wants them."""
    return _minus(f"{value:{'+' if signed else ''}z.{decimals}f}") if known(value) else DASH


def whole(value: float) -> str:
    """A count with separators."""
    return f"{value:,.0f}" if known(value) else DASH


def amount(value: float) -> str:
    """A large count in words: 1.89 million."""
    for scale, name in _SCALES:
        if known(value) and value >= scale:
            return f"{value / scale:.3g} {name}"
    return whole(value)


def duration(seconds: float) -> str:
    """Seconds in the two largest units: 4 min 22 s."""
    if not known(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    left = round(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts: list[str] = []
    for size, unit in units:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def _percentage(value: float, signed: bool) -> str:
    percentage = 100 * value
    decimals = 0 if percentage in (0, 100) else 1
    return _minus(f"{percentage:{'+' if signed else ''}.{decimals}f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
