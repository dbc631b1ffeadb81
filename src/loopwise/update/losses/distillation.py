"""Learning a teacher's distribution of every token."""

from __future__ import annotations

import math

import torch


def generalised_jsd(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float, temperature: float
) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence of teacher and student at each position, in nats: ``[N, V]`` to ``[N]``.

    ``beta * KL(teacher || M) + (1 - beta) * KL(student || M)`` with ``M = beta * teacher + (1 - beta) * student`` (GKD,
    Agarwal et al. 2024, eq. 1). That is 0 at both ends, so these stand for its limits, as in the paper and TRL:
    ``beta`` 0 is forward KL, ``KL(teacher || student)``; ``beta`` 1 is reverse KL, ``KL(student || teacher)``.

    Both distributions are ``softmax(logits / temperature)``, taken in fp32 at least; no factor ``temperature^2``.
    Positions are independent, so that callers may go through them in chunks. Gradient flows to whatever asks for it:
    compute the teacher's logits without.
    """
    student, teacher = _log_softmax(student_logits, temperature), _log_softmax(teacher_logits, temperature)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (exact / temperature).log_softmax(-1)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
