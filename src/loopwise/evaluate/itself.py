"""Feedback that a model gives itself, without labels: votes, agreement, certainty, and the model as judge.

All of it can be gamed by the one that gives it: read docs/itself.md before training on any.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopwise.errors import ConfigError
from loopwise.evaluate.options import require_number, require_text, wrong
from loopwise.evaluate.parts import Judge
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.types import Sampling

if TYPE_CHECKING:
    from loopwise.evaluate.introspection.asked import Asked

OWN = "self"
MARKS = ("1", "2", "3", "4", "5")
RUBRIC = (
    "Mark the answer to the question, from 1 (wrong or useless) to 5 (right and complete). Reply with the number "
    "alone.\n\nQuestion:\n{prompt}\n\nAnswer:\n{completion}\n\nMark:"
)
"""What is the same for all samples of a problem comes first: it is read once for all of them."""
COMPARISON = "Which answer is better, A or B?\n\nQuestion: {prompt}\n\nA: {first}\n\nB: {second}\n\nBetter:"
PAIRS = 4
"""Each of eight samples once: every pair is read in both orders, and more would take longer than the samples did."""


def vote(
    surroundings: Surroundings,
    *,
    extract: str = "text",
    pattern: str = "",
    labels: str | Sequence[str] = "ABCD",
    least_share: float = 0.0,
) -> Judge:
    """Majority vote over the samples of a problem; see ``introspection.votes``.

    ``extract`` says what of a completion is its answer: text, number, choice (of ``labels``) or regex (``pattern``).
    A problem whose majority has less than ``least_share`` of the samples is abstained from. Raises ConfigError.
    """
    from loopwise.evaluate.introspection.answers import answers_by
    from loopwise.evaluate.introspection.votes import Vote

    require_number('source "vote"', 0, 1, least_share=least_share)
    return Vote(answers_by("vote", extract, pattern, labels), float(least_share))


def agreement(
    surroundings: Surroundings,
    *,
    column: str = "mirrored",
    variants: str = "",
    extract: str = "text",
    pattern: str = "",
    labels: str | Sequence[str] = "ABCD",
    max_tokens: int = 64,
) -> Judge:
    """Agreement with the policy's greedy answers to equivalent prompts; see ``introspection.agreement``.

    The prompts are in ``column`` (one, or a list), or what ``variants``, a ``path/to/file.py:function`` of the prompt,
    returns. Their answers have at most ``max_tokens``. ``extract`` as in ``vote``. Raises ConfigError.
    """
    from loopwise.evaluate.introspection.agreement import Agreement
    from loopwise.evaluate.introspection.answers import answers_by
    from loopwise.evaluate.introspection.variants import ByFunction, InColumn

    if surroundings.writer is None:
        raise ConfigError('source "agreement": it asks the policy for more answers, and nothing here generates any.')
    require_number('source "agreement"', 1, whole=True, max_tokens=max_tokens)
    if variants:
        require_text('source "agreement"', variants=variants)
        file, _, name = variants.rpartition(":")
        path = Path(file).absolute()
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(
                f'source "agreement": option "variants": there is no Python file {path}. '
                "Write path/to/file.py:function."
            )
    else:
        require_text('source "agreement"', column=column)
    return Agreement(
        answers=answers_by("agreement", extract, pattern, labels),
        variants=ByFunction.of(f"{path}:{name}") if variants else InColumn(column),
        generator=surroundings.writer,
        sampling=Sampling(max_tokens=max_tokens, temperature=0.0),
        seed=surroundings.seed,
    )


def self_certainty(surroundings: Surroundings) -> Judge:
    """How far from indifferent the policy was while it wrote, in nats; see ``introspection.certainty``."""
    from loopwise.evaluate.introspection.certainty import SelfCertainty

    return SelfCertainty()


def judge(
    surroundings: Surroundings, *, rubric: str = RUBRIC, scores: Sequence[str] = MARKS, model: str = OWN
) -> Judge:
    """The expected mark under a rubric, scaled to 0-1; see ``introspection.rubric``.

    ``rubric`` has {prompt} and {completion}; ``scores`` are one-token words from the worst to the best; ``model`` is
    the policy itself (``self``) or a folder with another, which stays as it is. Raises ConfigError.
    """
    _check_template("judge", "rubric", rubric, ("prompt", "completion"))
    if not _words(scores) or len(scores) < 2:
        expected = "two or more different words in quotes, from the worst to the best"
        raise wrong('source "judge"', "scores", expected, scores)
    from loopwise.evaluate.introspection.rubric import Rubric

    return Rubric(_asked("judge", surroundings, model), rubric, tuple(scores))


def compare(
    surroundings: Surroundings,
    *,
    template: str = COMPARISON,
    letters: Sequence[str] = ("A", "B"),
    pairs: int = PAIRS,
    model: str = OWN,
) -> Judge:
    """The share of comparisons won against the other samples of a problem; see ``introspection.duels``.

    ``template`` has {prompt}, {first} and {second}, and is to be answered with one of ``letters``, words of one token;
    ``pairs`` are made of a problem at most (0: all); ``model`` as in ``judge``. Raises ConfigError.
    """
    _check_template("compare", "template", template, ("prompt", "first", "second"))
    if not _words(letters) or len(letters) != 2:
        raise wrong('source "compare"', "letters", "two different words in quotes", letters)
    require_number('source "compare"', 0, whole=True, pairs=pairs)
    from loopwise.evaluate.introspection.duels import Duels

    return Duels(_asked("compare", surroundings, model), template, tuple(letters), pairs, surroundings.seed)


def _words(values: Any) -> bool:
    """Whether these are different words."""
    listed = isinstance(values, list | tuple) and all(isinstance(one, str) and one.strip() for one in values)
    return listed and len(set(values)) == len(values)


def _asked(source: str, surroundings: Surroundings, model: str) -> Asked:
    if surroundings.runtime is None:
        raise ConfigError(f'source "{source}": it reads a model\'s probabilities, and nothing here runs a model.')
    folder: Path | None = None
    if model != OWN:
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f'source "{source}": option "model": {folder} is no model folder (config.json is missing). '
                f'Mend the path, or write "{OWN}" for the policy itself.'
            )
    from loopwise.evaluate.introspection.asked import Asked

    return Asked(source, surroundings.runtime, folder)


def _check_template(source: str, option: str, template: object, fields: Sequence[str]) -> None:
    missing = [name for name in fields if not isinstance(template, str) or "{" + name + "}" not in template]
    if missing:
        raise ConfigError(f'source "{source}": option "{option}" has no {{{missing[0]}}}. Say where it goes.')


SOURCES: tuple[Source, ...] = (
    Source("vote", vote, compares=True),
    Source("agreement", agreement),
    Source("self_certainty", self_certainty),
    Source("judge", judge),
    Source("compare", compare, compares=True),
)
