"""``loopwise evaluate``: a model measured on tasks, rows and text, with intervals."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loopwise.blocks import RuntimeConfig, SourceConfig
from loopwise.data.sources import TEXT_FILES, read_source
from loopwise.errors import ConfigError
from loopwise.evaluate.groups import group_metrics
from loopwise.evaluate.likelihood import mean_logps
from loopwise.evaluate.perplexity import text_perplexity
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.stats import mean_interval, pass_at_k
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_rows
from loopwise.observer import Observer
from loopwise.rollout import Roller
from loopwise.runs.disk import with_room
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime, versions
from loopwise.stages.generation import Speaker, open_model
from loopwise.stages.questions import SPLIT, Examination, Questions, doubts, open_questions
from loopwise.starting import TRIAL_PROBLEMS, try_rewards
from loopwise.types import REWARD_ROUNDING, Completion, Sampling, Scored
from loopwise.workspace import JOURNAL

PASSES = 1.0
"""A sample passes with a total reward of at least this."""
RUN_ID = "evaluate"
Figures = dict[str, dict[str, Any]]


def evaluate_model(model: str, examination: Examination, observer: Observer | None = None) -> dict[str, Any]:
    """Measure a model folder, a run's model or one from the hub: the figures of each task, row file and text.

    A figure has ``value``, its 95% interval ``ci95`` (of a text: none) and ``n``, the problems it is a mean over.
    Raises LoopwiseError for anything a person can mend, before anything is measured.
    """
    began, observer = time.monotonic(), observer or Observer()
    examination.check()
    with ExitStack() as stack:
        asked = list(open_questions(examination, stack))
        texts = _texts(examination)
        judged = [questions for questions in asked if questions.feedback]
        for doubt in doubts(Path(model), examination):
            observer.note("warning", doubt)
        policy, runtime = open_model(model, examination.seed, sampled=bool(judged))
        speaker = Speaker(policy, runtime, examination.sampling, examination.max_tokens)
        samplings = {
            questions.name: _tried(questions, questions.feedback, speaker) for questions in judged if questions.feedback
        }
        results = [
            _asked(questions, samplings.get(questions.name), examination, speaker, observer) for questions in asked
        ]
        results += [_read(name, documents, policy, runtime) for name, documents in texts.items()]
    return {
        "model": model,
        "policy_id": policy.id,
        "seed": examination.seed,
        "samples": examination.samples,
        "sampling": {**asdict(examination.sampling), "max_tokens": examination.max_tokens},
        "seconds": round(time.monotonic() - began, 2),
        "results": results,
    }


def _texts(examination: Examination) -> dict[str, list[str]]:
    """The documents of each text. Raises ConfigError where a column is named, and none of them has columns."""
    columns = {"text_column": examination.text_columns} if examination.text_columns else {}
    found = {name: read_source(SourceConfig.model_validate({"path": name, **columns})) for name in examination.texts}
    files = [file for text in found.values() for file in text.files]
    if columns and all(file.lower().endswith(TEXT_FILES) for file in files):
        raise ConfigError("--text-column is for row files, and --text names none. Leave it out.")
    return {name: [document.text for document in text.documents] for name, text in found.items()}


def _tried(questions: Questions, feedback: RewardSum, speaker: Speaker) -> Sampling:
    """The sampling that fits these problems, once their rewards have judged three real samples."""
    sampling = speaker.fitted(questions.problems)
    block = questions.recipe.sampling.model_copy(update={"max_tokens": sampling.max_tokens})
    recipe = questions.recipe.model_copy(update={"sampling": block})
    some = questions.problems[:TRIAL_PROBLEMS]
    try_rewards(recipe, speaker.policy, LocalGenerator(speaker.runtime), some, feedback)
    return sampling


def _asked(
    questions: Questions, sampling: Sampling | None, examination: Examination, speaker: Speaker, observer: Observer
) -> dict[str, Any]:
    result: dict[str, Any] = {"name": questions.name, "kind": questions.kind, "problems": len(questions.problems)}
    figures: Figures = {}
    if questions.feedback and sampling:
        scored = _answers(questions, questions.feedback, sampling, examination, speaker, observer)
        figures |= _marks(scored, examination.samples)
        result["completions"] = _told(scored)
        for name, count in scored.feedback.metrics.items():
            if name.startswith("failed/") and count:
                part = name.removeprefix("failed/")
                observer.note(
                    "warning", f"reward {part} failed on {count:.0f} of {len(scored.samples)} samples (left out)"
                )
    if questions.completions:
        figures["likelihood"] = _figure(_likelihoods(questions, questions.completions, speaker))
    return {**result, "figures": figures}


def _answers(
    questions: Questions,
    feedback: RewardSum,
    sampling: Sampling,
    examination: Examination,
    speaker: Speaker,
    observer: Observer,
) -> Scored:
    """Sample and judge as a run does on its test split, in a journal that is thrown away."""
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
        return roller.at(0, SPLIT, sampling)(speaker.policy, questions.problems, examination.samples)


def _marks(scored: Scored, samples: int) -> Figures:
    """Accuracy, or pass@1, pass@2, pass@4 ... pass@k of several samples (Chen et al. 2021, eq. 1); and the reward."""
    totals = scored.feedback.totals
    judged = [totals[members][~np.isnan(totals[members])] for _, members in scored.groups()]
    counts = [(values.size, int((values >= PASSES - REWARD_ROUNDING).sum())) for values in judged]
    figures = {}
    for k in _powers(samples):
        shares = [pass_at_k(n, passed, k) if n >= k else np.nan for n, passed in counts]
        figures["accuracy" if samples == 1 else f"pass@{k}"] = _figure(shares)
    figures["reward"] = _figure([values.mean() if values.size else np.nan for values in judged])
    return figures


def _powers(most: int) -> Iterator[int]:
    """1, 2, 4, 8 and so on below ``most``, then ``most`` itself."""
    k = 1
    while k < most:
        yield k
        k *= 2
    yield most


def _told(scored: Scored) -> dict[str, float]:
    """What the completions were like: length in tokens, share cut off, share of different ones."""
    found = group_metrics(scored, PASSES)
    names = {"mean_length": "completions/mean_length", "clipped_ratio": "completions/clipped_ratio"}
    return {name: found[key] for name, key in {**names, "distinct": "distinct"}.items() if key in found}


def _likelihoods(questions: Questions, completions: Sequence[Completion], speaker: Speaker) -> np.ndarray:
    """Mean log-probability a token (nats) of the right answers ``[P]``; NaN for those over the context."""
    policy, weights = speaker.policy, speaker.policy.weights
    limit = weights.context_length if weights else None
    rows = encode_rows(policy, questions.problems, completions)
    fit = [place for place, row in enumerate(rows) if limit is None or row.total_tokens <= limit]
    scores = np.full(len(completions), np.nan)
    if fit:
        problems, answers = [questions.problems[place] for place in fit], [completions[place] for place in fit]
        scores[fit] = mean_logps(policy, problems, answers, speaker.runtime)
    return scores


def _figure(scores: Sequence[float] | np.ndarray) -> dict[str, Any]:
    values = np.asarray(scores, dtype=np.float64)
    judged = values[~np.isnan(values)]
    mean = float(judged.mean()) if judged.size else float("nan")
    return {"value": mean, "ci95": list(mean_interval(values)), "n": int(judged.size)}


def _read(name: str, documents: Sequence[str], policy: Policy, runtime: Runtime) -> dict[str, Any]:
    found = text_perplexity(policy, documents, runtime)
    measured = {
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "nats_per_token": found.nats_per_token,
    }
    size = {"documents": found.documents, "tokens": found.tokens, "bytes": found.bytes}
    figures = {key: {"value": value, "ci95": None, "n": found.tokens} for key, value in measured.items()}
    return {"name": name, "kind": "text", **size, "figures": figures}
