"""Figures of a classification, by scikit-learn: accuracy, macro-F1, confusion, quadratic weighted kappa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNREAD = ""
"""Stands for an answer that names none of the labels."""


def classification(
    pairs: Sequence[tuple[str | None, str]], labels: Sequence[str], *, ordinal: bool = False
) -> dict[str, Any] | None:
    """Figures of S pairs (answer, truth), both of ``labels``, which are ranked if ``ordinal``; None of no pairs.

    An answer None named no label. ``accuracy`` and ``macro_f1`` count it as wrong; macro-F1 is the mean over the labels
    that are some truth. ``confusion`` has a row for each true label and a column for each answered one (``labels``, in
    order), then one for none. ``kappa`` (Cohen 1968, quadratic weights) is of the answers that named a label, and left
    out where it has no meaning (all in one cell).
    """
    if not pairs:
        return None
    from sklearn.metrics import confusion_matrix, f1_score

    answers = [UNREAD if answer is None else answer for answer, _ in pairs]
    truths = [truth for _, truth in pairs]
    figures: dict[str, Any] = {
        "accuracy": sum(answer == truth for answer, truth in pairs) / len(pairs),
        "macro_f1": float(f1_score(truths, answers, labels=sorted(set(truths)), average="macro", zero_division=0)),
        "unread": answers.count(UNREAD) / len(answers),
        "labels": list(labels),
        "confusion": confusion_matrix(truths, answers, labels=[*labels, UNREAD])[:-1].tolist(),
    }
    kappa = _kappa([(answer, truth) for answer, truth in pairs if answer is not None], labels) if ordinal else None
    return figures if kappa is None else figures | {"kappa": kappa}


def closeness(answer: str, truth: str, scale: Sequence[str]) -> float:
    """1 - the squared distance of two labels on a ``scale`` of ranks, over the square of the largest distance: the
    agreement that quadratic weighted kappa adds up."""
    largest = max(1, len(scale) - 1)
    return 1.0 - ((scale.index(answer) - scale.index(truth)) / largest) ** 2


def _kappa(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    # One label throughout leaves nothing to agree on beyond chance: 0 / 0.
    if len({label for pair in pairs for label in pair}) < 2:
        return None
    answers, truths = zip(*pairs, strict=True)
    return float(cohen_kappa_score(answers, truths, labels=list(labels), weights="quadratic"))
