"""Whether prompts stand in what a model was trained on: as they are, or by a run of words in common."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loopwise.data.dedup import normalised
from loopwise.runtime import seed_key
from loopwise.types import Completion, Prompt

GRAM = 13
"""Words in a row that two texts do not share by chance (Brown et al. 2020, appendix C)."""
LEAST = 8
"""A shorter prompt than GRAM counts where all of it, at least so many words, stands in a text in a row."""
COMMON = 10
"""Words in a row that more than so many texts share are a template or a phrase, and say nothing."""
_SHOWN = 160
_AT_ONCE = 2**22  # characters
# Han characters and kana have no spaces between words: each stands for itself.
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")


@dataclass(frozen=True)
class Seen:
    """Something a model was trained on: a prompt with the ``keys`` of the problems it is, or text without any, plain or
    a completion.

    ``source`` says where it is from.
    """

    source: str
    text: str
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Overlap:
    """Where a prompt was met: ``exact`` as the same problem or the beginning of a line, ``wording`` by ``shared``.

    ``seen`` is how what was trained on begins.
    """

    kind: Literal["exact", "wording"]
    source: str
    seen: str
    shared: str = ""


def text_of(said: Prompt | Completion) -> str:
    """A prompt or completion as text: of a conversation all that was said, but for system prompts, which many share."""
    if isinstance(said, str):
        return said
    return "\n".join(message["content"] for message in said if message["role"] != "system")


def find_overlaps(texts: Sequence[str], keys: Sequence[frozenset[str]], seen: Iterable[Seen]) -> dict[int, Overlap]:
    """Those of P prompts that stand in what was ``seen``, by their places.

    A prompt is met exactly where one of its ``keys`` [P] is among a seen prompt's or, where it is too short for
    wording to tell, where a line of text without keys begins with it and goes on with another word; white space and
    forms of characters aside. By wording it is met where it shares GRAM words in a row with anything seen, case and
    punctuation aside; of a prompt of LEAST to GRAM words all must stand there. Runs of words that more than COMMON of
    the prompts or of the seen texts have in common are left out.
    """
    exact = _Exact(texts, keys)
    wording = _Wording(texts)
    for some in _parts(seen):
        exact.meet(some)
        wording.meet(some)
    return dict(sorted({**wording.found(), **exact.found}.items()))


def _parts(seen: Iterable[Seen]) -> Iterator[list[Seen]]:
    """What was seen, some of it at a time, without repeats: these would make a phrase look common."""
    known: set[int] = set()
    part: list[Seen] = []
    size = 0
    for one in seen:
        if (mark := hash((one.text, one.keys))) in known:
            continue
        known.add(mark)
        part.append(one)
        size += len(one.text)
        if size >= _AT_ONCE:
            yield part
            part, size = [], 0
    yield part


class _Exact:
    """Prompts by their keys; those too short for wording by their beginnings of lines, too."""

    def __init__(self, texts: Sequence[str], keys: Sequence[frozenset[str]]) -> None:
        self.found: dict[int, Overlap] = {}
        self._places: dict[str, list[int]] = defaultdict(list)
        self._beginnings: dict[str, list[int]] = defaultdict(list)
        for place, (text, own) in enumerate(zip(texts, keys, strict=True)):
            for key in own:
                self._places[key].append(place)
            if len(words(text)) < LEAST and (beginning := normalised(text)):
                self._beginnings[beginning].append(place)
        self._lengths = sorted({len(beginning) for beginning in self._beginnings})

    def meet(self, seen: Sequence[Seen]) -> None:
        for one in seen:
            if one.keys:
                self._mark((place for key in one.keys for place in self._places.get(key, ())), one.source, one.text)
            elif self._lengths:
                for line in map(normalised, one.text.splitlines()):
                    for length in self._lengths[: bisect_right(self._lengths, len(line))]:
                        if not _cuts(line, length):
                            self._mark(self._beginnings.get(line[:length], ()), one.source, line)

    def _mark(self, places: Iterable[int], source: str, text: str) -> None:
        for place in places:
            self.found.setdefault(place, Overlap("exact", source, _shown(text)))


class _Wording:
    """Runs of words of the prompts, as 64-bit hashes: one of GRAM words, or a shorter prompt's all."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(map(words, texts))
        vocabulary = {word for own in self._texts if len(own) >= LEAST for word in own}
        # A word no prompt has is 0, and no run goes across it.
        self._numbers = {word: number for number, word in enumerate(sorted(vocabulary), start=1)}
        self._factors = np.random.Philox(key=seed_key("words")).random_raw(len(vocabulary) + 1) | np.uint64(1)
        self._runs = {size: self._distinctive(size) for size in range(LEAST, GRAM + 1)}
        self._met: dict[int, dict[int, list[Seen]]] = {size: defaultdict(list) for size in self._runs}

    def _distinctive(self, size: int) -> dict[int, list[tuple[int, int]]]:
        """Prompts and places in them of each hash of ``size`` words that no more than COMMON prompts share."""
        places = [n for n, own in enumerate(self._texts) if len(own) == size or (size == GRAM and len(own) > GRAM)]
        split = [self._texts[place] for place in places]
        ends = _ends(split)
        hashes, starts = self._hashes(split, size)
        owners = np.searchsorted(ends, starts, side="right")
        starts = starts - np.concatenate([[0], ends])[owners]
        runs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for hashed, owner, start in zip(hashes.tolist(), owners.tolist(), starts.tolist(), strict=True):
            met = runs[hashed]
            if len(met) <= COMMON and (not met or met[-1][0] != places[owner]):
                met.append((places[owner], start))
        return {hashed: met for hashed, met in runs.items() if len(met) <= COMMON}

    def meet(self, seen: Sequence[Seen]) -> None:
        split = [words(one.text) for one in seen]
        ends = _ends(split)
        for size, runs in self._runs.items():
            if not runs:
                continue
            hashes, starts = self._hashes(split, size)
            hits = np.flatnonzero(np.isin(hashes, np.fromiter(runs, dtype=np.uint64, count=len(runs))))
            owners = np.searchsorted(ends, starts[hits], side="right")
            pairs = dict.fromkeys(zip(hashes[hits].tolist(), owners.tolist(), strict=True))
            for hashed, owner in pairs:
                met = self._met[size][hashed]
                if len(met) <= COMMON:
                    met.append(seen[owner])

    def found(self) -> dict[int, Overlap]:
        """The prompts met, each with the first of its runs that few texts share."""
        overlaps: dict[int, tuple[int, Overlap]] = {}
        for size, owners, first in self._telling():
            for place, start in owners:
                if place not in overlaps or start < overlaps[place][0]:
                    shared = " ".join(self._texts[place][start : start + size])
                    overlaps[place] = start, Overlap("wording", first.source, _shown(first.text), shared)
        return {place: overlap for place, (_, overlap) in overlaps.items()}

    def _telling(self) -> Iterator[tuple[int, list[tuple[int, int]], Seen]]:
        for size, met in self._met.items():
            for hashed, texts in met.items():
                if len(texts) <= COMMON:
                    yield size, self._runs[size][hashed], texts[0]

    def _hashes(self, texts: Sequence[Sequence[str]], size: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all runs of ``size`` known words, uint64, and where each starts in the texts, laid end to end with
        one place between them."""
        get = self._numbers.get
        numbers = np.array([number for own in texts for number in (*(get(word, 0) for word in own), 0)], dtype=np.int64)
        count = len(numbers) - size + 1
        if count <= 0:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        unknown = np.concatenate([[0], np.cumsum(numbers == 0)])
        starts = np.flatnonzero(unknown[size : size + count] == unknown[:count])
        values = self._factors[numbers]
        hashes = np.zeros(len(starts), dtype=np.uint64)
        for shift in range(size):
            hashes = hashes * _BASE + values[starts + shift]
        return hashes, starts


_BASE = np.uint64(0x9E3779B97F4A7C15)


def _ends(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Where each text ends where all are laid end to end with one place between them: int64 ``[N]``."""
    return np.cumsum([len(own) + 1 for own in texts], dtype=np.int64)


def words(text: str) -> list[str]:
    """The words of a text in lower case; Han characters and kana one by one; punctuation left out."""
    return _WORD.findall(normalised(text).lower())


def _cuts(line: str, length: int) -> bool:
    """Whether the first ``length`` characters of a line end inside a number, or a word of letters that have cases:
    scripts without them may write words without spaces."""
    around = line[length - 1 : length + 1]
    return len(around) == 2 and (around.isdecimal() or all(one.lower() != one.upper() for one in around))


def counts(overlaps: Mapping[int, Overlap]) -> dict[str, int]:
    """How many prompts were met exactly, and how many by wording alone."""
    return {kind: sum(overlap.kind == kind for overlap in overlaps.values()) for kind in ("exact", "wording")}


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
