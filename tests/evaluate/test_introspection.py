"""Feedback from itself through a tiny model: its own probabilities, by hand and on models rigged to prefer a word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluate.test_itself import ask, grouped
from tests.models.tiny import tiny_lstm

from loopwise.errors import ConfigError, ModelError
from loopwise.evaluate.introspection import asked as module
from loopwise.evaluate.introspection.asked import Asked, expected
from loopwise.evaluate.introspection.duels import Duels
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.generate.local import LocalGenerator
from loopwise.models.policy import Policy, Weights
from loopwise.models.tokens import encode_texts
from loopwise.runtime import Runtime
from loopwise.types import Preference, Problem, PromptState, Request, Sample, Sampling

Make = Callable[..., Policy]
RUBRIC = "{prompt}{completion} mark "
PAIR = {"template": "{prompt} {first} {second}", "letters": ["1", "2"]}


def by_hand(policy: Policy, text: str) -> np.ndarray:
    """The next token's log-probabilities after a text: float64 ``[V]``."""
    [ids] = encode_texts(policy, [text])
    with torch.inference_mode():
        return np.asarray(policy.weights.module(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1))


def token(policy: Policy, word: str) -> int:
    [[found]] = encode_texts(policy, [word])
    return found


def rigged(policy: Policy, word: str, by: float = 3.0) -> Policy:
    """The policy, with a word's logit raised, whatever it reads."""
    rigged = policy.weights.trainable()
    rigged.transformer.ln_f.weight.data.zero_()
    rigged.transformer.ln_f.bias.data.fill_(0.0)
    rigged.transformer.ln_f.bias.data[0] = 1.0
    rigged.lm_head.weight = torch.nn.Parameter(torch.zeros_like(rigged.lm_head.weight))
    rigged.lm_head.weight.data[token(policy, word), 0] = by
    return Policy(Weights.of(rigged), policy.tokenizer)


def source(name: str, policy: Policy, runtime: Runtime, **options: Any) -> Any:
    around = Surroundings(runtime=runtime, writer=LocalGenerator(runtime), seed=1)
    return sources()[name].make(around, options).asking(policy)  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", ["gpt2", "llama", "lstm"])
def test_a_mark_is_its_expected_value_by_hand(make_policy: Make, tokenizer: Any, runtime: Runtime, shape: str) -> None:
    policy = tiny_lstm(tokenizer) if shape == "lstm" else make_policy(shape)
    rows = grouped(["a", "bb", "a bit longer"], ["1", "22"])
    judged = ask(source("judge", policy, runtime, rubric=RUBRIC, scores=["0", "1", "5"]), rows)
    masses = []
    for problem, sample, reward in zip(*rows, judged.rewards, strict=True):
        logps = by_hand(policy, f"{problem.prompt}{sample.text} mark ")
        shares = np.exp([logps[token(policy, word)] for word in "015"])
        masses.append(shares.sum())
        assert reward == pytest.approx(shares @ [0.0, 0.5, 1.0] / shares.sum(), abs=1e-5)
    assert judged.metrics["judge/answered"] == pytest.approx(masses, abs=1e-5)


