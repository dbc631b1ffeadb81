"""One model asked and judged: scores of each problem, and the figures they are means of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loopwise.config.blocks import RuntimeConfig
from loopwise.evaluate.groups import group_means, group_metrics
from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.metrics.reports import corpus_reports
from loopwise.evaluate.overlap import text_of
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.stats import mean_interval, pass_at_k
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_rows
from loopwise.observer import Observer
from loopwise.rollout import Roller
from loopwise.runs.disk import with_room
from loopwise.runs.journal import Journal
from loopwise.runtime import versions
from loopwise.stages.generation import Speaker
from loopwise.stages.questions import SPLIT, Examination, Questions
from loopwise.starting import TRIAL_PROBLEMS, try_rewards
from loopwise.types import REWARD_ROUNDING, Completion, Feedback, Problem, Sampling, Scored
from loopwise.workspace import JOURNAL

RUN_ID = "evaluate"
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """What a model did with P problems.

    ``scores`` float64 ``[P]`` by figure, NaN where a problem could not be judged; ``completions`` what the answers were
    like; ``corpus`` figures of all answers together, by reward.
    """

    scores: Mapping[str, np.ndarray]
    completions: Mapping[str, float]
    corpus: Mapping[str, Any]

    def figures(self, kept: np.ndarray | None = None) -> Figures:
        """The mean of each score with its 95% interval, over all problems or those that bool ``kept`` [P] keeps."""
        return {name: _figure(scores if kept is None else scores[kept]) for name, scores in self.scores.items()}


def tried(questions: Questions, feedback: RewardSum, speaker: Speaker) -> Sampling:
    """The sampling that fits these problems, once their rewards have judged three real samples."""
    sampling = speaker.fitted(questions.problems)
    block = questions.recipe.sampling.model_copy(update={"max_tokens": sampling.max_tokens})
    recipe = questions.recipe.model_copy(update={"sampling": block})
    some = questions.problems[:TRIAL_PROBLEMS]
    try_rewards(recipe, speaker.policy, LocalGenerator(speaker.runtime), some, feedback)
    return sampling


def answers(
    questions: Questions, sampling: Sampling | None, examination: Examination, speaker: Speaker, observer: Observer
) -> Answers:
    """Ask a model, where there is a judge (``sampling`` says how), and score the right answers where they are known."""
    scores: dict[str, np.ndarray] = {}
    told: Mapping[str, float] = {}
    corpus: Mapping[str, Any] = {}
    if questions.feedback and sampling:
        scored = ask(questions.problems, questions.feedback, sampling, examination, speaker, observer)
        scores |= marks(scored, examination.samples)
        told = _told(scored)
        corpus = corpus_reports(questions.feedback, scored.problems, scored.samples)
    if questions.completions:
        scores["likelihood"] = _likelihoods(questions, questions.completions, speaker)
    return Answers(scores, told, corpus)


def ask(
    problems: Sequence[Problem],
    feedback: RewardSum,
    sampling: Sampling,
    examination: Examination,
    speaker: Speaker,
    observer: Observer,
) -> Scored:
    """Sample and judge as a run does on its test split, in a journal that is thrown away.

    What a sample is drawn with depends on seed, problem and index alone, so two models share their uniforms.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal.open(Path(folder) / JOURNAL, create=True) as journal,
    ):
        journal.create_run(RUN_ID, RUN_ID, {}, "", {}, versions(), speaker.runtime.threads)

        def store(action: Any) -> None:
            with_room(action, place=Path(folder), wait_seconds=0, on_pause=lambda message: None)

        roller = Roller(
            run_id=RUN_ID,
            seed=examination.seed,
            generator=LocalGenerator(speaker.runtime),
            feedback=feedback,
            journal=journal,
            unit=RuntimeConfig().generate_batch,
            book=lambda number, key, budget: None,
            store=store,
            on_progress=observer.progress,
        )
        scored = roller.at(0, SPLIT, sampling)(speaker.policy, problems, examination.samples)
    for name, count in scored.feedback.metrics.items():
        if name.startswith("failed/") and count:
            part = name.removeprefix("failed/")
            observer.note("warning", f"reward {part} failed on {count:.0f} of {len(scored.samples)} samples (left out)")
    return scored


