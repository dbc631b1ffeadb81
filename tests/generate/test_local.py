"""LocalGenerator: what is drawn depends on the request alone, and finished rows leave the batch."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tests.models.tiny import tiny_lstm

from loopwise.errors import ModelError, PromptTooLongError
from loopwise.generate.local import LocalGenerator
from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.models.tokens import decode, encode_prompts
from loopwise.runtime import Runtime
from loopwise.types import Request, Sample, Sampling, Segment

SHAPES = ["gpt2", "llama", "qwen3", "mistral", "lstm"]
PROMPTS = ["12+34=", "a", "what is 5?", "one two three"]
Draw = Callable[..., list[Sample]]
Make = Callable[..., list[Request]]


@pytest.fixture
def draw(runtime: Runtime) -> Draw:
    def generate(policy: Policy, requests: list[Request], **sampling: Any) -> list[Sample]:
        return asyncio.run(LocalGenerator(runtime).generate(policy, requests, Sampling(**sampling)))

    return generate


@pytest.fixture
def of_shape(make_policy: Callable[..., Policy], tokenizer: Any) -> Callable[[str], Policy]:
    return lambda shape: tiny_lstm(tokenizer) if shape == "lstm" else make_policy(shape)


def ending_at(policy: Policy, ids: list[int]) -> Policy:
    """The policy, with other tokens that end its completions."""
    policy.weights.module.generation_config.eos_token_id = ids
    return policy


def drawn(samples: list[Sample]) -> list[tuple[str, tuple[int, ...]]]:
    return [(sample.id, sample.token_ids) for sample in samples]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8}])
def test_sample_logps_are_those_of_a_full_forward(
    of_shape: Callable[[str], Policy], make_requests: Make, draw: Draw, shape: str, sampling: dict[str, Any]
) -> None:
    # Rows end at different steps, so this also covers the cache of rows that are left when others leave.
    policy = ending_at(of_shape(shape), list(range(3, 9)))
    samples = draw(policy, make_requests(PROMPTS, k=4), max_tokens=12, **sampling)
    assert len({len(sample.token_ids) for sample in samples}) > 2
    rows = [TokenRow(sample.prompt_ids, sample.token_ids) for sample in samples]
    with torch.inference_mode():
        recomputed, _ = token_logps(policy.weights.module, rows, sampling.get("temperature", 1.0))
    for sample, expected in zip(samples, recomputed, strict=True):
        count = len(sample.token_ids)
        torch.testing.assert_close(torch.tensor(sample.logps), expected[:count], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_of_one_equals_a_row_of_a_batch_of_many(
    of_shape: Callable[[str], Policy], make_requests: Make, draw: Draw, shape: str
) -> None:
    policy = ending_at(of_shape(shape), list(range(3, 6)))
    requests = make_requests(PROMPTS, k=3)
    together = draw(policy, requests, max_tokens=10)
    for request, row in zip(requests, together, strict=True):
        [alone] = draw(policy, [request], max_tokens=10)
        assert (alone.id, alone.token_ids, alone.text) == (row.id, row.token_ids, row.text)
        assert alone.logps == pytest.approx(row.logps, abs=1e-5)


def test_other_splits_and_group_sizes_draw_the_same(policy: Policy, make_requests: Make, draw: Draw) -> None:
    requests = make_requests(PROMPTS, k=4)
    whole = drawn(draw(policy, requests, max_tokens=8))
    assert drawn(draw(policy, requests[:6], max_tokens=8)) + drawn(draw(policy, requests[6:], max_tokens=8)) == whole
    assert drawn(draw(policy, requests[::-1], max_tokens=8)) == whole[::-1]
    smaller = drawn(draw(policy, make_requests(PROMPTS, k=2), max_tokens=8))
    assert smaller == [entry for entry in whole if entry[0].endswith(("/0", "/1"))]
    assert len({tokens for _, tokens in whole}) == len(whole), "different keys draw different samples"


def test_torchs_global_generator_is_neither_read_nor_moved(policy: Policy, make_requests: Make, draw: Draw) -> None:
    requests = make_requests(PROMPTS)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draw(policy, requests, max_tokens=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert draw(policy, requests, max_tokens=4) == first


def test_samples_say_where_they_come_from(policy: Policy, make_requests: Make, draw: Draw) -> None:
    [request] = make_requests(["12+34="])
    [sample] = draw(policy, [replace(request, group=7, index=2, key=1)], max_tokens=5)
    assert (sample.id, sample.problem_id, sample.group, sample.index) == ("0/0", "p0", 7, 2)
    assert sample.policy_id == policy.id
    assert decode(policy, [sample.prompt_ids]) == ["12+34="]
    assert decode(policy, [sample.token_ids]) == [sample.text]
    assert sample.finish_reason == "length"
    assert sample.loss_mask == (1,) * 5
    assert sample.segments == (Segment("model", 0, 5),)
    assert 0 < sample.stats["entropy"] <= np.log(len(policy.tokenizer))


def test_end_of_text_ends_a_completion_and_stays_in_it(policy: Policy, make_requests: Make, draw: Draw) -> None:
    ends = list(range(3, 13))
    samples = draw(ending_at(policy, ends), make_requests(PROMPTS, k=4), max_tokens=10)
    finished = [sample for sample in samples if sample.finish_reason == "stop"]
    assert finished
    for sample in finished:
        assert sample.token_ids[-1] in {*ends, policy.tokenizer.eos_token_id}
        assert not {*ends} & {*sample.token_ids[:-1]}
        assert len(sample.logps) == len(sample.loss_mask) == len(sample.token_ids)
    for sample in samples:
        if sample.finish_reason == "length":
            assert len(sample.token_ids) == 10


def test_finished_rows_leave_the_batch(policy: Policy, make_requests: Make, draw: Draw) -> None:
    sizes: list[tuple[int, int]] = []
    policy = ending_at(policy, list(range(3, 13)))
    policy.weights.module.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    samples = draw(policy, make_requests(PROMPTS, k=4), max_tokens=10)
    lengths = [len(sample.token_ids) for sample in samples]
    # The first token comes from reading each prompt once; step n reads the nth token of the rows that go on.
    longest_prompt = max(len(sample.prompt_ids) for sample in samples)
    going_on = [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]
    assert sizes == [(len(PROMPTS), longest_prompt), *going_on]
    assert going_on[-1] < going_on[0], "no row left early, so nothing was tested"


def test_stop_strings_of_several_tokens_cut_the_text(policy: Policy, make_requests: Make, draw: Draw) -> None:
    requests = make_requests(PROMPTS)
    whole = draw(policy, requests, max_tokens=12)
    text = whole[2].text
    stop, later = text[4:7], text[8:10]
    assert (len(stop), len(later)) == (3, 2)
    cut = draw(policy, requests, max_tokens=12, stop=(later, stop))[2]
    place = min(text.find(stop), text.find(later))
    assert cut.text == text[:place]
    assert cut.finish_reason == "stop"
    # The tokens that spelled the stop string stay: they were drawn, and training sees what was drawn.
    found = decode(policy, [cut.token_ids])[0]
    assert found == text[: len(found)]
    assert stop in found or later in found
    assert cut.token_ids == whole[2].token_ids[: len(cut.token_ids)]


def test_a_stop_string_that_never_comes_changes_nothing(policy: Policy, make_requests: Make, draw: Draw) -> None:
    requests = make_requests(PROMPTS)
    assert draw(policy, requests, max_tokens=6, stop=("\n\n\n",)) == draw(policy, requests, max_tokens=6)


def test_first_tokens_have_the_models_distribution(policy: Policy, make_requests: Make, draw: Draw) -> None:
    samples = draw(policy, make_requests(["7+"], k=4000), max_tokens=1, temperature=0.7)
    counts = np.bincount([sample.token_ids[0] for sample in samples], minlength=len(policy.tokenizer))
    with torch.inference_mode():
        logits = policy.weights.module(torch.tensor([samples[0].prompt_ids])).logits[0, -1].double()
    expected = (logits / 0.7).softmax(-1).numpy() * len(samples)
    common = expected > 5
    observed, wanted = [*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_bfloat16_draws_finite_samples(policy: Policy, make_requests: Make, runtime: Runtime) -> None:
    generator = LocalGenerator(replace(runtime, dtype="bfloat16"))
    samples = asyncio.run(generator.generate(policy, make_requests(PROMPTS, k=2), Sampling(max_tokens=6)))
    assert all(np.isfinite(sample.logps).all() and max(sample.logps) <= 0 for sample in samples)


def test_a_prompt_over_the_context_is_refused_by_name(policy: Policy, make_requests: Make, draw: Draw) -> None:
    requests = make_requests(["1+1=", "x" * 40])
    draw(policy, requests, max_tokens=8)
    with pytest.raises(PromptTooLongError) as caught:
        draw(policy, requests, max_tokens=9)
    message = str(caught.value)
    assert "1 of 2 prompts do not fit: problem p1 has 40 tokens, with 9 for the completion" in message
    assert "context of 48" in message
    assert "Lower sampling.max_tokens" in message


def test_a_policy_without_weights_is_refused(make_requests: Make, draw: Draw) -> None:
    with pytest.raises(ModelError, match="no weights to generate with"):
        draw(Policy(), make_requests(PROMPTS))


def test_a_stop_string_that_is_one_special_token_stops(policy: Policy, make_requests: Make, draw: Draw) -> None:
    # No text shows a special token, so a search in the text would never find it.
    tokenizer = character_tokenizer("0123456789+=abcdefghijklmnopqrstuvwxy")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    policy = replace(policy, tokenizer=tokenizer)
    lift = 3.0 * (torch.arange(policy.weights.module.config.vocab_size) == end)
    policy.weights.module.lm_head.register_forward_hook(lambda module, args, logits: logits + lift)
    requests = make_requests(PROMPTS, k=8)
    assert any(end in sample.token_ids[:-1] for sample in draw(policy, requests, max_tokens=10))
    samples = draw(policy, requests, max_tokens=10, stop=("<|im_end|>", "?"))
    stopped = [sample for sample in samples if sample.token_ids[-1] == end]
    assert stopped
    assert all(sample.finish_reason == "stop" and "<" not in sample.text for sample in stopped)
    assert not any(end in sample.token_ids[:-1] for sample in samples)


def test_a_stop_string_the_tokenizer_cannot_spell_ends_nothing(policy: Policy, make_requests: Make, draw: Draw) -> None:
    # It is encoded as the unknown token, which is special too.
    requests = make_requests(PROMPTS, k=4)
    assert drawn(draw(policy, requests, max_tokens=8, stop=("é",))) == drawn(draw(policy, requests, max_tokens=8))


def test_prompts_are_tokenised_once(policy: Policy, make_requests: Make, draw: Draw, monkeypatch: Any) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> list[list[int]]:
        calls.append(1)
        return encode_prompts(*arguments)

    monkeypatch.setattr("loopwise.models.tokens.encode_prompts", counted)
    draw(policy, make_requests(PROMPTS), max_tokens=2)
    assert calls == [1]


def test_ctrl_c_ends_a_unit_within_a_step(policy: Policy, make_requests: Make, draw: Draw) -> None:
    steps: list[int] = []

    def interrupt(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    policy.weights.module.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(policy, make_requests(["1"]), max_tokens=40)
    assert len(steps) == 3
