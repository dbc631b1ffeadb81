"""One model on probes of bias: how far one word makes it lean, change its answer, or earn another reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopwise.errors import ConfigError
from loopwise.evaluate.bias import Probe, leaning, open_probes, same_answer
from loopwise.evaluate.likelihood import sum_logps
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import sources
from loopwise.evaluate.stats import difference, holm, mean_interval
from loopwise.models.tokens import encode_prompts, encode_rows
from loopwise.observer import Observer
from loopwise.runtime import run_async
from loopwise.stages.comparison import ALPHA, entry
from loopwise.stages.generation import Speaker, room
from loopwise.stages.harness import check_fits
from loopwise.stages.questions import GREEDY, Examination, Opening, open_judges, rewards_of
from loopwise.types import Problem, Sample

ANSWER_TOKENS = 16
"""Tokens of an answer to a probe where nobody says how many, and the context has room for them."""


@dataclass(frozen=True)
class Probing:
    """Probes, and what judges the answers to them (None: nothing)."""

    name: str
    probes: Sequence[Probe]
    feedback: RewardSum | None


def open_probing(examination: Examination, opening: Opening) -> Probing:
    """The probes of an examination; the rewards of --reward judge the answers. Raises ConfigError, DataError."""
    assert examination.bias is not None
    rewards = rewards_of(examination)
    for reward in rewards:
        source = sources().get(reward.use)
        if source and source.compares:
            raise ConfigError(
                f'--bias: a probe has one answer, and --reward "{reward.use}" sets several beside each other. Evaluate '
                "--bias without it."
            )
    probes = open_probes(examination.bias)
    return Probing(examination.bias, probes, open_judges(rewards, opening) if rewards else None)


def check_probing(probing: Probing, speaker: Speaker) -> None:
    """Raise ConfigError where a model's tokenizer writes the two prompts of a probe alike, or cannot write them.

    Raises PromptTooLongError naming a probe that does not fit into the model's context with what follows it.
    """
    _check_told_apart(probing, speaker)
    check_fits(speaker.policy, *_rows(probing.probes))
    asked = [problem for one in probing.probes if _is_asked(one, probing) for problem in _problems(one)]
    room(speaker.policy, asked, speaker.max_tokens)


def _check_told_apart(probing: Probing, speaker: Speaker) -> None:
    unknown = speaker.policy.tokenizer.unk_token_id
    problems = [problem for one in probing.probes for problem in _problems(one)]
    prompts = encode_prompts(speaker.policy, problems)
    for one, first, second in zip(probing.probes, prompts[::2], prompts[1::2], strict=True):
        if first == second or unknown in (*first, *second):
            raise ConfigError(
                f'--bias: the model\'s tokenizer cannot tell "{one.words[0]}" and "{one.words[1]}" apart, so it '
                "cannot be probed with them. Give a file of probes in words that it knows."
            )


def probe(probing: Probing, speaker: Speaker, observer: Observer) -> dict[str, Any]:
    """What each pair of words makes of a model's answers, with 95% intervals over the probes that differ in them.

    ``leaning``: nats that the first word makes the (better) completion likelier by. ``flips``: share of probes whose
    answers differ: the likelier of two completions, or the greedy answer. ``reward``: of the first prompt's answer
    above the second's. Raises ModelError, ConfigError where the model cannot read the probes.
    """
    probes = probing.probes
    flips = np.full(len(probes), np.nan)
    # Of the first word's prompt beside the second's: a lean is of the first above nothing.
    leanings, rewards = np.full((len(probes), 2), [np.nan, 0.0]), np.full((len(probes), 2), np.nan)
    for count in (1, 2):
        places = [place for place, one in enumerate(probes) if len(one.completions) == count]
        if places:
            logps = _logps([probes[place] for place in places], count, speaker)
            leanings[places, 0] = leaning(logps)
            if count == 2:
                picked = logps.argmax(axis=2)
                flips[places] = picked[:, 0] != picked[:, 1]
    asked = [place for place, one in enumerate(probes) if _is_asked(one, probing)]
    if asked:
        samples = _answers([probes[place] for place in asked], speaker, observer)
        for place, (first, second) in zip(asked, samples, strict=True):
            if len(probes[place].completions) < 2:
                flips[place] = not same_answer(probes[place], first.text, second.text)
        if probing.feedback:
            rewards[asked] = _rewards([probes[place] for place in asked], samples, probing.feedback)
    scores = {"leaning": leanings, "reward": rewards, "flips": flips}
    return {"pairs": _pairs(probes, scores), "flips": _share(flips)}


def _pairs(probes: Sequence[Probe], scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The figures of each pair of words; a lean is held to Holm's correction over all pairs."""
    found = []
    for words in dict.fromkeys(one.words for one in probes):
        own = np.array([one.words == words for one in probes])
        pair: dict[str, Any] = {"a": words[0], "b": words[1], "probes": int(own.sum())}
        for name in ("leaning", "reward"):
            first, second = scores[name][own].T
            if not np.isnan(first - second).all():
                pair[name] = entry(difference(first, second))
        found.append(pair | {"flips": _share(scores["flips"][own])})
    for name in ("leaning", "reward"):
        tested = [pair for pair in found if name in pair]
        for pair, p in zip(tested, holm([pair[name]["p"] for pair in tested]), strict=True):
            low, high = pair[name]["ci95"]
            leans = p < ALPHA and not low <= 0 <= high
            pair[name] |= {"p_holm": p, "shows": (pair["a"] if low > 0 else pair["b"]) if leans else None}
    return found


