"""What a recipe asks to be said in words: refused before anything runs where nobody says it or nobody reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError, IncompatibleError, PromptTooLongError
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.stages.controls import control_recipe
from loopwise.stages.updates import build_update
from loopwise.stages.words import check_words
from loopwise.tasks.streams import open_streams
from loopwise.update.hindsight import Hindsight
from loopwise.update.ilf import ILF
from loopwise.update.reflexion import Reflexion

CRITIC = {"critics": ["mine.py:critique"]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "critics that nothing reads": (CRITIC, r'"critics": dr_grpo learns from rewards, and nothing reads what they say'),
    "critics that a template leaves out": (
        {**CRITIC, "update": {"method": "reflexion", "template": "{draft} Why?"}},
        r'"critics": reflexion writes its lessons by a template .* Add \{critique\} to update.template',
    ),
    "language feedback without critics": ({"update": {"method": "ilf"}}, r'"update.method": ilf learns from what crit'),
    "lessons in the words of nobody": (
        {"update": {"method": "reflexion", "writes": "critic"}},
        r'"update.writes": critic takes a critic\'s words for a lesson, and there are none',
    ),
    "revisions after nobody's words": ({"refine": {}}, r'"refine": drafts are revised after what critics say'),
    "revisions that nothing reads": (
        {**CRITIC, "refine": {"held_out": False}},
        r'"refine": dr_grpo learns from drafts',
    ),
    "a template that nobody fills": (
        {**CRITIC, "update": {"method": "reflexion", "writes": "critic", "template": "{draft}"}},
        r'"update.template": does nothing with writes: critic',
    ),
    "a template without the miss": (
        {"update": {"method": "reflexion", "template": "Think!"}},
        r'"update.template": has none of \{prompt\}, \{draft\}, \{critique\}',
    ),
}
TAKEN: dict[str, dict[str, Any]] = {
    "critics to revise after": {**CRITIC, "refine": {}},
    "language feedback": {**CRITIC, "update": {"method": "ilf"}, "refine": {"held_out": False}},
    "lessons of the model": {"update": {"method": "reflexion"}, "samples": 1},
    "lessons of a critic": {**CRITIC, "update": {"method": "reflexion", "writes": "critic"}},
    "hindsight": {"update": {"method": "hindsight"}},
}


def recipe(**changes: Any) -> ImproveRecipe:
    content = {"model": "m", "data": {"task": "addition", "dev": 4, "test": 4}, "sampling": {"max_tokens": 5}}
    return parse_recipe(ImproveRecipe, {**content, **changes})


@pytest.mark.parametrize("case", REFUSED)
def test_words_that_make_no_sense_are_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        check_words(recipe(**changes))


@pytest.mark.parametrize("case", TAKEN)
def test_words_that_make_sense_are_taken(case: str) -> None:
    check_words(recipe(**TAKEN[case]))


Build = Callable[..., Any]


@pytest.fixture
def build(policy: Policy, runtime: Runtime) -> Build:
    """The update of a recipe with such changes, for a tiny policy."""

    def built(base: Policy = policy, **changes: Any) -> Any:
        own = recipe(**changes)
        return build_update(own, open_streams(own.data, 0, supervised=False), base, runtime)

    return built


LABELLED = {"task": "addition", "labelled": 3, "dev": 4, "test": 4}


def test_the_updates_that_learn_from_words(build: Build) -> None:
    ilf = build(**CRITIC, update={"method": "ilf"}, refine={"template": "{prompt}{draft}{critique}"})
    assert isinstance(ilf.update, ILF)
    assert ilf.update.refine.template == "{prompt}{draft}{critique}"
    hindsight = build(update={"method": "hindsight"}, data=LABELLED)
    assert isinstance(hindsight.update, Hindsight)
    assert hindsight.encodings["labelled"].rows == 3
    plain = build(update={"method": "rft"}, data=LABELLED).update.labelled
    longer = [len(row.prompt_ids) for row in hindsight.update.labelled]
    assert longer == [len(row.prompt_ids) + len(" good: ") for row in plain], "asked as sampling will ask"
    reflexion = build(update={"method": "reflexion"})
    assert isinstance(reflexion.update, Reflexion)
    assert len(reflexion.update.held_out) == 8
    assert isinstance(build(Policy(), update={"method": "reflexion"}).update, Reflexion), "without weights, too"


@pytest.mark.parametrize("changes", [{"samples": 1}, {"sampling": {"temperature": 0}}])
def test_hindsight_compares_samples(build: Build, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf'"{"samples" if "samples" in changes else "sampling.temperature"}"'):
        build(update={"method": "hindsight"}, **changes)


def test_control_words_that_the_model_cannot_tell_apart(build: Build) -> None:
    with pytest.raises(ConfigError, match=r'"update\.bad": the tokenizer reads .* as it reads'):
        build(update={"method": "hindsight", "good": " yes", "bad": " yes"})


def test_control_words_need_room_in_the_context(build: Build, make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(
        PromptTooLongError, match=r"dev, with update\.good after each prompt: 4 of 4 prompts do not fit"
    ):
        build(make_policy(n_positions=16), update={"method": "hindsight"})


@pytest.mark.parametrize("method", ["rft", "dr_grpo", "hindsight", "dpo"])
def test_without_weights_there_are_lessons_alone(build: Build, method: str) -> None:
    with pytest.raises(IncompatibleError, match=rf'"update\.method": {method} needs weights, .* method: reflexion'):
        build(Policy(), update={"method": method}, data=LABELLED)


def test_trials_take_no_optimizer_steps_that_a_control_could_take(build: Build) -> None:
    with pytest.raises(ConfigError, match=r'"controls": unfiltered takes the optimizer steps of the update, and refl'):
        build(update={"method": "reflexion"}, controls=["unfiltered"])


@pytest.mark.parametrize(
    "update", [{"method": "ilf", "labelled_share": 0.5}, {"method": "hindsight", "labelled_share": 0.5}]
)
def test_controls_take_as_many_rows_and_no_words(build: Build, update: dict[str, Any]) -> None:
    words = {**CRITIC, "refine": {}} if update["method"] == "ilf" else {}
    own = recipe(update={**update, "steps": 3, "batch_size": 7}, controls=["labelled"], data=LABELLED, **words)
    control = control_recipe(own, "labelled")
    assert (control.update.keep, control.update.steps, control.update.batch_size) == ("none", 3, 7)
    assert (control.critics, control.refine) == ((), None)
    assert control_recipe(own, "unfiltered").update.labelled_share == 0.5
    check_words(control)
