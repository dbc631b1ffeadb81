"""Warnings that a person can act on, from the figures of a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loopwise.config import ImproveRecipe, Recipe
from loopwise.methods import OnlineConfig, PairsConfig

MOST_TIED = 0.5
MOST_CUT = 0.5
MOST_CLIPPED = 0.3
FAR_FROM_REFERENCE = 0.5
"""Nats a token from the reference that are worth a word."""


def advise(recipe: Recipe, summary: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a committed round, and what to do about it."""
    if not isinstance(recipe, ImproveRecipe) or not summary.get("samples"):
        return
    groups = int(summary.get("problems", 0))
    learns = isinstance(recipe.update, OnlineConfig | PairsConfig) and recipe.update.method not in ("spin", "distill")
    tied = summary.get("frac_reward_zero_std", 0.0)
    if learns and recipe.samples > 1 and tied > MOST_TIED:
        rate = summary.get("pass_at_1")
        mend = "raise sampling.temperature or pick harder problems"
        if rate is not None and rate < 0.5:
            mend = "raise samples or sampling.temperature, or pick easier problems"
        yield f"{round(tied * groups)} of {groups} groups tie, and nothing is learned from them: {mend}."
    cut = summary.get("completions/clipped_ratio", 0.0)
    if cut > MOST_CUT:
        yield f"{cut:.0%} of the samples were cut at sampling.max_tokens ({recipe.sampling.max_tokens}): raise it."
    clipped = summary.get("update/clip_ratio/region_mean", 0.0)
    if clipped > MOST_CLIPPED:
        yield f"the ratio of {clipped:.0%} of the tokens was clipped: lower update.passes or update.optimizer.lr."
    kl = summary.get("update/kl", 0.0)
    if kl > FAR_FROM_REFERENCE:
        yield f"{kl:.2g} nats a token from the reference: raise update.kl.weight or lower update.optimizer.lr."
    if summary.get("update/rewards/chosen", 0.0) < 0:
        yield (
            "chosen completions grew less likely than under the reference, as rejected ones did: "
            "raise update.sft_weight or update.beta."
        )
