"""Words of a text, whatever its language: Chinese and Japanese, which write none, by their characters; and labels."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNSPACED = f"{_HAN}\u3040-\u30ff"
_HAN_CHARACTER = re.compile(f"[{_HAN}]")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
_TELLING = re.compile(
    r"""
    (?<![^\W_]) - (?=\.?\d)                          # -1, but not card-1
    | (?<=\d) [.,] (?=\d) | (?<![^\W_.]) \. (?=\d)   # 1.5 and .5, but not No.5
    | (?:[<>]=?|[≤≥]) (?=[-.]?\d) (?![^<>]*>)         # <=50K, but not the tag <1>
    | (?<=[^\W\d_]) - (?![\w-])                      # A-, but not card-arrival
    | (?<=[^\W\d_]) [+]+ | (?<=[^\W\d_]) \#          # A+, C++, C#
    """,
    re.VERBOSE,
)


def words(text: str) -> list[str]:
    """Runs of letters and digits in small letters; each Chinese character or kana alone. Punctuation is left out.

    On text in ASCII what rouge-score's own tokenizer gives without stemming. A mark that combines with a letter, as a
    vowel sign of Hindi, belongs to its word, and whether it is written with its letter as one character makes no odds.
    """
    text = unicodedata.normalize("NFC", text).lower()
    return _word("".join(sorted(filter(_combines, set(text))))).findall(text)


def mostly_han(text: str) -> bool:
    """Whether more than half of a text's letters and digits are Chinese characters."""
    return 2 * len(_HAN_CHARACTER.findall(text)) > _letters(text)


def mostly_unspaced(text: str) -> bool:
    """Whether more than half of a text's letters and digits are Chinese characters or kana."""
    return 2 * len(_UNSPACED_CHARACTER.findall(text)) > _letters(text)


def plain(text: str) -> str:
    """A label as it is compared: compatible forms and case folded, ``_`` and ``-`` as spaces, bare of punctuation.

    What tells labels apart stays: the sign, the point and the bound of a number (-1, 1.5, <=50K), and what follows a
    letter in A-, A+, C++ and C#.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
    telling = {place for found in _TELLING.finditer(text) for place in range(*found.span())}
    kept = (
        character if character.isalnum() or _combines(character) or place in telling else " "
        for place, character in enumerate(text)
    )
    return " ".join("".join(kept).split())


@lru_cache(maxsize=256)
def _word(marks: str) -> re.Pattern[str]:
    """Finds the words of a text whose combining marks are ``marks``: there is no class of them all."""
    letter = rf"[^\W_{_UNSPACED}]"
    more = rf"(?:{letter}|[{marks}])*" if marks else f"{letter}*"
    return re.compile(f"[{_UNSPACED}]|{letter}{more}")


def _combines(character: str) -> bool:
    """Whether it is a mark of a letter; those that enclose one or choose its picture make emoji, and spell nothing."""
    return unicodedata.category(character) in ("Mn", "Mc") and character not in _VARIATION_SELECTORS


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)
