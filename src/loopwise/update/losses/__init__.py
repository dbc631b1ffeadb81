"""Pure losses over log-probabilities, one room a subject.

Shape letters: S samples, T tokens, P pairs, N positions, V vocabulary. Each loss is returned per token, per pair or
per position, so that whoever knows the whole batch weighs them and the losses of micro-batches add up to the batch's.
Values at positions a mask leaves out must be finite (0 is fine); they are weighed with 0, not removed.
"""

from loopwise.update.losses.distillation import generalised_jsd
from loopwise.update.losses.judging import bradley_terry_loss, hinge_loss, label_loss, logistic_loss
from loopwise.update.losses.likelihood import likelihood_loss
from loopwise.update.losses.pairs import dpo_loss, ipo_loss, margin_loss, rrhf_loss, slic_loss
from loopwise.update.losses.policy import Average, Estimator, PolicyLoss, clipped_policy_loss, kl_estimate, row_weights
from loopwise.update.losses.values import gae, value_loss

__all__ = [
    "Average",
    "Estimator",
    "PolicyLoss",
    "bradley_terry_loss",
    "clipped_policy_loss",
    "dpo_loss",
    "gae",
    "generalised_jsd",
    "hinge_loss",
    "ipo_loss",
    "kl_estimate",
    "label_loss",
    "likelihood_loss",
    "logistic_loss",
    "margin_loss",
    "row_weights",
    "rrhf_loss",
    "slic_loss",
    "value_loss",
]
