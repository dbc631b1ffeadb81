"""Judges trained by ``loopwise judge`` as rewards: the probability of a label, or a reward model's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loopwise.errors import ConfigError, LoopwiseError, nearest
from loopwise.evaluate.options import require, require_one_of
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.sources import Source, Surroundings
from loopwise.types import Problem, Sample

if TYPE_CHECKING:
    from loopwise.models.policy import Policy
    from loopwise.runtime import Runtime

Scale = Literal["sigmoid", "raw"]


class TrainedJudge:
    """A judge in a policy. ``label`` is the one asked for, or ``column`` the column of a row that names it.

    A text longer than the judge reads, and a row that names no label, are masked.
    """

    def __init__(
        self, policy: Policy, runtime: Runtime, *, label: str | None = None, column: str | None = None, scale: Scale
    ) -> None:
        from loopwise.models.encoders import most_tokens
        from loopwise.models.judges import judge_of

        self._policy: Policy | None = policy
        self._runtime = runtime
        self._config: Any = judge_of(policy).config
        self._labels: Mapping[str, int] = {name: place for place, name in enumerate(self._config.labels or ())}
        self._most = most_tokens(policy)
        self._label, self._column, self._scale = label, column, scale

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Judge ``samples`` [S] of ``problems`` [S]; texts of like length are read together."""
        from loopwise.models.judges import encode_readings, judge_of, judge_texts, reading_of

        judged = Judged.nothing(len(samples))
        if self._policy is None or not samples:
            return judged
        reads = self._config.reads
        rows = encode_readings(
            self._policy, [reading_of(reads, p.prompt, s.text) for p, s in zip(problems, samples, strict=True)]
        )
        wanted: dict[int, int | None] = {}
        for position, (problem, row) in enumerate(zip(problems, rows, strict=True)):
            try:
                wanted[position] = self._wanted(problem)
            except ValueError as error:
                judged.errors[position] = str(error)
                continue
            if self._most is not None and len(row) > self._most:
                del wanted[position]
                judged.errors[position] = f"{len(row)} tokens are more than the {self._most} that the judge reads"
        logits = judge_texts(judge_of(self._policy), [rows[position] for position in wanted], self._runtime)
        for (position, label), told in zip(wanted.items(), logits, strict=True):
            judged.rewards[position] = self._reward(told, label)
            if label is not None:
                judged.extra[position]["label"] = self._config.labels[int(told.argmax())]
        return judged

    def close(self) -> None:
        """Let go of the model."""
        self._policy = None

    def _wanted(self, problem: Problem) -> int | None:
        """The place of the label asked for; None of a judge without labels. Raises ValueError where there is none."""
        if not self._labels:
            return None
        name = self._label if self._column is None else problem.columns.get(self._column)
        if name is None:
            raise ValueError(
                f'the row has no column "{self._column}" to name a label (one of data.reference_columns reaches '
                f"{WITH_REFERENCE} alone)"
            )
        if str(name) not in self._labels:
            raise ValueError(f'the judge knows no label "{name}". {nearest(str(name), self._labels)}')
        return self._labels[str(name)]

    def _reward(self, told: np.ndarray, label: int | None) -> float:
        if label is None:
            score = float(told)
            return score if self._scale == "raw" else _sigmoid((score - self._config.centre) / self._config.temperature)
        scaled = told / self._config.temperature
        return float(np.exp(scaled[label] - scaled.max()) / np.exp(scaled - scaled.max()).sum())


def trained_judge(
    surroundings: Surroundings,
    *,
    path: str,
    label: str | None = None,
    column: str | None = None,
    scale: Scale = "sigmoid",
) -> TrainedJudge:
    """A judge in the folder ``path``, as ``loopwise judge`` left it.

    Of a classifier the reward is the calibrated probability of ``label``, or of the label that the row's ``column``
    names. Of a reward model it is ``sigmoid((score - centre) / temperature)``, or the ``raw`` score. Raises ConfigError
    where options and judge do not fit, ModelError where the folder holds no judge.
    """
    return _build("trained_judge", surroundings, path, label, column, scale)


def trained_judge_gold(surroundings: Surroundings, *, path: str, column: str) -> TrainedJudge:
    """The same, where ``column`` is a reference: the probability of the label that is the truth of the row."""
    return _build(WITH_REFERENCE, surroundings, path, None, column, "sigmoid")


def _build(
    name: str, surroundings: Surroundings, path: str, label: str | None, column: str | None, scale: Scale
) -> TrainedJudge:
    from loopwise.models.folders import load_policy
    from loopwise.models.judges import judge_of

    given = {option: value for option, value in (("label", label), ("column", column)) if value is not None}
    require(f'source "{name}"', str, path=path, **given)
    require_one_of(f'source "{name}"', "scale", scale, ("sigmoid", "raw"))
    folder = Path(path)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    if not folder.is_dir():
        raise ConfigError(f'source "{name}": option "path": no such folder {folder}. Name what `loopwise judge` made.')
    runtime = surroundings.local_runtime()
    try:
        policy = load_policy(folder, runtime, judges=True)
        labels = judge_of(policy, str(folder)).config.labels or []
    except LoopwiseError as error:
        raise ConfigError(f'source "{name}": option "path": {error}') from error
    _check_asked(name, labels, label, column, scale)
    return TrainedJudge(policy, runtime, label=label, column=column, scale=scale)


def _check_asked(name: str, labels: Sequence[str], label: str | None, column: str | None, scale: Scale) -> None:
    """Raise ConfigError where the options ask for what the judge does not say."""
    if not labels:
        for option, value in {"label": label, "column": column}.items():
            if value is not None:
                raise ConfigError(f'source "{name}": option "{option}": a reward model has no labels. Leave it out.')
        return
    if scale != "sigmoid":
        raise ConfigError(f'source "{name}": option "scale" is for reward models; this is a classifier. Leave it out.')
    if (label is None) == (column is None):
        raise ConfigError(
            f'source "{name}": a classifier needs the label to ask for: option "label" for all rows, or "column" for '
            "the column that names each row's. Give one of the two."
        )
    if label is not None and label not in labels:
        raise ConfigError(f'source "{name}": option "label": it knows no label "{label}". {nearest(label, labels)}')


def _sigmoid(value: float) -> float:
    return float(1.0 / (1.0 + np.exp(-value))) if value >= 0 else float(np.exp(value) / (1.0 + np.exp(value)))


WITH_REFERENCE = "trained_judge_gold"
SOURCES: tuple[Source, ...] = (
    Source("trained_judge", trained_judge),
    Source(WITH_REFERENCE, trained_judge_gold, uses_reference=True),
)
