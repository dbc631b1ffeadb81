"""Translation edit rate with bit-parallel edit distances: what sacrebleu takes seconds for, in milliseconds.

Snover et al. 2006, with the shifts and tie breaks of its program TERCOM as sacrebleu has them. Each shift is tried by
its edit distance, found for all reference words at once in the bits of whole numbers (Myers 1999; Hyyrö 2003). Left
out: TERCOM's beam, so distances here are exact; below 25 words, where the beam covers everything, both agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

MOST_CANDIDATES = 1000
"""Shifts tried for one text; beyond, it is taken as it is."""
LONGEST_SHIFT = 10
FARTHEST_SHIFT = 50


def edits(hypothesis: Sequence[str], reference: Sequence[str]) -> int:
    """Fewest insertions, deletions, substitutions and shifts found that make the reference of the hypothesis."""
    distance = _Distance(reference)
    current, shifts, tried = list(hypothesis), 0, 0
    while True:
        gain, shifted, tried = _best_shift(current, distance, tried)
        if tried >= MOST_CANDIDATES or gain <= 0:
            return shifts + distance.of(current)
        current, shifts = shifted, shifts + 1


class _Row(NamedTuple):
    """Differences of the distance matrix after some words, a bit for each reference word, and its last entry.

    ``rises`` and ``falls``: where an entry is 1 above or below the one of the reference word before; ``worse`` and
    ``better``: 1 above or below the same entry one word of the hypothesis earlier.
    """

    rises: int
    falls: int
    last: int
    worse: int = 0
    better: int = 0


class _Alignment(NamedTuple):
    """``places[j]``: the word of the hypothesis that stands at reference word j; sums of errors up to each word."""

    places: list[int]
    reference_errors: list[int]
    hypothesis_errors: list[int]


class _Distance:
    """Edit distances (Levenshtein) of many hypotheses to one reference."""

    def __init__(self, reference: Sequence[str]) -> None:
        self.reference = reference
        self._all = (1 << len(reference)) - 1
        self._places: dict[str, int] = {}
        for place, word in enumerate(reference):
            self._places[word] = self._places.get(word, 0) | 1 << place

    def of(self, words: Sequence[str], start: _Row | None = None) -> int:
        """The distance of a hypothesis; of its rest, where ``start`` is the row after its beginning."""
        row = start or self._first()
        for word in words:
            row = self._next(row, word)
        return row.last

    def rows(self, words: Sequence[str]) -> list[_Row]:
        """The row before the first word, and after each."""
        return list(accumulate(words, self._next, initial=self._first()))

    def alignment(self, rows: Sequence[_Row], words: Sequence[str]) -> _Alignment:
        """Walk back from the last entry; matches and substitutions go before words left out, those before added."""
        i, j = len(words), len(self.reference)
        places, wrong_reference, wrong_words = [0] * j, [0] * j, [0] * i
        while i or j:
            diagonal, up = False, bool(i)
            if i and j:
                bit = 1 << (j - 1)
                step = bool(rows[i].worse & bit) - bool(rows[i].better & bit)
                before = bool(rows[i - 1].rises & bit) - bool(rows[i - 1].falls & bit)
                diagonal, up = step + before == (words[i - 1] != self.reference[j - 1]), step == 1
            if diagonal:
                i, j = i - 1, j - 1
                places[j] = i
                wrong_reference[j] = wrong_words[i] = int(words[i] != self.reference[j])
            elif up:
                i -= 1
                wrong_words[i] = 1
            else:
                j -= 1
                places[j], wrong_reference[j] = i - 1, 1
        return _Alignment(places, *([0, *accumulate(wrong)] for wrong in (wrong_reference, wrong_words)))

    def _first(self) -> _Row:
        return _Row(self._all, 0, len(self.reference))

    def _next(self, row: _Row, word: str) -> _Row:
        every = self._all
        rises, falls, last, *_ = row
        equal = self._places.get(word, 0)
        diagonal = ((((equal & rises) + rises) ^ rises) | equal | falls) & every
        worse = falls | (every & ~(diagonal | rises))
        better = rises & diagonal
        highest = every ^ (every >> 1)
        last += bool(worse & highest) - bool(better & highest) if every else 1
        # The entry before the first reference word grows by one with every word.
        above, below = (worse << 1 | 1) & every, better << 1 & every
        return _Row(below | (every & ~(diagonal | above)), above & diagonal, last, worse, better)


def _best_shift(words: list[str], distance: _Distance, tried: int) -> tuple[int, list[str], int]:
    """The shift that lowers the distance most, by how much, and how many were tried so far."""
    rows = distance.rows(words)
    aligned = distance.alignment(rows, words)
    best: tuple[int, int, int, int] | None = None
    for start, place, length in _matches(words, distance.reference):
        wrong, missing = aligned.hypothesis_errors, aligned.reference_errors
        if wrong[start + length] == wrong[start] or missing[place + length] == missing[place]:
            continue
        if start <= aligned.places[place] < start + length:
            continue
        for target in _targets(aligned.places, place, length):
            kept = min(start, target)
            left = distance.of(_shifted(words, start, length, target)[kept:], rows[kept])
            found = (rows[-1].last - left, length, -start, -target)
            best = max(best or found, found)
            tried += 1
        if tried >= MOST_CANDIDATES:
            break
    if best is None:
        return 0, words, tried
    gain, length, start, target = best
    return gain, _shifted(words, -start, length, -target), tried


def _matches(words: Sequence[str], reference: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """``(start, place, length)`` of all equal runs of words, shorter ones first."""
    for start in range(len(words)):
        for place in range(max(0, start - FARTHEST_SHIFT), min(len(reference), start + FARTHEST_SHIFT + 1)):
            longest = min(LONGEST_SHIFT, len(words) - start, len(reference) - place)
            for length in range(1, longest + 1):
                if words[start + length - 1] != reference[place + length - 1]:
                    break
                yield start, place, length


def _targets(places: Sequence[int], place: int, length: int) -> Iterator[int]:
    """Where words that match the reference from ``place`` on may be put: behind what stands at it, or just before."""
    last = -1
    for at in range(place - 1, min(place + length, len(places))):
        target = 0 if at < 0 else places[at] + 1
        if target != last:
            yield target
        last = target


def _shifted(words: list[str], start: int, length: int, target: int) -> list[str]:
    """``words[start:start + length]`` moved before word ``target``; inside itself: that far behind."""
    moved, rest = words[start : start + length], words[:start] + words[start + length :]
    place = target - length if target > start + length else target
    return rest[:place] + moved + rest[place:]
