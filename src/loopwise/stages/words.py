"""Whether what a recipe asks to be said in words is read by anybody, and what is to be read is said."""

from __future__ import annotations

from loopwise.config.methods import ILFConfig, ReflexionConfig
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError

FIELDS = ("{prompt}", "{draft}", "{critique}")


def check_words(recipe: ImproveRecipe) -> None:
    """Raise ConfigError where critics, refinement and update do not go together."""
    config = recipe.update
    if recipe.critics and recipe.refine is None and not config.reads_words:
        if isinstance(config, ReflexionConfig):
            raise ConfigError(
                'key "critics": reflexion writes its lessons by a template that leaves out what they say. '
                "Add {critique} to update.template, or leave them out."
            )
        raise ConfigError(
            f'key "critics": {config.method} learns from rewards, and nothing reads what they say. Add `refine: {{}}` '
            "to measure answers revised after them, take update.method: ilf or reflexion, or leave them out."
        )
    if not recipe.critics:
        _check_without_critics(recipe)
    if recipe.refine is not None and not recipe.refine.held_out and not isinstance(config, ILFConfig):
        raise ConfigError(
            f'key "refine": {config.method} learns from drafts, and with held_out: false nothing is revised. '
            "Leave it out, or set held_out: true."
        )
    if isinstance(config, ReflexionConfig):
        _check_reflexion(config)


def _check_without_critics(recipe: ImproveRecipe) -> None:
    mend = 'Name some under "critics:".'
    config = recipe.update
    if isinstance(config, ILFConfig):
        raise ConfigError(f'key "update.method": ilf learns from what critics say, and there are none. {mend}')
    if isinstance(config, ReflexionConfig) and config.writes == "critic":
        raise ConfigError(
            f'key "update.writes": critic takes a critic\'s words for a lesson, and there are none. {mend}'
        )
    if recipe.refine is not None:
        raise ConfigError(f'key "refine": drafts are revised after what critics say, and there are none. {mend}')


def _check_reflexion(config: ReflexionConfig) -> None:
    if config.writes == "critic" and config.changed("template"):
        raise ConfigError(
            'key "update.template": does nothing with writes: critic, whose words are the lesson. Leave it out.'
        )
    if not any(field in config.template for field in FIELDS):
        raise ConfigError(
            f'key "update.template": has none of {", ".join(FIELDS)}, and the model would know of no miss. Add one.'
        )