def powers(most: int) -> Iterator[int]:
    """1, 2, 4, 8 and so on below ``most``, then ``most`` itself."""
    k = 1
    while k < most:
        yield k
        k *= 2
    yield most


def marks(scored: Scored, samples: int) -> dict[str, np.ndarray]:
    """Accuracy, or pass@1, pass@2, pass@4 ... pass@k of several samples (Chen et al. 2021, eq. 1); and the reward.

    A sample passes with the full mark, 1, of every reward that judged it (those that count against it aside). Where a
    reward leaves the scale from -1 to 1 nobody knows its full mark, and there is no share of passes. Of several rewards
    the mean of each is told, too.
    """
    feedback, members = scored.feedback, [places for _, places in scored.groups()]
    rewards = np.where(feedback.mask, feedback.rewards, np.nan)
    found = {}
    if not np.any(np.abs(rewards) > 1 + REWARD_ROUNDING):
        passed = _passed(feedback)
        judged = [passed[places][~np.isnan(passed[places])] for places in members]
        for k in powers(samples):
            shares = [pass_at_k(own.size, int(own.sum()), k) if own.size >= k else np.nan for own in judged]
            found["accuracy" if samples == 1 else f"pass@{k}"] = np.array(shares, dtype=np.float64)
    found["reward"] = group_means(members, feedback.totals)
    if len(feedback.parts) > 1:
        parts = zip(feedback.parts, rewards.T, strict=True)
        found |= {f"reward/{part}": group_means(members, own) for part, own in parts}
    return found


def alike(sides: Sequence[Answers]) -> list[Answers]:
    """The answers of several models with the figures that all of them have."""
    names = [name for name in sides[0].scores if all(name in side.scores for side in sides)]
    return [replace(side, scores={name: side.scores[name] for name in names}) for side in sides]


def _passed(feedback: Feedback) -> np.ndarray:
    """1 for each sample that passes, 0 for others: float64 ``[S]``, NaN where nothing judged one."""
    counts = np.asarray(feedback.weights) > 0
    judged = feedback.mask[:, counts]
    full = feedback.rewards[:, counts] >= 1 - REWARD_ROUNDING
    return np.where(judged.any(axis=1), (full | ~judged).all(axis=1), np.nan)


def _told(scored: Scored) -> dict[str, float]:
    """What the completions were like: length in tokens, share cut off, share of different ones."""
    found = group_metrics(scored)
    names = {"mean_length": "completions/mean_length", "clipped_ratio": "completions/clipped_ratio"}
    return {name: found[key] for name, key in {**names, "distinct": "distinct"}.items() if key in found}


def known_texts(questions: Questions) -> list[str]:
    """What a model reads of some questions: prompts, and right answers where they are known."""
    texts = [text_of(problem.prompt) for problem in questions.problems]
    return texts + [text for text in questions.completions or () if isinstance(text, str)]


def same_tokens(first: Policy, second: Policy) -> bool:
    """Whether two models read text in the same tokens."""
    return bool(first.tokenizer.get_vocab() == second.tokenizer.get_vocab())


def _likelihoods(questions: Questions, completions: Sequence[Completion], speaker: Speaker) -> np.ndarray:
    """Mean log-probability a token (nats) of the right answers ``[P]``; NaN for those over the context."""
    policy, weights = speaker.policy, speaker.policy.weights
    limit = weights.context_length if weights else None
    rows = encode_rows(policy, questions.problems, completions)
    fit = [place for place, row in enumerate(rows) if limit is None or row.total_tokens <= limit]
    scores = np.full(len(completions), np.nan)
    if fit:
        problems, right = [questions.problems[place] for place in fit], [completions[place] for place in fit]
        scores[fit] = mean_logps(policy, problems, right, speaker.runtime)
    return scores


def _figure(scores: np.ndarray) -> dict[str, Any]:
    judged = scores[~np.isnan(scores)]
    mean = float(judged.mean()) if judged.size else float("nan")
    return {"value": mean, "ci95": list(mean_interval(scores)), "n": int(judged.size)}
