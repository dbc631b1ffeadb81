"""What a recipe of the loop promises and asks for, held against its other keys, its judges and its rows."""

from __future__ import annotations

from loopwise.config.methods import RFTConfig, rows_config
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError
from loopwise.evaluate.rewards import RewardSum
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_fitting
from loopwise.tasks.base import Streams
from loopwise.update.rows import encode_labelled


def check_promises(recipe: ImproveRecipe) -> None:
    """Raise ConfigError where a promise or a control does not go with other keys."""
    told = [name for name in ("truth", "pass_at_k") if getattr(recipe.monitors, name).roll_back is not None]
    if recipe.label_free and recipe.report_rewards and told:
        raise ConfigError(
            f'key "monitors.{told[0]}.roll_back": report_rewards know the truth, which decides nothing in a label_free '
            "run. Leave it out; warn may stay."
        )
    if recipe.label_free and recipe.gate.metric == "likelihood":
        raise ConfigError('key "gate.metric": likelihood reads references, which a label_free run may not. Use reward.')
    if recipe.label_free and "gold" in recipe.controls:
        raise ConfigError('key "controls": gold trains on references, which a label_free run may not. Leave it out.')
    if recipe.label_free and recipe.update.uses_gold:
        key, mend = "method", "Take a method that learns from rewards alone, such as dpo."
        if isinstance(recipe.update, RFTConfig):
            key, mend = "keep", "Leave it out."
        raise ConfigError(f'key "update.{key}": it trains on references, which a label_free run may not. {mend}')
    if recipe.label_free and recipe.data.labelled:
        raise ConfigError(
            'key "data.labelled": a label_free run learns from no labelled rows. Leave it out, and give the model what '
            "labels there are with `loopwise tune` before."
        )
    if "labelled" in recipe.controls and not recipe.data.labelled:
        raise ConfigError('key "controls": labelled needs labelled rows. Name them with data.labelled.')


def check_refinement(recipe: ImproveRecipe, feedback: RewardSum) -> None:
    """Raise ConfigError where revised held-out answers could not be measured, or nothing reads a key of ``refine``."""
    refine = recipe.refine
    if refine is None:
        return
    mend = "Set refine.held_out: false, or leave refine out."
    if refine.held_out and recipe.gate.metric == "likelihood":
        raise ConfigError(f'key "refine": gate.metric: likelihood draws no held-out answers to revise. {mend}')
    if refine.held_out and feedback.compares:
        raise ConfigError(
            f'key "refine": {feedback.name} sets the samples of a problem beside each other, and held-out answers are '
            f"revised one by one. {mend}"
        )
    if not refine.held_out and refine.changed("revisions"):
        raise ConfigError(
            'key "refine.revisions": is of held-out answers, and does nothing with held_out: false; ilf draws '
            "update.revisions of each draft. Leave it out."
        )


def check_rows(recipe: ImproveRecipe, streams: Streams, base: Policy) -> None:
    """Raise PromptTooLongError or DataError for rows that the run would only stumble over later: a prompt too long, no
    completion to learn."""
    train = streams.draw(1, streams.train_count) if streams.train_count else ()
    if base.weights is not None:
        for name, problems in {**streams.held_out, "train": train}.items():
            encode_fitting(base, problems, recipe.sampling.max_tokens, name)
    if recipe.update.uses_gold or "gold" in recipe.controls:
        encode_labelled(base, train, list(map(streams.completion, train)), rows_config(recipe.update), "train")
