"""Recipes as blocks of keys: what a partly given block has, which keys do nothing, whose recipe it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from loopwise.config import blocks, methods
from loopwise.config.blocks import Block
from loopwise.config.methods import (
    ClipConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    OptimizerConfig,
    PPOConfig,
    PretrainConfig,
    RFTConfig,
    RLOOConfig,
    SPINConfig,
)
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import COMMANDS, ImproveRecipe, PretrainRecipe, TuneRecipe
from loopwise.errors import ConfigError

LOOP = {"model": "m", "data": {"train": "rows.jsonl"}, "rewards": ["number"]}
METHODS = [choice.__metadata__[0].tag for choice in get_args(ImproveRecipe.model_fields["update"].annotation)]


def kinds() -> Iterator[type[Block]]:
    """Every class of block there is."""
    for module in (blocks, methods):
        yield from (one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Block))
    yield from COMMANDS.values()


def inner_blocks() -> Iterator[Any]:
    """Every key that holds one block, with its default."""
    for kind in dict.fromkeys(kinds()):
        for name, field in kind.model_fields.items():
            if isinstance(field.default, Block) and isinstance(field.annotation, type):
                yield pytest.param(kind, name, field.default, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("kind", "name", "default"), list(inner_blocks()))
def test_what_a_block_leaves_out_is_as_its_key_has_it(kind: type[Block], name: str, default: Block) -> None:
    """For each key of the block: given alone, at its default, it changes nothing."""

    def made(value: Any) -> Any:
        try:
            return getattr(kind.model_validate({**needed, name: value}), name)
        except ValidationError as error:
            pytest.fail(str(error))

    needed: dict[str, Any] = {"teacher": "t"} if "teacher" in kind.model_fields else {}
    if "url" in kind.model_fields:
        needed = {"url": "http://localhost/v1", "model": "m"}
    elif "model" in kind.model_fields:
        needed = LOOP if kind is ImproveRecipe else {key: LOOP[key] for key in ("model", "data")}
    assert made({}) == default
    for key in type(default).model_fields:
        assert made({key: getattr(default, key)}) == default
        assert made(json.loads(default.model_dump_json(include={key}))) == default


def test_a_key_changes_itself_alone() -> None:
    update = {"optimizer": {"lr": 1e-3}}
    optimizer = parse_recipe(PretrainRecipe, {"model": "m", "data": {"train": "a.txt"}, "update": update}).update
    assert optimizer.optimizer == PretrainConfig().optimizer.model_copy(update={"lr": 1e-3})
    assert optimizer.optimizer.name == "muon"
    assert DAPOConfig.model_validate({"passes": 2, "clip": {"low": 0.1}}).clip == ClipConfig(low=0.1, high=0.28)
    assert GRPOConfig.model_validate({"advantage": {"drop_tied": True}}).advantage.scale == "group"
    tuned = parse_recipe(TuneRecipe, {**LOOP, "rewards": [], "gate": {"enabled": False}, "sampling": {"max_tokens": 3}})
    assert (tuned.gate.metric, tuned.sampling.temperature) == ("likelihood", 0.0)


def test_blocks_below_a_default_keep_its_keys() -> None:
    class Outer(Block):
        update: PretrainConfig = PretrainConfig(steps=7, optimizer=OptimizerConfig(lr=1.0, warmup_steps=3))

    found = Outer.model_validate({"update": {"optimizer": {"lr": 2.0}}}).update
    assert found == PretrainConfig(steps=7, optimizer=OptimizerConfig(lr=2.0, warmup_steps=3))


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_recipe_reads_as_it_was(method: str) -> None:
    update = {"method": method, **({"teacher": "t"} if method == "distill" else {})}
    if method in ("grpo", "dapo"):
        update |= {"ratio": "sequence", "kl": {"weight": 0.1, "estimator": "k1"}, "advantage": {"scale": "batch"}}
    made = parse_recipe(ImproveRecipe, {**LOOP, "update": update})
    assert parse_recipe(ImproveRecipe, json.loads(made.model_dump_json())) == made


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (GRPOConfig, {"clip": {"high": 0.3}}, '"clip" does nothing'),
        (GRPOConfig, {"kl": {"estimator": "k2"}}, '"estimator" does nothing with weight 0'),
        (GRPOConfig, {"kl": {"reference": "accepted"}}, '"reference" does nothing with weight 0'),
        (GRPOConfig, {"ratio": "sequence", "average": "token"}, '"average" does nothing'),
        (RLOOConfig, {"average": "token"}, '"average" does nothing'),
        (DrGRPOConfig, {"minibatches": 17}, '"minibatches" are made of whole problems, and 16'),
        (SPINConfig, {"pairs": {"take": "all"}}, '"pairs" does nothing'),
        (PPOConfig, {"advantage": {"baseline": "group"}}, "the value head is the baseline"),
        (PPOConfig, {"ratio": "sequence"}, '"ratio" is of tokens'),
        (PPOConfig, {"passes": 1, "value": {"clip": 0.5}}, r'"value\.clip" does nothing'),
        (RFTConfig, {"keep": "none", "pool": "round"}, '"pool" does nothing with keep: none'),
        (RFTConfig, {"keep": "none", "labelled_share": 0.5}, '"labelled_share" does nothing'),
        (RFTConfig, {"keep": "gold", "per_problem": 2}, '"per_problem" does nothing with keep: gold'),
    ],
)
def test_keys_without_effect_are_refused(kind: type[Block], content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(content)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (GRPOConfig, {"ratio": "sequence"}),
        (RLOOConfig, {"ratio": "token", "average": "sequence"}),
        (PPOConfig, {"value": {"clip": 0.5}}),
        (GRPOConfig, {"kl": {"weight": 0.1, "estimator": "k2"}}),
        (RFTConfig, {"keep": "gold", "pool": "round", "threshold": 0.5}),
    ],
)
def test_keys_with_effect_are_taken(kind: type[Block], content: dict[str, Any]) -> None:
    assert kind.model_validate(content)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            ImproveRecipe,
            {"update": {"steps": 3}},
            r'"update\.steps" of method dr_grpo \(the default\); .* rft, dpo, ipo',
        ),
        (ImproveRecipe, {"update": {"teacher": "t"}}, r"it belongs to distill\. Name the method with update\.method"),
        (ImproveRecipe, {"update": {"method": "grpo", "steps": 3}}, r"of method grpo\. Known: "),
        (ImproveRecipe, {"update": {"pases": 3}}, r'of method dr_grpo\. Did you mean "passes"'),
        (ImproveRecipe, {"update": {"method": None}}, r'"update\.method": expected one of dr_grpo, .*, found nothing'),
        (ImproveRecipe, {"update": {"method": ["dpo"]}}, r'"update\.method": expected one of .*, found a list'),
        (ImproveRecipe, {"update": "dpo"}, r"\"update\": expected keys with values, found 'dpo'"),
        (ImproveRecipe, {"update": {"steps": 3}, "data": {"task": "addition"}, "rewards": []}, r"update\.steps"),
        (ImproveRecipe, {"update": {"steps": 3}, "rewards": []}, "this is a recipe of `loopwise tune`"),
        (ImproveRecipe, {"update": {"steps": 3}, "gate": {"metric": "reward"}}, "this is a recipe of `loopwise tune`"),
        (
            TuneRecipe,
            {"update": {"beta": 0.2}, "rewards": []},
            r"of method sft \(the default\); it belongs to dpo, ipo",
        ),
        (TuneRecipe, {"samples": 4}, "this is a recipe of `loopwise improve`"),
    ],
)
def test_whose_key_and_whose_recipe_it_is(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(kind, {**LOOP, **changes})