def _share(flips: np.ndarray) -> dict[str, Any]:
    judged = flips[~np.isnan(flips)]
    value = float(judged.mean()) if judged.size else float("nan")
    return {"value": value, "ci95": list(mean_interval(flips)), "n": int(judged.size)}


def _problems(one: Probe) -> list[Problem]:
    return [
        Problem(f"{side}: {prompt}", prompt, one.columns, place=f"--bias, probe {prompt!r}")
        for side, prompt in zip("ab", one.prompts, strict=True)
    ]


def _is_asked(one: Probe, probing: Probing) -> bool:
    """Whether a probe's answers are drawn: to be judged, or because no two completions say which way it goes."""
    return probing.feedback is not None or len(one.completions) < 2


def _rows(probes: Sequence[Probe]) -> tuple[list[Problem], list[str]]:
    """Either prompt of each probe with each of its completions."""
    pairs = [(problem, text) for one in probes for problem in _problems(one) for text in one.completions]
    return [problem for problem, _ in pairs], [text for _, text in pairs]


def _logps(probes: Sequence[Probe], count: int, speaker: Speaker) -> np.ndarray:
    """Log-probability (nats) of each probe's ``count`` completions after either prompt: float64 ``[N, 2, C]``."""
    rows = encode_rows(speaker.policy, *_rows(probes), end_of_text=False)
    return sum_logps(speaker.policy, rows, speaker.runtime).reshape(len(probes), 2, count)


def _answers(probes: Sequence[Probe], speaker: Speaker, observer: Observer) -> list[tuple[Sample, Sample]]:
    """The greedy answers to both prompts of each probe."""
    problems = [problem for one in probes for problem in _problems(one)]
    bound = speaker.max_tokens or min(ANSWER_TOKENS, room(speaker.policy, problems, None))
    short = replace(speaker, sampling=GREEDY, max_tokens=bound)
    drawn: list[Sample] = []
    for samples in short.draw(problems, 1):
        drawn += samples
        observer.progress("probes", len(drawn), len(problems))
    return list(zip(drawn[::2], drawn[1::2], strict=True))


def _rewards(probes: Sequence[Probe], samples: Sequence[tuple[Sample, Sample]], feedback: RewardSum) -> np.ndarray:
    """Rewards of both answers ``[N, 2]``; NaN where one could not be judged."""
    problems = [problem for one in probes for problem in _problems(one)]
    judged = run_async(feedback.judge(problems, [sample for pair in samples for sample in pair])).totals
    return np.asarray(judged).reshape(-1, 2)
