"""Built-in rewards in TRL's signature: 1.0 for a pass, 0.0 for a miss, None where nothing can be said; and metrics.

Imported by the worker too, which must start fast: heavy libraries are loaded by the first call that needs them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import ConfigError, nearest
from loopwise.evaluate.metrics import rewards as metrics
from loopwise.evaluate.metrics.labels import classification
from loopwise.evaluate.options import check_options, require, require_labels, require_number
from loopwise.evaluate.parsing import last_number, reference_number, settled_choice
from loopwise.evaluate.references import (
    Figures,
    MetricReward,
    RewardFunction,
    Rewards,
    against,
    alone,
    column_values,
    completion_text,
    named,
    truth_for,
)


@dataclass(frozen=True)
class Rule:
    """A family of rewards. ``build`` takes the rule's options as keywords; ``can_hang`` asks for a killable process."""

    name: str
    uses_reference: bool
    build: Callable[..., RewardFunction]
    can_hang: bool = False

    def make(self, options: Mapping[str, Any]) -> RewardFunction:
        """The reward with these options. Raises ConfigError naming an option that is unknown, missing or wrong."""
        check_options(f'rule "{self.name}"', inspect.signature(self.build).parameters, options)
        return self.build(**options)


def exact_match(column: str = "answer", strip: bool = True, casefold: bool = False) -> RewardFunction:
    """1.0 where the completion equals the text in ``column``; None where a row has none."""
    require('rule "exact_match"', str, column=column)
    require('rule "exact_match"', bool, strip=strip, casefold=casefold)

    def normal(text: str) -> str:
        text = text.strip() if strip else text
        return text.casefold() if casefold else text

    def judge(completion: str, reference: Any) -> float | None:
        return float(normal(completion) == normal(str(reference)))

    return against("exact_match", column, judge)


def number(column: str = "answer") -> RewardFunction:
    """1.0 where the last number of the completion equals the one in ``column`` (after ``####`` if that is there)."""
    require('rule "number"', str, column=column)

    def judge(completion: str, reference: Any) -> float | None:
        expected = reference_number(reference)
        if expected is None:
            return None
        found = last_number(completion)
        return float(found is not None and found.equals(expected))

    return against("number", column, judge)


def choice(column: str = "answer", labels: str | Sequence[str] = "ABCD") -> RewardFunction:
    """1.0 where the completion settles on the choice in ``column``; None where that holds none of ``labels``."""
    require('rule "choice"', str, column=column)
    require_labels('rule "choice"', labels=labels)

    def read(text: Any) -> str | None:
        return settled_choice(str(text), labels)

    def judge(completion: str, reference: Any) -> float | None:
        expected = read(reference)
        return None if expected is None else float(read(completion) == expected)

    def report(completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Figures | None:
        answers = zip(map(read, completions), column_values(column, columns), strict=True)
        pairs = [(answer, truth_for(answer, value, read)) for answer, value in answers]
        return classification([(answer, truth) for answer, truth in pairs if truth], list(labels))

    return MetricReward(against("choice", column, judge), report)


def regex(pattern: str, fullmatch: bool = False) -> RewardFunction:
    """1.0 where ``pattern`` is found in the completion, or matches all of it."""
    require('rule "regex"', str, pattern=pattern)
    require('rule "regex"', bool, fullmatch=fullmatch)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f'rule "regex": pattern "{pattern}" is no regular expression ({error}). Mend it.') from None
    matches = compiled.fullmatch if fullmatch else compiled.search

    return alone("regex", lambda text: float(matches(text) is not None))


def math(column: str = "answer") -> RewardFunction:
    """1.0 where math-verify finds the completion's answer (boxed, LaTeX or last number) equal to that in ``column``."""
    require('rule "math"', str, column=column)

    def judge(completion: str, reference: Any) -> float | None:
        from loopwise.evaluate.mathematics import same_value

        return same_value(completion, reference)

    return against("math", column, judge)


def reasoning_gym(column: str = "entry", solved: bool = False) -> RewardFunction:
    """1.0 where the scorer of the reasoning-gym entry in ``column`` is content, less for a part (``solved``: 0.0)."""
    require('rule "reasoning_gym"', str, column=column)
    require('rule "reasoning_gym"', bool, solved=solved)

    def judge(completion: str, entry: Any) -> float | None:
        from loopwise.evaluate.gym import score

        mark = score(str(entry), completion)
        return float(mark >= 1.0) if solved and mark is not None else mark

    return against("reasoning_gym", column, judge)


def noisy(rule: str, wrong: float = 0.2, seed: int = 0, options: Mapping[str, Any] | None = None) -> RewardFunction:
    """1.0 where another ``rule`` passes; its 0 and 1 are swapped for a share ``wrong`` of all (prompt, completion)."""
    require('rule "noisy"', str, rule=rule)
    if rule not in RULES or rule == "noisy":
        raise ConfigError(f'rule "noisy": no other rule "{rule}". {nearest(rule, RULES.keys() - {"noisy"})}')
    require_number('rule "noisy"', 0, 1, wrong=wrong)
    require('rule "noisy"', int, seed=seed)
    judge = RULES[rule].make(options or {})

    def swapped(prompt: Any, completion: Any) -> bool:
        text = json.dumps([seed, prompt, completion_text(completion)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") < wrong * 2**64

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> Rewards:
        verdicts = judge(completions=completions, **columns)
        return [
            1.0 - verdict if verdict in (0.0, 1.0) and swapped(prompt, completion) else verdict
            for prompt, completion, verdict in zip(prompts, completions, verdicts, strict=True)
        ]

    return named(reward, f"noisy_{rule}")


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("exact_match", True, exact_match),
        Rule("number", True, number),
        Rule("regex", False, regex, can_hang=True),
        Rule("choice", True, choice),
        Rule("math", True, math, can_hang=True),
        Rule("reasoning_gym", True, reasoning_gym, can_hang=True),
        # What it wraps may hang, or use a reference.
        Rule("noisy", True, noisy, can_hang=True),
        Rule("bleu", True, metrics.bleu),
        Rule("chrf", True, metrics.chrf),
        Rule("ter", True, metrics.ter),
        Rule("rouge", True, metrics.rouge),
        Rule("token_f1", True, metrics.token_f1),
        Rule("label", True, metrics.label),
        Rule("length", False, metrics.length),
        Rule("distinct", False, metrics.distinct),
    )
}
