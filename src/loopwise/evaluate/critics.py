"""Critics: what says in words where an answer went wrong. Functions of one's own are critics too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.options import require_number, require_text
from loopwise.evaluate.parts import Judge, Judged
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.models.templates import fill
from loopwise.types import Generator, Problem, Sample

TEMPLATE = '{prompt}{draft}\nWhat is wrong with this answer? Say "Correct" if nothing is.\n'
CHAT_TEMPLATE = 'What is wrong with this answer? Say only "Correct" if nothing is.'
ACCEPT = "Correct"


@dataclass(frozen=True)
class Mismatch:
    """Says where a completion first differs from ``column``, white space around both left out.

    ``says`` is the critique: ``{place}`` is the first character that differs, counted from 1, ``{found}`` and
    ``{expected}`` are what stands there and what should: nothing, where a text is over.
    """

    column: str
    says: str

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Critiques of ``samples`` [S]; one whose problem has nothing in ``column`` cannot be judged."""
        judged = Judged.nothing(len(samples))
        for position, (problem, sample) in enumerate(zip(problems, samples, strict=True)):
            reference = problem.columns.get(self.column)
            if reference is None:
                judged.errors[position] = f'there is nothing in column "{self.column}" to compare it with'
            else:
                judged.critiques[position] = self._critique(sample.text.strip(), str(reference).strip())
        return judged

    def _critique(self, found: str, expected: str) -> str | None:
        if found == expected:
            return None
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((place for place, (one, other) in pairs if one != other), min(len(found), len(expected)))
        return fill(
            self.says, place=str(place + 1), found=found[place : place + 1], expected=expected[place : place + 1]
        )

    def close(self) -> None:
        """Nothing to end."""


def mismatch(
    surroundings: Surroundings, column: str = "answer", says: str = "It is wrong from character {place} on."
) -> Judge:
    """The critic ``Mismatch``. Raises ConfigError."""
    require_text('source "mismatch"', column=column, says=says)
    return Mismatch(column, says)


def self_critic(
    surroundings: Surroundings,
    template: str = TEMPLATE,
    chat_template: str = CHAT_TEMPLATE,
    accept: str = ACCEPT,
    max_tokens: int = 128,
) -> Judge:
    """The policy criticises its own samples: it goes on, greedily, from ``template``, or from the conversation, the
    sample and ``chat_template`` as the user's words. A critique that begins with the word ``accept`` says nothing
    against the sample, nor does an empty one. Raises ConfigError.
    """
    asking = _Asking("self_critic", template, chat_template, accept, max_tokens)
    if surroundings.writer is None:
        raise ConfigError('source "self_critic": nothing here writes text for it. Use it in a recipe of `improve`.')
    return asking.critic(surroundings.writer, None, surroundings.seed)


def model_critic(
    surroundings: Surroundings,
    model: str,
    template: str = TEMPLATE,
    chat_template: str = CHAT_TEMPLATE,
    accept: str = ACCEPT,
    max_tokens: int = 128,
) -> Judge:
    """Another model criticises, that in the folder ``model``, which stays as it is; the rest as ``self_critic``.

    Raises ConfigError, and ModelError where the folder is no usable model.
    """
    asking = _Asking("model_critic", template, chat_template, accept, max_tokens)
    require_text('source "model_critic"', model=model)
    if surroundings.runtime is None or surroundings.local is None:
        raise ConfigError('source "model_critic": it runs a model here, and nothing does. Use remote_critic.')
    from loopwise.models.folders import load_policy

    policy = load_policy(model, surroundings.runtime)
    return asking.critic(surroundings.local, policy, surroundings.seed)


@dataclass(frozen=True)
class _Asking:
    """How ``source`` asks a model for a critique. Raises ConfigError naming an option that is wrong."""

    source: str
    template: str
    chat_template: str
    accept: str
    max_tokens: int

    def __post_init__(self) -> None:
        place = f'source "{self.source}"'
        require_text(place, template=self.template, chat_template=self.chat_template, accept=self.accept)
        for name in ("prompt", "draft"):
            if "{" + name + "}" not in self.template:
                raise ConfigError(f'{place}: option "template" has no {{{name}}}. Say where it goes.')
        require_number(place, 1, whole=True, max_tokens=self.max_tokens)

    def critic(self, generator: Generator, policy: Any, seed: int) -> Judge:
        """The critic whose words ``generator`` draws from ``policy``, or from the run's where that is None."""
        from loopwise.evaluate.written import WritingCritic

        return WritingCritic(
            generator,
            policy,
            template=self.template,
            chat_template=self.chat_template,
            accept=self.accept,
            max_tokens=self.max_tokens,
            seed=seed,
        )


WORDS = frozenset({"critiques"})
SOURCES = (
    Source("mismatch", mismatch, uses_reference=True, says=WORDS),
    Source("self_critic", self_critic, says=WORDS),
    Source("model_critic", model_critic, says=WORDS),
)
