"""The interfaces are general: the unchanged loop, journal, gate and resume drive updates it has never heard of.

Four of them, each a few lines: two steps of policy gradient, a weight mutation, a prompt mutation, and the prompt
mutation with a remote model that gives nothing but text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stopping import CutShortError, StopAfter

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import IncompatibleError
from loopwise.models.folders import load_policy
from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.observer import Observer
from loopwise.results import Result
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime, seed_key
from loopwise.stages.improve import improve
from loopwise.types import Context, Problem, PromptState, Request, Rollout, Sample, Sampling, Scored, Updated
from loopwise.update.learner import Learner

ROUNDS = 3


def letters(completions: Sequence[str], **_: Any) -> list[float]:
    """Share of letters among ten characters: something a few gradient steps move."""
    return [sum(character.isalpha() for character in completion) / 10 for completion in completions]


def carries(completions: Sequence[str], **_: Any) -> list[float]:
    return [float("carried" in completion) for completion in completions]


@dataclass(frozen=True)
class PolicyGradient:
    """Two steps of REINFORCE with the group's mean as baseline; ``sign`` -1 descends the reward instead."""

    sign: float = 1.0
    ratios: list[float] = field(default_factory=list)
    needs = frozenset({"weights", "logprobs", "token_ids"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        for step in (0, 1):
            scored = rollout(policy, problems, 4, step=step)
            module = policy.trainable_module()
            learner = Learner(module, OptimizerConfig(lr=2e-2), context.runtime, total_steps=2, state=state)
            metrics = learner.step([scored], self.loss)
            context.record(step + 1, metrics)
            policy, state = policy.with_module(module), learner.state()
        return Updated(policy, state, {"loss": metrics["loss"]})

    def loss(self, module: torch.nn.Module, scored: Scored) -> torch.Tensor:
        rows = [TokenRow(sample.prompt_ids, sample.token_ids, sample.loss_mask) for sample in scored.samples]
        logps, mask = token_logps(module, rows)
        drawn = torch.zeros_like(logps)
        for place, sample in enumerate(scored.samples):
            drawn[place, : len(sample.logps)] = torch.tensor(sample.logps)
        ratio = (logps - drawn).exp()
        self.ratios.append(float((ratio - 1).abs().max().detach()))
        advantages = np.zeros(len(rows))
        for _, members in scored.groups():
            totals = scored.feedback.totals[members]
            advantages[members] = totals - totals.mean()
        return -self.sign * (ratio * torch.tensor(advantages)[:, None] * mask).sum() / mask.sum()


@dataclass(frozen=True)
class WeightMutation:
    """Add noise to the weights and keep the mutant where its samples earn more."""

    needs = frozenset({"weights", "text"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        noise = torch.Generator().manual_seed(seed_key("mutation", context.seed, context.round) % 2**63)
        module = policy.trainable_module()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=noise)
        mutant = policy.with_module(module)
        parent, child = (
            rollout(member, problems, 4, step=step).feedback.totals.mean()
            for step, member in enumerate((policy, mutant))
        )
        wins = (state or {"wins": 0})["wins"] + int(child > parent)
        return Updated(mutant if child > parent else policy, {"wins": wins}, {"parent": parent, "child": child})


@dataclass(frozen=True)
class PromptMutation:
    """Try another system prompt each round and keep it where its samples earn more. Weights are left alone."""

    needs = frozenset({"text"})
    prompts = ("Add.", "Add and carry.", "Add, carry and pad.")

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        prompt = self.prompts[(context.round - 1) % len(self.prompts)]
        mutant = replace(policy, prompt_state=PromptState(system=prompt))
        parent, child = (
            rollout(member, problems, 2, step=step).feedback.totals.mean()
            for step, member in enumerate((policy, mutant))
        )
        tried = [*(state or {"tried": []})["tried"], prompt]
        return Updated(mutant if child > parent else policy, {"tried": tried}, {"parent": parent, "child": child})


@dataclass
class Remote:
    """A model elsewhere: text alone, no token ids, no log-probabilities. It carries only where it is told to."""

    asked: list[str] = field(default_factory=list)
    offers = frozenset({"text"})

    async def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        async def answer(request: Request) -> Sample:
            await asyncio.sleep(request.key % 3 / 1000)
            self.asked.append(request.sample_id)
            text = "carried" if "carry" in policy.prompt_state.system and request.key % 5 else "forgot"
            place = {"group": request.group, "index": request.index, "policy_id": policy.id}
            return Sample(request.sample_id, request.problem.id, text=text, finish_reason="stop", **place)

        return list(await asyncio.gather(*map(answer, requests)))


@pytest.fixture
def recipe(tmp_path: Path) -> ImproveRecipe:
    lines = [json.dumps({"prompt": f"{first}+{second}="}) for first in range(7) for second in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    content = {
        "model": {"create": "demo"},
        "data": {"train": str(tmp_path / "train.jsonl"), "dev": 16, "test": 8},
        "rewards": ["regex"],
        "rounds": ROUNDS,
        "problems": 6,
        "samples": 4,
        "sampling": {"max_tokens": 10},
        "runtime": {"device": "cpu", "threads": 1},
    }
    return parse_recipe(ImproveRecipe, content)


Run = Callable[..., Result]


@pytest.fixture
def run(recipe: ImproveRecipe, tmp_path: Path) -> Run:
    def improve_into(name: str, **parts: Any) -> Result:
        return improve(recipe, tmp_path / name, **{"rewards": [letters], **parts})

    return improve_into


def history(out: Path) -> dict[str, Any]:
    """What the journal says, times left out."""
    with Journal.open(out / "journal.db", read_only=True) as journal:
        return {
            "samples": [(row.place, row.sample, row.total) for row in journal.all_samples("improve")],
            "decisions": [row.decision for row in journal.decisions("improve")],
            "steps": journal.steps("improve"),
            "status": journal.run("improve").status,
            "tokens": [row.budget.tokens_generated for row in journal.rounds("improve")],
        }


def drawn(out: Path, step: int, round: int = 1) -> list[Sample]:
    return [s for place, s, _ in history(out)["samples"] if place[1:] == (round, step, "train")]


def test_two_steps_of_policy_gradient(run: Run, policy: Policy, runtime: Runtime) -> None:
    update = PolicyGradient()
    result = run("out", update=update, policy=policy)
    stages = result.summary["stages"]
    assert stages["improved"]["test"]["accuracy"] > stages["base"]["test"]["accuracy"] + 0.1
    assert [entry["accepted"] for entry in result.summary["rounds"]] == [True] * ROUNDS
    # The second step draws from the policy that the first one made, so both are on policy: ratios of one.
    assert max(update.ratios) < 1e-4
    first, second = drawn(result.out, 0), drawn(result.out, 1)
    assert len(first) == len(second) == 6 * 4
    assert {sample.policy_id for sample in first} == {policy.id}
    assert len({sample.policy_id for sample in first + second}) == 2
    assert [row.step for row in history(result.out)["steps"]] == [1, 2] * ROUNDS
    assert load_policy(result.model, runtime).id == result.policy.id


def test_a_gradient_that_makes_it_worse_is_rolled_back(run: Run, policy: Policy) -> None:
    result = run("out", update=PolicyGradient(sign=-1.0), policy=policy)
    rounds = result.summary["rounds"]
    assert [entry["accepted"] for entry in rounds] == [False] * ROUNDS
    assert result.policy.id == policy.id
    assert result.summary["stages"]["improved"] == result.summary["stages"]["base"]
    # Every round starts from the base again, with fresh moments, but the rounds and the budget go on.
    for number in range(1, ROUNDS + 1):
        assert {sample.policy_id for sample in drawn(result.out, 0, number)} == {policy.id}
    assert all(entry["dev_accuracy"] < entry["dev_before"] for entry in rounds)
    told = history(result.out)
    assert all(decision.upper < 0 for decision in told["decisions"])
    assert told["tokens"] == sorted(set(told["tokens"]))


def test_a_mutation_of_weights(run: Run, policy: Policy) -> None:
    result = run("out", update=WeightMutation(), policy=policy)
    for number, entry in enumerate(result.summary["rounds"], start=1):
        parents, children = drawn(result.out, 0, number), drawn(result.out, 1, number)
        assert {sample.policy_id for sample in parents} != {sample.policy_id for sample in children}
        assert len(parents) == len(children) == 6 * 4
        assert entry["samples"] == 2 * 6 * 4
        totals = [
            t for place, _, t in history(result.out)["samples"] if (place.round, place.phase) == (number, "train")
        ]
        assert len(totals) == 2 * 6 * 4
        assert entry["reward"] == pytest.approx(sum(totals) / len(totals)), "of all rollouts, not of the last"
    assert result.policy.id != policy.id, "with this seed some mutant is better"


def broken_weights(policy: Policy, state: Any, problems: Any, rollout: Rollout, context: Context) -> Updated:
    """Weights that are no numbers any more, and steps that told of it."""
    module = policy.trainable_module()
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    return Updated(policy.with_module(module), None, {"skipped": 2.0, "steps": 2.0})


broken_weights.needs = frozenset({"weights"})


class Notes(Observer):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def note(self, level: str, message: str) -> None:
        self.told.append((level, message))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("data", [{}, {"dev": 0, "test": 0}], ids=["gated", "without held-out rows"])
def test_broken_weights_are_never_the_result(recipe: ImproveRecipe, policy: Policy, tmp_path: Path, data: Any) -> None:
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})
    notes = Notes()
    # Nobody scores anything, so that no score can give the broken policy away.
    zero = [lambda completions, **_: [0.0] * len(completions)]
    parts: Any = {"update": broken_weights, "policy": policy, "rewards": zero, "observer": notes}
    result = improve(recipe, tmp_path / "out", **parts)
    assert result.policy.id == policy.id
    rounds = result.summary["rounds"]
    assert [(entry["accepted"], entry["dev_accuracy"]) for entry in rounds] == [(False, None)] * ROUNDS
    reasons = {decision.reason for decision in history(result.out)["decisions"]}
    assert reasons == {"rolled back, could not be judged: its weights hold numbers that are not finite"}
    assert [entry["update/skipped"] for entry in rounds] == [2.0] * ROUNDS
    skips = [message for level, message in notes.told if level == "warning" and "skipped" in message]
    assert [message.split(",")[0] for message in skips] == [
        f"round {number}: 2 optimizer steps were skipped" for number in range(1, ROUNDS + 1)
    ]
    assert all("all there were, so nothing was learned" in message for message in skips)


def test_a_mutation_of_prompts_leaves_the_weights_alone(run: Run, policy: Policy, runtime: Runtime) -> None:
    result = run("out", update=PromptMutation(), policy=policy, rewards=[letters])
    assert result.policy.weights.id == policy.weights.id
    assert load_policy(result.model, runtime).prompt_state == result.policy.prompt_state
    lengths = {len(sample.prompt_ids) for sample in drawn(result.out, 1)}
    assert min(lengths) > max(len(sample.prompt_ids) for sample in drawn(result.out, 0)), (
        "the mutant's prompt is longer"
    )


def test_a_remote_model_that_gives_text_alone(run: Run, runtime: Runtime) -> None:
    remote = Remote()
    result = run("out", update=PromptMutation(), generator=remote, policy=Policy(), rewards=[carries])
    assert result.policy.prompt_state.system == "Add and carry."
    assert result.policy.weights is None
    assert result.summary["stages"]["base"]["test"]["accuracy"] == 0
    assert result.summary["stages"]["improved"]["test"]["accuracy"] > 0.5
    assert json.loads((result.model / "prompt_state.json").read_text())["system"] == "Add and carry."
    assert load_policy(result.model, runtime).id == result.policy.id
    asked = [name for name in remote.asked if not name.startswith("trial/")]
    assert len(asked) == len(set(asked)) == len(history(result.out)["samples"])


def parts_of(kind: str, policy: Policy) -> dict[str, Any]:
    return {
        "gradient": {"update": PolicyGradient(), "policy": policy},
        "rollback": {"update": PolicyGradient(sign=-1.0), "policy": policy},
        "weights": {"update": WeightMutation(), "policy": policy},
        "prompt": {"update": PromptMutation(), "policy": policy},
        "remote": {"update": PromptMutation(), "policy": Policy(), "generator": Remote(), "rewards": [carries]},
    }[kind]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("kind", ["gradient", "rollback", "weights", "prompt", "remote"])
def test_a_stopped_run_ends_the_same(run: Run, policy: Policy, kind: str) -> None:
    whole = run("whole", **parts_of(kind, policy))
    parts = parts_of(kind, policy)
    for number in (1, 2):
        with pytest.raises(CutShortError):
            run("stopped", **parts, observer=StopAfter(number), resume=number > 1)
    result = run("stopped", **parts, resume=True)
    assert result.policy.id == whole.policy.id
    assert history(result.out) == history(whole.out)
    assert history(result.out)["status"] == "finished"
    if kind == "remote":
        asked = [name for name in parts["generator"].asked if not name.startswith("trial/")]
        assert len(asked) == len(set(asked)), "nothing was paid for twice"


@pytest.mark.parametrize(
    ("update", "missing"), [(PolicyGradient(), "logprobs, token_ids, weights"), (WeightMutation(), "weights")]
)
def test_an_update_that_needs_more_than_text_is_refused(run: Run, tmp_path: Path, update: Any, missing: str) -> None:
    remote = Remote()
    with pytest.raises(IncompatibleError, match=f"update {type(update).__name__} needs {missing}, but"):
        run("out", update=update, generator=remote, policy=Policy(), rewards=[carries])
    assert remote.asked == []
    assert not (tmp_path / "out").exists()
