"""Samples and feedback as values of table cells, and back, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loopwise.feedback import joined_metrics
from loopwise.runs.rows import Place
from loopwise.types import Feedback, Preference, Problem, Prompt, Sample, Segment


class Judged(NamedTuple):
    """A sample's journaled judgement: ``feedback`` is the number of the Act of judging it came from."""

    sample_id: str
    feedback: int
    rewards: Mapping[str, float | None]
    notes: Mapping[str, Any]


class Act(NamedTuple):
    """What one ``add_feedback`` said about all of its samples."""

    parts: tuple[str, ...]
    weights: tuple[float, ...]
    metrics: Mapping[str, float]


def pack_sample(place: Place, sample: Sample) -> dict[str, Any]:
    """The cells of a sample. Raises ValueError where a log-probability is no float32: it would not come back equal."""
    return {
        "run_id": place.run_id,
        "round": place.round,
        "step": place.step,
        "phase": place.phase,
        "id": sample.id,
        "problem_id": sample.problem_id,
        "group": sample.group,
        "index": sample.index,
        "policy_id": sample.policy_id,
        "parent": sample.parent,
        "finish_reason": sample.finish_reason,
        "text": sample.text,
        "prompt_ids": np.array(sample.prompt_ids, dtype="<i4").tobytes(),
        "token_ids": np.array(sample.token_ids, dtype="<i4").tobytes(),
        "loss_mask": np.array(sample.loss_mask, dtype="i1").tobytes(),
        "logps": None if sample.logps is None else _pack_logps(sample),
        "segments": [[segment.kind, segment.start, segment.stop] for segment in sample.segments],
        "stats": sample.stats,
    }


def _pack_logps(sample: Sample) -> bytes:
    given = np.array(sample.logps, dtype=np.float64)
    with np.errstate(over="ignore"):
        packed = given.astype("<f4")
    if not np.array_equal(packed.astype(np.float64), given, equal_nan=True):
        raise ValueError(
            f"sample {sample.id}: its log-probabilities are not float32 values, so a resumed run would read others. "
            "Have the generator round them with numpy.float32."
        )
    return packed.tobytes()


def unpack_sample(row: Any) -> Sample:
    """The sample in ``row``, a row of SQLAlchemy's with at least the cells of the samples table."""
    return Sample(
        id=row.id,
        problem_id=row.problem_id,
        group=row.group,
        index=row._mapping["index"],  # as an attribute it would be the method that tuples have
        policy_id=row.policy_id,
        text=row.text,
        finish_reason=row.finish_reason,
        prompt_ids=tuple(np.frombuffer(row.prompt_ids, dtype="<i4").tolist()),
        token_ids=tuple(np.frombuffer(row.token_ids, dtype="<i4").tolist()),
        loss_mask=tuple(np.frombuffer(row.loss_mask, dtype="i1").tolist()),
        logps=None if row.logps is None else tuple(np.frombuffer(row.logps, dtype="<f4").tolist()),
        parent=row.parent,
        segments=tuple(Segment(*segment) for segment in row.segments),
        stats=row.stats,
    )


def pack_problem(run_id: str, problem: Problem) -> dict[str, Any]:
    """The cells of a problem."""
    return {"run_id": run_id, "id": problem.id, "prompt": problem.prompt, "columns": problem.columns}


def unpack_prompt(prompt: Any) -> Prompt:
    """The prompt behind its JSON."""
    return prompt if isinstance(prompt, str) else tuple(prompt)


def pack_feedback(run_id: str, samples: Sequence[Sample], feedback: Feedback) -> list[dict[str, Any]]:
    """The cells of each sample's judgement. Raises ValueError where ``feedback`` does not fit ``samples``."""
    _check_feedback(samples, feedback)
    lists = {"critique": feedback.critiques, "edit": feedback.edits, "extra": feedback.extra or None}
    given = {name: values for name, values in lists.items() if values is not None}
    totals = feedback.totals.tolist()
    rows = zip(feedback.rewards.tolist(), feedback.mask.tolist(), strict=True)
    return [
        {
            "run_id": run_id,
            "sample_id": sample.id,
            "rewards": {
                part: reward if judged else None
                for part, reward, judged in zip(feedback.parts, rewards, mask, strict=True)
            },
            "total": total,
            "notes": {name: values[position] for name, values in given.items()},
        }
        for position, (sample, (rewards, mask), total) in enumerate(zip(samples, rows, totals, strict=True))
    ]


def _check_feedback(samples: Sequence[Sample], feedback: Feedback) -> None:
    shape = (len(samples), len(feedback.parts))
    if feedback.rewards.shape != shape or feedback.mask.shape != shape or len(feedback.weights) != shape[1]:
        raise ValueError(
            f"feedback on {shape[0]} samples in {shape[1]} parts has rewards {feedback.rewards.shape}, "
            f"mask {feedback.mask.shape} and {len(feedback.weights)} weights"
        )
    if len(set(feedback.parts)) != len(feedback.parts):
        raise ValueError(f"two reward parts of one name: {', '.join(feedback.parts)}")
    if np.isnan(feedback.rewards[feedback.mask]).any():
        raise ValueError("a judged reward is NaN; what could not be judged is masked")
    for name, values in (("critiques", feedback.critiques), ("edits", feedback.edits), ("extra", feedback.extra)):
        if values and len(values) != len(samples):
            raise ValueError(f"feedback on {len(samples)} samples has {len(values)} {name}")


def merge_feedback(
    samples: Sequence[Sample],
    judged: Mapping[str, Judged],
    acts: Mapping[int, Act],
    preferences: Iterable[tuple[str, str, float]],
) -> Feedback:
    """The feedback on ``samples``, all of them ``judged``, in their order.

    Where they were judged in several acts, metrics are joined as those of several lots of samples are.
    Raises ValueError where the acts differ in parts or weights.
    """
    rows = [judged[sample.id] for sample in samples]
    used = {number: acts[number] for number in dict.fromkeys(row.feedback for row in rows)}
    kinds = {(act.parts, act.weights) for act in used.values()}
    if len(kinds) > 1:
        raise ValueError(f"samples of one rollout were judged by different rewards: {sorted(kinds)}")
    parts, weights = kinds.pop() if kinds else ((), ())
    rewards = np.array([[row.rewards[part] for part in parts] for row in rows], dtype=np.float64)
    mask = np.array([[row.rewards[part] is not None for part in parts] for row in rows], dtype=bool)
    positions = {sample.id: position for position, sample in enumerate(samples)}
    return Feedback(
        parts=parts,
        weights=weights,
        rewards=rewards.reshape(len(samples), len(parts)),
        mask=mask.reshape(len(samples), len(parts)),
        preferences=tuple(
            Preference(positions[chosen], positions[rejected], weight)
            for chosen, rejected, weight in preferences
            if chosen in positions and rejected in positions
        ),
        critiques=_notes(rows, "critique"),
        edits=_notes(rows, "edit"),
        extra=tuple(row.notes.get("extra", {}) for row in rows) if any("extra" in row.notes for row in rows) else (),
        metrics=_metrics(rows, used),
    )


def _notes(rows: Sequence[Judged], name: str) -> tuple[str | None, ...] | None:
    return tuple(row.notes.get(name) for row in rows) if any(name in row.notes for row in rows) else None


def _metrics(rows: Sequence[Judged], acts: Mapping[int, Act]) -> Mapping[str, float]:
    counts = Counter(row.feedback for row in rows)
    return joined_metrics((counts[number], act.metrics) for number, act in acts.items())
