"""Warnings that a person can act on, from the figures of a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loopwise.config.methods import PairsConfig, PolicyGradientConfig, PPOConfig, SPINConfig
from loopwise.config.recipes import ImproveRecipe, RunRecipe, TuneRecipe

MOST_TIED = 0.5
MOST_CUT = 0.5
MOST_CLIPPED = 0.3
FAR_FROM_REFERENCE = 0.5
"""Nats a token from the reference that are worth a word."""


def advise(recipe: RunRecipe, summary: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a committed round, and what to do about it."""
    if isinstance(recipe, ImproveRecipe) and summary.get("samples"):
        yield from _on_samples(recipe, summary)
    clipped = summary.get("update/clip_ratio/region_mean", 0.0)
    if clipped > MOST_CLIPPED:
        yield f"the ratio of {clipped:.0%} of the tokens was clipped: lower update.passes or update.optimizer.lr."
    kl = summary.get("update/kl", 0.0)
    if kl > FAR_FROM_REFERENCE:
        yield f"{kl:.2g} nats a token from the reference: raise update.kl.weight or lower update.optimizer.lr."
    # Of a judge this is a score, and its zero means nothing.
    if isinstance(recipe, ImproveRecipe | TuneRecipe) and summary.get("update/rewards/chosen", 0.0) < 0:
        yield (
            "chosen completions grew less likely than under the reference, as rejected ones did: "
            "raise update.sft_weight or update.beta."
        )


def _on_samples(recipe: ImproveRecipe, summary: Mapping[str, Any]) -> Iterator[str]:
    groups = int(summary.get("problems", 0))
    tied = summary.get("frac_reward_zero_std", 0.0)
    if recipe.samples > 1 and tied > MOST_TIED and _ties_teach_nothing(recipe.update):
        rate = summary.get("pass_at_1")
        mend = "raise sampling.temperature or pick harder problems"
        if rate is not None and rate < 0.5:
            mend = "raise samples or sampling.temperature, or pick easier problems"
        yield f"{round(tied * groups)} of {groups} groups tie, and nothing is learned from them: {mend}."
    cut = summary.get("completions/clipped_ratio", 0.0)
    if cut > MOST_CUT:
        yield f"{cut:.0%} of the samples were cut at sampling.max_tokens ({recipe.sampling.max_tokens}): raise it."


def _ties_teach_nothing(update: Any) -> bool:
    """Whether an update learns nothing from samples of one problem that score alike."""
    if not isinstance(update, PolicyGradientConfig):
        return isinstance(update, PairsConfig) and not isinstance(update, SPINConfig)
    if update.advantage.drop_tied:
        return True
    by_group = not isinstance(update, PPOConfig) and update.advantage.baseline in ("group", "leave_one_out")
    return by_group and not update.kl.weight and not update.entropy_bonus
