"""Streaming: whole characters, nothing of a stop string, and in the end the very text of the sample."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from loopwise.config.blocks import TokenizerConfig
from loopwise.generate.local import LocalGenerator
from loopwise.generate.streaming import UNFINISHED, TextStream
from loopwise.models.policy import Policy
from loopwise.models.tokenizers import make_tokenizer
from loopwise.runtime import Runtime
from loopwise.types import Problem, Request, Sampling

REQUEST = Request("s", Problem("p", "x"), 0, 0, 0)
TEXTS = [
    "plain text",
    "héllo wörld",
    "中文，诗",
    "👋🏽 family: 👨‍👩‍👧",
    "a\u0301 e\u0301",
    " leading and trailing ",
    "\n\n\ttabs\n",
]


@pytest.fixture(scope="module")
def bytewise() -> Policy:
    return Policy(tokenizer=make_tokenizer(TokenizerConfig(kind="byte")))


def pieces(policy: Policy, token_ids: Sequence[int], stop: Sequence[str] = (), end: str | None = None) -> list[str]:
    """What is written token by token; ``end`` is the completion's text."""
    written: list[str] = []
    stream = TextStream(policy, stop, written.append)
    for count in range(1, len(token_ids) + 1):
        stream(REQUEST, token_ids[:count])
    if end is not None:
        stream.finish(end)
    assert stream.written == "".join(written)
    return written


def ids(policy: Policy, text: str) -> list[int]:
    found: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_is_written_whole_and_at_once(text: str, bytewise: Policy) -> None:
    token_ids = ids(bytewise, text)
    assert len(token_ids) == len(text.encode())
    assert pieces(bytewise, token_ids) == list(text)


def test_a_character_that_is_never_finished_comes_at_the_end(bytewise: Policy) -> None:
    token_ids = ids(bytewise, "a中")[:-1]
    assert pieces(bytewise, token_ids) == ["a"]
    assert pieces(bytewise, token_ids, end=f"a{UNFINISHED}") == ["a", UNFINISHED]


def test_what_may_be_a_stop_string_is_held_back(bytewise: Policy) -> None:
    assert pieces(bytewise, ids(bytewise, "1 ENE END"), ["END"], "1 ENE ") == ["1", " ", "EN", "E "]
    assert pieces(bytewise, ids(bytewise, "1 EN"), ["END"], "1 EN") == ["1", " ", "EN"]
    assert "".join(pieces(bytewise, ids(bytewise, "aab"), ["ab"], "a")) == "a"


def test_several_stop_strings(bytewise: Policy) -> None:
    assert "".join(pieces(bytewise, ids(bytewise, "one\nU"), ["\nUser", "\nU"], "one")) == "one"
    assert "".join(pieces(bytewise, ids(bytewise, "one\nUs!"), ["\nUser"], "one\nUs!")) == "one\nUs!"


def test_the_stream_is_the_sample(make_policy: Callable[..., Policy], runtime: Runtime, make_requests: Any) -> None:
    policy = make_policy("llama")
    [request] = make_requests(["12+34="])
    for stop in ((), ("3",), ("a", "z1")):
        sampling = Sampling(max_tokens=30, stop=stop)
        [alone] = asyncio.run(LocalGenerator(runtime).generate(policy, [request], sampling))
        written: list[str] = []
        stream = TextStream(policy, stop, written.append)
        [sample] = asyncio.run(LocalGenerator(runtime, on_token=stream).generate(policy, [request], sampling))
        stream.finish(sample.text)
        assert sample == alone
        assert "".join(written) == sample.text
        assert len(written) > 3 or len(sample.text) <= 3


def test_every_token_of_every_row_is_told(
    make_policy: Callable[..., Policy], runtime: Runtime, make_requests: Any
) -> None:
    told: dict[str, list[int]] = {}

    def note(request: Request, token_ids: Sequence[int]) -> None:
        seen = told.setdefault(request.sample_id, [])
        assert list(token_ids[:-1]) == seen
        seen.append(token_ids[-1])

    requests = make_requests(["1", "12+34=", "ab"], k=2)
    generator = LocalGenerator(runtime, on_token=note)
    samples = asyncio.run(generator.generate(make_policy(), requests, Sampling(max_tokens=12)))
    assert told == {sample.id: list(sample.token_ids) for sample in samples}
