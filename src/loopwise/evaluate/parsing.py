"""Reading an answer off a completion: its last number, or the choice it settles on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0xFFE5: "¥", 0x3000: " ", 0x2212: "-"}
_WIDE_COMMA = re.compile(r"(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_CURRENCY = "$€£¥₹"
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\d))?|(?<![\d.])\.\d+"
_NUMBER = re.compile(
    rf"(?:(?<![0-9A-Za-z_)\]}}])(?P<sign>[-+]|负\s?))?(?:[{re.escape(_CURRENCY)}]\s?)?"
    rf"(?P<value>{_UNSIGNED})(?:\s?/\s?(?P<divisor>{_UNSIGNED}))?(?P<percent>\s?%)?",
    re.ASCII,
)
_LONGEST = 400
"""Digits beyond which a number is noise; it also keeps arithmetic on hostile text cheap."""
_FINAL = "####"
_NAMED = (
    r"(?:(?i:answer|choose|pick|(?:correct|right|best|final) (?:choice|option))|答案|应选|故选|选择|选|\\boxed\{)"
    r"(?:[\s*:=(\[{<\"'$`“「【]|(?i:is\b|option\b)|是|为|\\?(?:boxed|text|textbf|mathrm)\{)*"
)
"""What may stand between the words that announce an answer and its label; one loop, so that it stays linear."""


@dataclass(frozen=True)
class Number:
    """A number as written: ``3.5%`` has value 7/2 and ``percent`` true."""

    value: Fraction
    percent: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both name the same number. A lone percent sign may be read either way: data sets write both."""
        if self.percent == other.percent:
            return self.value == other.value
        marked, plain = (self, other) if self.percent else (other, self)
        return plain.value in (marked.value, marked.value / 100)


def last_number(text: str) -> Number | None:
    """The last number in ``text``, exactly, or None.

    Reads thousands separators, decimals, exponents, fractions (3/4), percent and currency signs, negative numbers,
    full-width digits and 负. A minus sign after a word, a number or a closing bracket is a subtraction.
    """
    if "，" in text:
        text = _WIDE_COMMA.sub(",", text)
    last = None
    for last in _NUMBER.finditer(text.translate(_WIDE)):  # noqa: B007 - only the last one counts
        pass
    return None if last is None else _read(last)


def reference_number(reference: Any) -> Number | None:
    """The number a reference column holds: a number, its text, or a GSM8K solution that ends in ``#### 72``.

    None where it holds no number.
    """
    if reference is None or isinstance(reference, bool):
        return None
    if isinstance(reference, int | float | Decimal):
        try:
            return Number(Fraction(str(reference)))
        except ValueError:  # nan, inf
            return None
    return last_number(str(reference).rpartition(_FINAL)[2])


def settled_choice(text: str, labels: Sequence[str]) -> str | None:
    """The label that ``text`` settles on, or None.

    In this order: the last label named as the answer ("The answer is (B)", "答案是B", "\\boxed{B}"), the label the
    text opens with ("B. Paris"), the last label that stands alone. Labels of one letter count in capitals only,
    unless the text is nothing else; longer ones count in any case.
    """
    text = text.translate(_WIDE).strip()
    by_name = {label.casefold(): label for label in labels}
    if (bare := text.strip("()[]{}<>.。:*\"'` \n").casefold()) in by_name:
        return by_name[bare]
    choices = "|".join(
        re.escape(label) if len(label) == 1 else f"(?i:{re.escape(label)})"
        for label in sorted(labels, key=len, reverse=True)
    )
    label = rf"(?<![A-Za-z0-9_])(?P<label>{choices})(?![A-Za-z0-9_])"
    stated = list(re.finditer(_NAMED + label, text))
    leading = re.match(rf"[(\[*\s]*{label}[)\]*]*(?:[.:、]|\s*\n)", text)
    alone = list(re.finditer(label, text))
    found = stated[-1] if stated else leading or (alone[-1] if alone else None)
    return by_name[found["label"].casefold()] if found else None


def _read(match: re.Match[str]) -> Number | None:
    parts = [match["value"], match["divisor"] or "1"]
    if max(map(len, parts)) > _LONGEST:
        return None
    value, divisor = (Fraction(part.replace(",", "")) for part in parts)
    if divisor == 0:
        return None
    negative = (match["sign"] or "").strip() in ("-", "负")
    return Number((-value if negative else value) / divisor, match["percent"] is not None)
