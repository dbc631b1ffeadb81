"""From the ``update`` block of an improve recipe to the update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loopwise.config.blocks import RefineConfig
from loopwise.config.methods import (
    DistillConfig,
    HindsightConfig,
    ILFConfig,
    OnlineConfig,
    PairsConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReflexionConfig,
    RFTConfig,
    SPINConfig,
    reference_of,
)
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError, IncompatibleError
from loopwise.models.lora import require_adapters
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_fitting, encode_texts
from loopwise.runtime import Runtime
from loopwise.stages.words import check_words
from loopwise.starting import sampling_of
from loopwise.tasks.base import Streams
from loopwise.types import Update
from loopwise.update.distill import Distill, load_teacher
from loopwise.update.hindsight import Hindsight, asked
from loopwise.update.ilf import ILF
from loopwise.update.pairs import Pairs
from loopwise.update.policy_gradient import PolicyGradient
from loopwise.update.ppo import PPO
from loopwise.update.reflexion import Reflexion
from loopwise.update.rft import RFT
from loopwise.update.rows import Encoding, encode_labelled


@dataclass(frozen=True)
class Built:
    """An update, what became of the labelled rows it learns from, and what else a resumed run must find unchanged."""

    update: Update
    encodings: dict[str, Encoding] = field(default_factory=dict)
    fingerprint: dict[str, str] = field(default_factory=dict)


def build_update(recipe: ImproveRecipe, streams: Streams, base: Policy, runtime: Runtime) -> Built:
    """The update that a recipe names. Raises ConfigError where its keys do not go together."""
    config = recipe.update
    _check(recipe, base)
    if isinstance(config, PPOConfig):
        return Built(PPO(config, recipe.samples, recipe.rounds, sampling_of(recipe)))
    if isinstance(config, PolicyGradientConfig):
        return Built(PolicyGradient(config, recipe.samples, recipe.rounds, sampling_of(recipe)))
    if isinstance(config, DistillConfig):
        teacher = load_teacher(config, base, runtime)
        update = Distill(config, recipe.samples, recipe.rounds, sampling_of(recipe), teacher)
        return Built(update, fingerprint={"teacher": teacher.id})
    if isinstance(config, PairsConfig):
        return Built(Pairs(config, recipe.samples, recipe.rounds, gold=streams.completion))
    if isinstance(config, ReflexionConfig):
        held_out = tuple(problem for problems in streams.held_out.values() for problem in problems)
        return Built(Reflexion(config, recipe.samples, recipe.sampling.max_tokens, held_out))
    return _imitation(recipe, config, streams, base)


def _imitation(
    recipe: ImproveRecipe, config: RFTConfig | ILFConfig | HindsightConfig, streams: Streams, base: Policy
) -> Built:
    """An update whose batches have a share of labelled rows."""
    if isinstance(config, HindsightConfig):
        _check_control_words(recipe, config, streams, base)
        base = asked(base, config)
    completions = list(map(streams.completion, streams.labelled))
    labelled, encoding = encode_labelled(base, streams.labelled, completions, config)
    encodings = {"labelled": encoding} if streams.labelled else {}
    if isinstance(config, HindsightConfig):
        return Built(Hindsight(config, labelled, recipe.samples, recipe.rounds), encodings)
    if isinstance(config, ILFConfig):
        refine = recipe.refine or RefineConfig()
        ilf = ILF(config, refine, labelled, recipe.samples, recipe.rounds, recipe.sampling.max_tokens)
        return Built(ilf, encodings)
    if config.keep == "none" and not labelled:
        raise ConfigError('key "update.keep": none trains on labelled rows alone, and there are none (data.labelled).')
    return Built(RFT(config, labelled, recipe.samples, recipe.rounds, base, streams.completion), encodings)


def check_reference(config: Any, base: Policy) -> None:
    """Raise ConfigError where an update is to compare with the weights below adapters, and ``base`` has none."""
    if reference_of(config) == "adapters_off":
        key = "update.kl.reference" if isinstance(config, PolicyGradientConfig) else "update.reference"
        require_adapters(base.weights.module if base.weights else None, key)


def _check(recipe: ImproveRecipe, base: Policy) -> None:
    config, sampling = recipe.update, recipe.sampling
    if base.weights is None and config.trains:
        raise IncompatibleError(
            f'key "update.method": {config.method} needs weights, and the model has none here. Take a local model, or '
            "method: reflexion, which learns from text alone."
        )
    if sampling.temperature == 0 and (config.compares_samples or isinstance(config, OnlineConfig)):
        raise ConfigError(
            f'key "sampling.temperature": {config.method} learns from drawn samples, and at 0 those of a problem '
            "are all the same. Raise it."
        )
    truncated = "top_p" if sampling.top_p < 1 else "top_k" if sampling.top_k else None
    if isinstance(config, PolicyGradientConfig) and truncated:
        raise ConfigError(
            f'key "sampling.{truncated}": {config.method} weighs samples by their probability, which truncation '
            "changes. Leave it out."
        )
    if config.compares_samples and recipe.samples < 2:
        raise ConfigError(
            f'key "samples": {config.method} compares the samples of one problem, and {recipe.samples} leaves nothing '
            "to compare. Draw 2 or more."
        )
    if isinstance(config, OnlineConfig) and config.minibatches > recipe.problems:
        raise ConfigError(
            f'key "update.minibatches": they are made of whole problems, and {recipe.problems} a round (problems) make '
            f"no {config.minibatches}. Lower it, or raise problems."
        )
    if not config.trains and recipe.controls:
        raise ConfigError(
            f'key "controls": {recipe.controls[0]} takes the optimizer steps of the update, and {config.method} takes '
            "none. Leave it out."
        )
    check_words(recipe)
    _check_labelled_keys(recipe)
    check_reference(config, base)


def _check_control_words(recipe: ImproveRecipe, config: HindsightConfig, streams: Streams, base: Policy) -> None:
    """Refuse control words that the model cannot tell apart, or that leave no room in its context."""
    good, bad = encode_texts(base, [config.good, config.bad])
    if good == bad:
        raise ConfigError(
            f'key "update.bad": the tokenizer reads {config.bad!r} as it reads {config.good!r}, and the model could '
            "not tell them apart. Take other words."
        )
    train = streams.draw(1, streams.train_count) if streams.train_count else ()
    for name, problems in {**streams.held_out, "train": train}.items():
        place = f"{name}, with update.good after each prompt"
        encode_fitting(asked(base, config), problems, recipe.sampling.max_tokens, place)


def _check_labelled_keys(recipe: ImproveRecipe) -> None:
    """Refuse how labelled rows are read where samples are compared, and no labelled row is read."""
    config = recipe.update
    if not isinstance(config, PairsConfig) or isinstance(config, SPINConfig):
        return
    if "labelled" in recipe.controls or "gold" in recipe.controls:
        return
    held_out = recipe.gate.metric == "likelihood"  # reads held-out rows, whole
    for name in config.changed("max_length", *(() if held_out else ("too_long", "end_of_text"))):
        raise ConfigError(
            f'key "update.{name}": is of labelled rows, and does nothing where {config.method} compares samples. '
            "Leave it out."
        )
