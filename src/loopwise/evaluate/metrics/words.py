"""Words of a text, whatever its language: Chinese and Japanese, which write none, by their characters."""

from __future__ import annotations

import re
import unicodedata

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNSPACED = f"{_HAN}\u3040-\u30ff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_TELLING = re.compile(r"(?<![^\W_])-(?=\d)|(?<=[^\W\d_])-(?![^\W_])|(?<=\d)[.,](?=\d)|(?<=[^\W\d_])#|(?<=[^\W\d_+])\++")
_HAN_CHARACTER = re.compile(f"[{_HAN}]")


def words(text: str) -> list[str]:
    """Runs of letters and digits in small letters; each Chinese character or kana alone. Punctuation is left out.

    On text in ASCII what rouge-score's own tokenizer gives without stemming. A mark that combines with a letter, as a
    vowel sign of Hindi, belongs to its word, and whether it is written with its letter as one character makes no odds.
    """
    text = unicodedata.normalize("NFC", text).lower()
    if not any(map(_combines, text)):
        return _WORD.findall(text)
    found: list[str] = []
    within = False
    for character in text:
        alone = _UNSPACED_CHARACTER.match(character) is not None
        if (character.isalnum() or _combines(character)) and within and not alone:
            found[-1] += character
        elif character.isalnum():
            found.append(character)
        within = not alone and (character.isalnum() or (within and _combines(character)))
    return found


def mostly_han(text: str) -> bool:
    """Whether more than half of a text's letters and digits are Chinese characters."""
    letters = sum(character.isalnum() for character in text)
    return 2 * len(_HAN_CHARACTER.findall(text)) > letters


def plain(text: str) -> str:
    """A label as it is compared: compatible forms and case folded, ``_`` and ``-`` as spaces, bare of punctuation.

    What tells labels apart stays: a minus before a number or after a letter (-1, A-), a point between digits, ``+`` and
    ``#`` after a letter (A+, C++, C#).
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    telling = {place for found in _TELLING.finditer(text) for place in range(*found.span())}
    kept = (
        character if character.isalnum() or _combines(character) or place in telling else " "
        for place, character in enumerate(text)
    )
    return " ".join("".join(kept).split())


def _combines(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character).startswith("M")
