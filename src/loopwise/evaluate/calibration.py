"""How sure a judge may be: its probabilities held against how often it is right, and the temperature that mends them.

A score of pairs or of right and wrong is a classifier of two classes here: its logits are ``[0, score]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loopwise.evaluate.stats import mean_interval

BINS = 15
_COLDEST, _HOTTEST = 0.01, 100.0
_AT_A_BOUND = 1.01
"""The search ends a little inside its bounds."""


@dataclass(frozen=True)
class Bin:
    """Judgements of like confidence: how many, how sure the judge is of them on average, and how often it is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def two_classes(scores: np.ndarray) -> np.ndarray:
    """Scores ``[N]`` as logits ``[N, 2]`` of "no" and "yes": the probability of yes is ``sigmoid(score)``."""
    return np.stack([np.zeros_like(scores), scores], axis=1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits ``[N, C]``, in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean ``-log p(label)`` in nats: logits ``[N, C]``, labels int ``[N]``."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[Bin, ...]:
    """Judgements by confidence (the probability of the class found), in ``bins`` of equal width; empty ones left out.

    A bin holds ``(low, high]``, as in Guo et al. 2017, section 2.
    """
    probabilities = np.exp(log_softmax(logits))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return tuple(
        Bin(
            place / bins,
            (place + 1) / bins,
            int(inside.sum()),
            float(confidence[inside].mean()),
            float(right[inside].mean()),
        )
        for place in range(bins)
        if (inside := places == place).any()
    )


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """Mean distance of confidence and accuracy in a reliability table, weighted by counts (Guo et al. 2017, eq. 5)."""
    total = sum(one.count for one in table)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in table) / total if total else math.nan


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which ``softmax(logits / T)`` has the least log-loss (Guo et al. 2017, section 4.2).

    logits ``[N, C]``, labels int ``[N]``. From 0.01 to 100, which a judge that is always right, or knows nothing,
    runs into. No judgement changes by it, only how sure the judge is.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(logits / math.exp(log_t), labels),
        bounds=(math.log(_COLDEST), math.log(_HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def bound_of(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Literal["coldest", "hottest"] | None:
    """Towards which bound the log-loss goes on falling, if any; ``temperature`` is what ``fit_temperature`` found.

    Where every judgement is right it falls towards the coldest, but too little for the search to get there.
    """
    if temperature > _HOTTEST / _AT_A_BOUND:
        return "hottest"
    right = bool((logits.argmax(axis=1) == labels).all())
    return "coldest" if right or temperature < _COLDEST * _AT_A_BOUND else None


def calibration_report(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, Any]:
    """Expected calibration error and log-loss without and with the temperature, and both reliability tables."""
    found: dict[str, Any] = {"temperature": temperature, "bins": BINS}
    for name, scaled in (("before", logits), ("after", logits / temperature)):
        table = reliability(scaled, labels)
        found[name] = {
            "ece": expected_calibration_error(table),
            "log_loss": log_loss(scaled, labels),
            "reliability": [vars(one) for one in table],
        }
    return found


def label_report(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95% interval, macro-F1, and precision, recall and F1 of each class that occurs.

    logits ``[N, C]``, labels int ``[N]``. Macro-F1 is the mean over the classes that stand in ``labels``.
    """
    found = logits.argmax(axis=1)
    right = (found == labels).astype(np.float64)
    classes = {}
    for place, name in enumerate(names):
        told, true = found == place, labels == place
        if not (told.any() or true.any()):
            continue
        both = int((told & true).sum())
        classes[name] = {
            "precision": both / int(told.sum()) if told.any() else 0.0,
            "recall": both / int(true.sum()) if true.any() else 0.0,
            "f1": 2 * both / int(told.sum() + true.sum()),
            "n": int(true.sum()),
        }
    scored = [entry["f1"] for entry in classes.values() if entry["n"]]
    return {
        "accuracy": float(right.mean()),
        "ci95": list(mean_interval(right)),
        "n": len(labels),
        "macro_f1": float(np.mean(scored)),
        "classes": classes,
    }
