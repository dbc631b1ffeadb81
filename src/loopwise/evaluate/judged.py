"""How well a judge judges rows whose judgement is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from loopwise.evaluate.calibration import (
    calibration_report,
    expected_calibration_error,
    label_report,
    log_loss,
    log_softmax,
    reliability,
    two_classes,
)
from loopwise.models.judges import judge_of, judge_texts
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime


class Row(Protocol):
    """A text, or the chosen and the rejected one, as token ids, with the judgement."""

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def label(self) -> int: ...


class JudgedRows:
    """Held-out rows of one kind (labels, preference, unpaired) by split, judged once by each policy.

    Whatever the kind, the logits are of classes: ``[N, C]``. Of pairs and of right and wrong there are two, and the
    second is that the chosen one is better, or that the text is right.
    """

    def __init__(self, kind: str, labels: Sequence[str], splits: Mapping[str, Sequence[Row]], runtime: Runtime) -> None:
        self.kind = kind
        self.names = tuple(labels) or (("rejected", "chosen") if kind == "preference" else ("wrong", "right"))
        self.splits = splits
        self.runtime = runtime
        self._judged: dict[tuple[str, str], np.ndarray] = {}
        self._centres: dict[str, float] = {}

    def truth(self, split: str) -> np.ndarray:
        """The class of each row: int64 ``[N]``; of a pair always the second."""
        return np.array([1 if self.kind == "preference" else row.label for row in self.splits[split]], dtype=np.int64)

    def logits(self, policy: Policy, split: str) -> np.ndarray:
        """The judge's logits of a split: float64 ``[N, C]``."""
        key = (policy.id, split)
        if key not in self._judged:
            rows = self.splits[split]
            scores = judge_texts(judge_of(policy), [text for row in rows for text in row.texts], self.runtime)
            if self.kind == "preference":
                self._centres[policy.id] = float(scores.mean())
                scores = scores[0::2] - scores[1::2]
            self._judged[key] = scores if self.kind == "labels" else two_classes(scores)
        return self._judged[key]

    def centre(self, policy: Policy, split: str) -> float:
        """The mean score of a split's pairs, which their differences say nothing about; of other kinds 0."""
        self.logits(policy, split)
        return self._centres.get(policy.id, 0.0)

    def score(self, policy: Policy, split: str, metric: str) -> np.ndarray:
        """What the gate compares, float64 ``[N]``: 1 where the judgement is right (``reward``), or its log-probability
        (``likelihood``). Equal scores of a pair are no right judgement."""
        logits, truth = self.logits(policy, split), self.truth(split)
        if metric == "reward":
            return np.asarray(logits.argmax(axis=1) == truth, dtype=np.float64)
        return np.asarray(log_softmax(logits)[np.arange(len(truth)), truth])

    def figures(self, policy_id: str, split: str) -> dict[str, float]:
        """What a round's summary shows of a policy that was judged before: accuracy, log-loss, calibration error."""
        logits = self._judged.get((policy_id, split))
        if logits is None:
            return {}
        truth = self.truth(split)
        told = label_report(logits, truth, self.names)
        found = {"judged_right": told["accuracy"]}
        if self.kind == "labels":
            found["macro_f1"] = told["macro_f1"]
        calibration = expected_calibration_error(reliability(logits, truth))
        return found | {"log_loss": log_loss(logits, truth), "ece": calibration}

    def report(self, policy: Policy, split: str, temperature: float) -> dict[str, Any]:
        """All there is to say of a policy on a split: what it gets right, and its calibration."""
        logits, truth = self.logits(policy, split), self.truth(split)
        told = label_report(logits, truth, self.names)
        if self.kind == "preference":  # the chosen one is the second by definition: there are no classes to compare
            told = {name: told[name] for name in ("accuracy", "ci95", "n")}
        return {**told, "calibration": calibration_report(logits, truth, temperature)}
