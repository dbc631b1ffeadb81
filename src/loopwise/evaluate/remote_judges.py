"""Judges and critics behind an OpenAI-compatible API: scores by a rubric, comparisons, words.

References: only ``remote_grader`` sees any. The others are free of them.
"""

from __future__ import annotations

from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.options import require_number, require_text
from loopwise.evaluate.remote_verdicts import Asker, Comparisons, Critic, RubricJudge
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.remote.client import find_endpoint

HELPFUL = "Is the answer right, complete and to the point?"
CRITICISE = "Check the answer step by step. Say what is wrong with it, where, and how to mend it; do not write it anew."


def remote_judge(
    surroundings: Surroundings,
    *,
    endpoint: str,
    rubric: str = HELPFUL,
    least: float = 0,
    most: float = 10,
    max_tokens: int = 512,
    temperature: float = 0.0,
) -> RubricJudge:
    """A score by ``rubric`` on a scale from ``least`` to ``most``, which becomes a reward from 0 to 1."""
    asker = _asker("remote_judge", surroundings, endpoint, max_tokens, temperature)
    _check_scale("remote_judge", rubric, least, most)
    return RubricJudge(asker, rubric, least, most, None)


def remote_grader(
    surroundings: Surroundings,
    *,
    endpoint: str,
    column: str = "answer",
    rubric: str = "Does the answer come to the same as the reference?",
    least: float = 0,
    most: float = 10,
    max_tokens: int = 512,
    temperature: float = 0.0,
) -> RubricJudge:
    """The same, by a judge who is shown the reference in ``column``."""
    asker = _asker("remote_grader", surroundings, endpoint, max_tokens, temperature)
    _check_scale("remote_grader", rubric, least, most)
    require_text('source "remote_grader"', column=column)
    return RubricJudge(asker, rubric, least, most, column)


def remote_compare(
    surroundings: Surroundings,
    *,
    endpoint: str,
    rubric: str = HELPFUL,
    opponents: int = 2,
    max_tokens: int = 512,
    temperature: float = 0.0,
) -> Comparisons:
    """The share of its comparisons that a sample wins, each with both orders; ``opponents`` 0 compares all pairs.

    Otherwise sample i of a group meets the next ``opponents`` ones, around the group: as many comparisons a sample.
    """
    asker = _asker("remote_compare", surroundings, endpoint, max_tokens, temperature)
    require_text('source "remote_compare"', rubric=rubric)
    require_number('source "remote_compare"', 0, whole=True, opponents=opponents)
    return Comparisons(asker, rubric, opponents)


def remote_critic(
    surroundings: Surroundings,
    *,
    endpoint: str,
    instruction: str = CRITICISE,
    accept: str = "CORRECT",
    max_tokens: int = 512,
    temperature: float = 0.0,
) -> Critic:
    """A critique in words, or nothing where the reply, or its last line, is the word ``accept``."""
    asker = _asker("remote_critic", surroundings, endpoint, max_tokens, temperature)
    require_text('source "remote_critic"', instruction=instruction, accept=accept)
    return Critic(asker, instruction, accept)


SOURCES: tuple[Source, ...] = (
    Source("remote_judge", remote_judge),
    Source("remote_grader", remote_grader, uses_reference=True),
    Source("remote_compare", remote_compare, compares=True),
    Source("remote_critic", remote_critic, says=frozenset({"critiques"})),
)


def _asker(source: str, surroundings: Surroundings, endpoint: Any, max_tokens: Any, temperature: Any) -> Asker:
    """Raises ConfigError where the endpoint is unknown or an option is wrong."""
    require_text(f'source "{source}"', endpoint=endpoint)
    require_number(f'source "{source}"', 1, whole=True, max_tokens=max_tokens)
    require_number(f'source "{source}"', 0, 2, temperature=temperature)
    found = find_endpoint(surroundings.endpoints, endpoint, f'source "{source}"')
    return Asker(source, found, max_tokens, float(temperature))


def _check_scale(source: str, rubric: Any, least: Any, most: Any) -> None:
    require_text(f'source "{source}"', rubric=rubric)
    for name, value in (("least", least), ("most", most)):
        require_number(f'source "{source}"', **{name: value})
    if not least < most:
        raise ConfigError(f'source "{source}": "least" ({least:g}) must lie below "most" ({most:g}). Mend the scale.')
