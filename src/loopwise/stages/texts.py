"""One model on plain text: perplexity, bits per byte and nats per token, with intervals over windows of the text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopwise.config.blocks import SourceConfig
from loopwise.data.sources import TEXT_FILES, read_source
from loopwise.errors import ConfigError, VocabularyError
from loopwise.evaluate.perplexity import Perplexity, text_perplexity
from loopwise.evaluate.stats import difference, mean_interval
from loopwise.models.tokens import encode_texts, unknown_share
from loopwise.stages.generation import Speaker
from loopwise.stages.questions import Examination

LEAST_WINDOWS = 2


@dataclass(frozen=True)
class Reading:
    """How well a model predicts a text, and the ``tokens`` that it reads the text in."""

    found: Perplexity
    tokens: list[list[int]]

    @property
    def units(self) -> np.ndarray:
        """Nats a token ``[W]`` that each window adds, so scaled that their mean is the text's."""
        nats = self.found.window_nats
        assert nats is not None
        return np.asarray(nats * nats.size / self.found.tokens)

    @property
    def bits(self) -> float:
        """Bits a byte that one nat a token is on this text."""
        return self.found.tokens / self.found.bytes / math.log(2)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Each figure with its 95% interval over windows, or none where there is a single one."""
        nats, found = self.found.nats_per_token, self.found
        # Of log-probabilities, as elsewhere: nats that happen to be below 1 are no shares.
        high, low = (-end for end in mean_interval(-self.units))

        def figure(value: float, scale: Callable[[float], float]) -> dict[str, Any]:
            interval = None if math.isnan(low) else [scale(low), scale(high)]
            return {"value": value, "ci95": interval, "n": found.tokens}

        return {
            "perplexity": figure(found.perplexity, lambda end: math.exp(min(700.0, end))),
            "bits_per_byte": figure(found.bits_per_byte, lambda end: end * self.bits),
            "nats_per_token": figure(nats, float),
        }


def open_texts(examination: Examination) -> dict[str, list[str]]:
    """The documents of each text. Raises ConfigError where a column is named, and none of them has columns."""
    columns = {"text_column": examination.text_columns} if examination.text_columns else {}
    found = {name: read_source(SourceConfig.model_validate({"path": name, **columns})) for name in examination.texts}
    files = [file for text in found.values() for file in text.files]
    if columns and all(file.lower().endswith(TEXT_FILES) for file in files):
        raise ConfigError("--text-column is for row files, and --text names none. Leave it out.")
    return {name: [document.text for document in text.documents] for name, text in found.items()}


def check_known(texts: Mapping[str, Sequence[str]], speaker: Speaker) -> None:
    """Raise VocabularyError where a model's tokenizer has no tokens for some of a text."""
    for name, documents in texts.items():
        if share := unknown_share(speaker.policy, documents):
            raise VocabularyError(
                f"--text {name}: {share:.2%} of its tokens are {speaker.policy.tokenizer.unk_token}, text that the "
                "model's tokenizer does not know, and no figure could say how well that is predicted. Take it out, or "
                "name a model whose tokenizer knows it."
            )


def read(documents: Sequence[str], speaker: Speaker) -> Reading:
    """Measure a model on documents."""
    found = text_perplexity(speaker.policy, documents, speaker.runtime)
    return Reading(found, encode_texts(speaker.policy, documents))


def text_result(name: str, reading: Reading) -> dict[str, Any]:
    """What ``loopwise evaluate`` says of a text."""
    found = reading.found
    size = {"documents": found.documents, "tokens": found.tokens, "bytes": found.bytes}
    return {"name": name, "kind": "text", **size, "figures": reading.figures()}


def text_differences(ours: Reading, theirs: Reading) -> dict[str, dict[str, Any]]:
    """What our model needs more (fewer is better), with its paired 95% interval over windows of the text.

    There is none where the two read the text in different tokens or windows, or in a single one: only bits per byte
    are then comparable.
    """
    paired = ours.tokens == theirs.tokens and ours.found.window == theirs.found.window
    if not paired or ours.units.size != theirs.units.size or ours.units.size < LEAST_WINDOWS:
        gap = ours.found.bits_per_byte - theirs.found.bits_per_byte
        found = {"bits_per_byte": {"value": gap, "ci95": None, "p": None, "n": 0}}
        if paired:
            nats = ours.found.nats_per_token - theirs.found.nats_per_token
            found["nats_per_token"] = {"value": nats, "ci95": None, "p": None, "n": 0}
        return found
    gap_found = difference(ours.units, theirs.units)
    return {
        name: {
            "value": gap_found.value * scale,
            "ci95": [gap_found.low * scale, gap_found.high * scale],
            "p": gap_found.p,
            "n": gap_found.n,
        }
        for name, scale in (("bits_per_byte", ours.bits), ("nats_per_token", 1.0))
    }
