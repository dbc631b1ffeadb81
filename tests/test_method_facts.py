"""What each method says of itself, which a run, its dry run and the checks of a recipe all go by."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from loopwise.config.methods import ImproveUpdate, PretrainConfig, SFTConfig, optimizer_of

FACTS = ("trains", "compares_samples", "reads_words", "imitates_rows", "uses_gold")
TRUE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "dr_grpo": ({}, {"trains", "compares_samples"}),
    "grpo": ({}, {"trains", "compares_samples"}),
    "dapo": ({}, {"trains", "compares_samples"}),
    "rloo": ({}, {"trains", "compares_samples"}),
    "dr_grpo against the step's mean": ({"advantage": {"baseline": "batch"}}, {"trains"}),
    "reinforce": ({}, {"trains"}),
    "ppo": ({}, {"trains"}),
    "distill": ({"teacher": "m"}, {"trains"}),
    "rft": ({}, {"trains", "imitates_rows"}),
    "rft on gold": ({"keep": "gold"}, {"trains", "imitates_rows", "uses_gold"}),
    "dpo": ({}, {"trains", "compares_samples"}),
    "ipo": ({}, {"trains", "compares_samples"}),
    "slic": ({}, {"trains", "compares_samples"}),
    "margin": ({}, {"trains", "compares_samples"}),
    "rrhf": ({}, {"trains", "compares_samples"}),
    "spin": ({}, {"trains", "uses_gold"}),
    "ilf": ({}, {"trains", "reads_words", "imitates_rows"}),
    "hindsight": ({}, {"trains", "compares_samples"}),
    "reflexion": ({}, {"reads_words"}),
    "reflexion without critiques": ({"template": "{prompt}{draft}"}, set()),
    "reflexion in a critic's words": ({"writes": "critic"}, {"reads_words"}),
}


def block(case: str, **keys: Any) -> Any:
    """The ``update`` block of the method that a case begins with."""
    return TypeAdapter(ImproveUpdate).validate_python({"method": case.split()[0], **keys})


@pytest.mark.parametrize("case", TRUE)
def test_facts(case: str) -> None:
    keys, true = TRUE[case]
    config = block(case, **keys)
    assert {name for name in FACTS if getattr(config, name)} == true
    assert (optimizer_of(config) is not None) == config.trains


def test_every_method_is_told_of() -> None:
    (union, *_) = get_args(ImproveUpdate)
    known = {get_args(one)[0].model_fields["method"].default for one in get_args(union)}
    assert known == {case.split()[0] for case in TRUE}


def test_facts_are_no_keys() -> None:
    assert PretrainConfig().trains
    assert not {*FACTS, "most_samples", "steps_of"} & SFTConfig().model_dump().keys()


@pytest.mark.parametrize(
    ("method", "keys", "most", "steps"),
    [
        ("dr_grpo", {"problems_per_step": 4}, 30, 3),
        ("dpo", {"steps": 7}, 30, 7),
        ("rft", {"steps": 7}, 30, 7),
        ("rft", {"keep": "all"}, 30, 100),
        ("rft", {"keep": "gold"}, 0, 100),
        ("rft", {"keep": "none"}, 0, 100),
        ("ilf", {"revisions": 2, "steps": 7}, 30 + 60, 7),
        ("reflexion", {"trials": 2}, 2 * (30 + 10), 2),
        ("reflexion", {"trials": 2, "writes": "critic"}, 2 * 30, 2),
    ],
)
def test_a_round_of_ten_problems_with_three_samples_each(
    method: str, keys: dict[str, Any], most: int, steps: int
) -> None:
    config = block(method, **keys)
    assert config.most_samples(10, 3) == most
    assert config.steps_of(10) == steps
