"""What teaches a judge: labels of texts, and which of two texts is better. B texts, C labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a classifier: logits ``[B, C]`` and labels int ``[B]`` to ``-log p(label)`` ``[B]``, in nats.

    Also of a masked language model (Devlin et al. 2019, section 3.1), whose labels are tokens.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def logistic_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``-log sigmoid(s)`` of completions that are right (label 1), ``-log sigmoid(-s)`` of wrong ones; all ``[B]``."""
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none")


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """``-log sigmoid(r_chosen - r_rejected - m)`` of each pair; all ``[P]``.

    Without margins the likelihood of Bradley and Terry 1952, as reward models use it (Ouyang et al. 2022, eq. 1); with
    them Llama 2's (Touvron et al. 2023, eq. 2). Left out: their share for the number of pairs of a prompt.
    """
    return -F.logsigmoid(chosen - rejected - margins)


def hinge_loss(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """``max(0, m - (r_chosen - r_rejected))`` of each pair; all ``[P]``. Beyond its margin it is done."""
    return F.relu(margins - chosen + rejected)