def test_other_batches_give_the_same_marks(policy: Policy, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grouped(["a", "bb", "a bit longer"], ["1", "22"], ["x"])
    judge = source("judge", policy, runtime, rubric=RUBRIC)
    whole = ask(judge, rows).rewards
    assert len(set(whole)) == 6
    for tokens, logits in ((40, 2**24), (2**14, 1)):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", tokens)
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", logits)
        assert ask(judge, rows).rewards == pytest.approx(whole, abs=1e-5)


def test_a_judge_that_always_gives_one_mark(policy: Policy, runtime: Runtime) -> None:
    for word, mark in (("5", 1.0), ("1", 0.0), ("3", 0.5)):
        judge = source("judge", rigged(policy, word, by=40.0), runtime, rubric=RUBRIC)
        assert ask(judge, grouped(["a", "b"])).rewards == pytest.approx([mark, mark], abs=1e-6)


def test_the_judge_is_asked_without_the_prompt_state(policy: Policy, runtime: Runtime) -> None:
    rows = grouped(["a", "b"])
    plain = ask(source("judge", policy, runtime, rubric=RUBRIC), rows).rewards
    stated = replace(policy, prompt_state=PromptState(system="be kind"))
    assert ask(source("judge", stated, runtime, rubric=RUBRIC), rows).rewards == plain


def test_another_model_judges_and_stays(policy: Policy, make_policy: Make, folder: Path, runtime: Runtime) -> None:
    rows = grouped(["a", "b"])
    judge: Any = sources()["judge"].make(Surroundings(runtime=runtime), {"rubric": RUBRIC, "model": str(folder)})
    own = pytest.approx(ask(source("judge", policy, runtime, rubric=RUBRIC), rows).rewards, abs=1e-6)
    assert ask(judge, rows).rewards == own
    stranger = make_policy(seed=5)
    assert ask(source("judge", stranger, runtime, rubric=RUBRIC), rows).rewards != own
    other = judge.asking(stranger)
    assert ask(other, rows).rewards == own
    assert other.asked.model is judge.asked.model, "read once"


def test_a_judge_has_to_know_whom_to_ask(policy: Policy, runtime: Runtime) -> None:
    around = Surroundings(runtime=runtime)
    with pytest.raises(ConfigError, match="told of none"):
        ask(sources()["judge"].make(around, {}), grouped(["a"]))
    with pytest.raises(ModelError, match="no weights to read"):
        ask(source("judge", Policy(), runtime), grouped(["a"]))
    with pytest.raises(ModelError, match='"10" is no single token'):
        ask(source("judge", policy, runtime, rubric=RUBRIC, scores=["1", "10"]), grouped(["a"]))
    with pytest.raises(ConfigError, match="nothing here runs a model"):
        sources()["compare"].make(Surroundings(), {})


def test_what_does_not_fit_the_context_is_masked(policy: Policy, runtime: Runtime) -> None:
    rows = grouped(["a", "b" * 48])
    judged = ask(source("judge", policy, runtime, rubric=RUBRIC), rows)
    assert judged.rewards[0] is not None
    assert judged.rewards[1] is None
    assert "over the context of 48" in judged.errors[1]
    judged = ask(source("compare", policy, runtime, **PAIR), grouped(["a", "b", "c" * 48]))
    assert [reward is None for reward in judged.rewards] == [False, False, True]
    assert list(judged.errors) == [2]


def test_chat_models_are_asked_in_their_own_way(policy: Policy, runtime: Runtime) -> None:
    asked = Asked("judge", runtime, policy=policy)
    [plain] = asked.questions(["1+1"])
    chatty = Asked("judge", runtime, policy=replace(policy, tokenizer=Chatty(policy.tokenizer)))
    [turned] = chatty.questions(["1+1"])
    assert policy.tokenizer.decode(plain) == "1+1"
    assert policy.tokenizer.decode(turned) == "user 1+1 then "


class Chatty:
    """A tokenizer with a chat template."""

    chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} then {% endfor %}"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer(*args, **options)

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **_: Any) -> str:
        return "".join(f"{message['role']} {message['content']} then " for message in messages)


def test_the_mean_of_values_under_a_few_words() -> None:
    with np.errstate(all="raise"):
        means, masses = expected(np.log([[0.1, 0.3], [0.2, 0.2], [1e-300, 3e-300]]), [0.0, 1.0])
    assert means == pytest.approx([0.75, 0.5, 0.75])
    assert masses == pytest.approx([0.4, 0.4, 0.0])


def test_a_judge_that_prefers_what_stands_first_is_found_out(policy: Policy, runtime: Runtime) -> None:
    judge = source("compare", rigged(policy, "1"), runtime, **PAIR)
    judged = ask(judge, grouped(["a", "b", "c"]))
    assert judged.rewards == [0.5, 0.5, 0.5]
    assert judged.preferences == []
    assert judged.metrics["order_agreement"] == [0.0] * 3


def test_comparisons_by_hand(policy: Policy, runtime: Runtime) -> None:
    judged = ask(source("compare", policy, runtime, **PAIR), grouped(["a", "b"]))

    def first_wins(text: str) -> float:
        logps = by_hand(policy, text)
        return float(1 / (1 + np.exp(logps[token(policy, "2")] - logps[token(policy, "1")])))

    forth, back = first_wins("prompt 0 a b"), first_wins("prompt 0 b a")
    agree = (forth > 0.5) != (back > 0.5)
    assert judged.metrics["order_agreement"] == [float(agree)]
    assert judged.rewards == ([1.0, 0.0] if agree and forth > 0.5 else [0.0, 1.0] if agree else [0.5, 0.5])


class Longer(Asked):
    """Finds the longer of two answers better, with a probability of 0.9, and no two of one length."""

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(map(len, text.split("|"))) for text in texts]

    def too_long(self, question: Sequence[int]) -> str | None:
        return None

    async def log_probabilities(self, questions: Any, words: Sequence[str]) -> np.ndarray:
        flat = [ids for group in questions for ids in group]
        return np.log([[0.9, 0.1] if first > second else [0.1, 0.9] for first, second in flat]).reshape(-1, 2)


