"""Words of a text, whatever its language: Chinese and Japanese, which write none, by their characters."""

from __future__ import annotations

import re
import unicodedata

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNSPACED = f"{_HAN}\u3040-\u30ff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_HAN_CHARACTER = re.compile(f"[{_HAN}]")


def words(text: str) -> list[str]:
    """Runs of letters and digits in small letters; each Chinese character or kana alone. Punctuation is left out.

    On text in ASCII what rouge-score's own tokenizer gives without stemming.
    """
    return _WORD.findall(text.lower())


def mostly_han(text: str) -> bool:
    """Whether more than half of a text's letters and digits are Chinese characters."""
    letters = sum(character.isalnum() for character in text)
    return 2 * len(_HAN_CHARACTER.findall(text)) > letters


def plain(text: str) -> str:
    """A label as it is compared: compatible forms and case folded, ``_`` and ``-`` as spaces, bare of punctuation."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(character if character.isalnum() else " " for character in text).split())