def duels(runtime: Runtime, pairs: int = 0, seed: int = 0) -> Duels:
    return Duels(Longer("compare", runtime), "{first}|{second}", "AB", pairs, seed)


def test_a_consistent_judge_ranks_the_samples(runtime: Runtime) -> None:
    judged = ask(duels(runtime), grouped(["a", "aaa", "aa"], ["bb", "b"]))
    assert judged.rewards == [0.0, 1.0, 0.5, 1.0, 0.0]
    assert judged.preferences == [
        Preference(chosen, rejected, pytest.approx(0.8)) for chosen, rejected in [(1, 0), (2, 0), (1, 2), (3, 4)]
    ]
    assert judged.metrics["order_agreement"] == [1.0] * 4


def test_equal_texts_draw_and_are_not_asked_about(runtime: Runtime) -> None:
    judged = ask(duels(runtime), grouped(["a", "a", "aa"], ["b", "b"], ["c"]))
    assert judged.rewards == [0.25, 0.25, 1.0, 0.5, 0.5, None]
    assert len(judged.metrics["order_agreement"]) == 2
    assert not judged.errors


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_few_pairs_are_spread_evenly(runtime: Runtime, count: int) -> None:
    every = count * (count - 1) // 2
    ids = [f"{n}" for n in range(count)]
    for pairs in range(1, every + 1):
        chosen = list(duels(runtime, pairs)._chosen(ids))
        assert len({frozenset(pair) for pair in chosen}) == len(chosen) == pairs
        times = np.bincount(np.ravel(chosen), minlength=count)
        assert times.max() - times.min() <= 2, "a circle is walked from its beginning"
    if every > 5:
        assert list(duels(runtime, 3, seed=1)._chosen(ids)) != list(duels(runtime, 3, seed=2)._chosen(ids))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_self_certainty_is_the_distance_from_uniform(policy: Policy, runtime: Runtime, temperature: float) -> None:
    request = Request("0/0", Problem("p0", "12+34="), 0, 0, 7)
    [sample] = asyncio.run(LocalGenerator(runtime).generate(policy, [request], Sampling(4, temperature)))
    ids = [*sample.prompt_ids, *sample.token_ids]
    with torch.inference_mode():
        logits = policy.weights.module(torch.tensor([ids])).logits[0].double() / temperature
    distances = []
    for position in range(len(sample.prompt_ids) - 1, len(ids) - 1):
        p = logits[position].softmax(-1)
        uniform = torch.full_like(p, 1 / len(p))
        distances.append(float((uniform * (uniform / p).log()).sum()))
    assert sample.stats["self_certainty"] == pytest.approx(np.mean(distances), rel=1e-4)


def test_agreement_of_a_model_with_itself(policy: Policy, runtime: Runtime) -> None:
    """Greedy samples agree with the greedy answer to the same prompt, and to another one where it is the same."""
    generator = LocalGenerator(runtime)
    greedy = Sampling(max_tokens=4, temperature=0.0)

    def answer(prompt: str) -> Sample:
        return asyncio.run(generator.generate(policy, [Request("0", Problem("p0", prompt), 0, 0, 1)], greedy))[0]

    problem = Problem("p0", "12+34=", {"mirrored": ["12+34=", "34+12="]})
    judged = ask(source("agreement", policy, runtime, max_tokens=4), ([problem], [answer("12+34=")]))
    same = answer("12+34=").text.strip() == answer("34+12=").text.strip()
    assert judged.rewards == [1.0 if same else 0.5]


def test_an_equivalent_prompt_over_the_context_is_left_out(policy: Policy, runtime: Runtime) -> None:
    problems, samples = grouped(["x"], ["x"])
    long = "12+34=" * 9
    problems = [
        replace(problems[0], columns={"mirrored": ["12+34=", long]}),
        replace(problems[1], columns={"mirrored": long}),
    ]
    judged = ask(source("agreement", policy, runtime, max_tokens=4), (problems, samples))
    assert [reward is None for reward in judged.rewards] == [False, True]
    assert "would exceed the model's context with max_tokens 4" in judged.errors[1]


def test_a_sample_that_meets_no_other_is_abstained_from(policy: Policy, runtime: Runtime) -> None:
    judged = ask(source("compare", policy, runtime, **PAIR), grouped(["a", "b"], ["a"]))
    assert judged.rewards[2] is None
    assert judged.abstained == {2}
    assert not judged.errors
