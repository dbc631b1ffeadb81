"""A remote model as the generator: prompts as they are rendered, seeds, failures as data."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tests.remote.server import Answer, Asked, FakeServer, completion, error

from loopwise.errors import ConfigError, RemoteError
from loopwise.remote.client import Endpoint
from loopwise.remote.generator import RemoteGenerator
from loopwise.runtime import run_async
from loopwise.types import LOST, Problem, PromptState, Request, Sample, Sampling

Opened = Callable[..., Endpoint]
POLICY = SimpleNamespace(id="remote", prompt_state=PromptState(system="Be brief."))
KEY = 2**63 + 7


def draw(endpoint: Endpoint, problems: list[Problem], k: int = 1, **sampling: object) -> list[Sample]:
    requests = [
        Request(f"train/1/0/{problem.id}/{index}", problem, group, index, KEY + index)
        for group, problem in enumerate(problems)
        for index in range(k)
    ]
    settings = Sampling(**{"max_tokens": 12, **sampling})  # type: ignore[arg-type]
    return run_async(RemoteGenerator(endpoint).generate(POLICY, requests, settings))


def test_samples_come_in_order_and_say_where_they_belong(server: FakeServer, opened: Opened) -> None:
    def reply(asked: Asked, number: int) -> Answer:
        text = f"{asked.said}/{asked.body['seed']}"
        return Answer(completion(text, finish_reason="length").body, delay=0.2 / number)

    server.reply = reply
    samples = draw(opened(), [Problem("p", "one"), Problem("q", "two")], k=2, temperature=0.7, top_p=0.9, stop=("\n",))
    assert [(sample.group, sample.index, sample.problem_id) for sample in samples] == [
        (0, 0, "p"),
        (0, 1, "p"),
        (1, 0, "q"),
        (1, 1, "q"),
    ]
    assert [sample.text for sample in samples] == [
        f"Be brief.\n\n{prompt}/{(KEY + index) % 2**31}" for prompt in ("one", "two") for index in range(2)
    ]
    assert {sample.id for sample in samples} == {f"train/1/0/{p}/{n}" for p in "pq" for n in range(2)}
    assert {(s.policy_id, s.finish_reason, s.token_ids, s.logps) for s in samples} == {("remote", "length", (), None)}
    body = server.asked[0].body
    assert (body["temperature"], body["top_p"], body["stop"], body["max_tokens"]) == (0.7, 0.9, ["\n"], 12)


def test_a_conversation_keeps_its_messages(server: FakeServer, opened: Opened) -> None:
    draw(opened(), [Problem("p", ({"role": "user", "content": "one"},))])
    assert server.asked[0].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
    ]


def test_what_is_shown_is_asked(server: FakeServer, opened: Opened) -> None:
    draw(opened(), [Problem("p", "one", shown="one, and a draft")])
    assert server.asked[0].said == "Be brief.\n\none, and a draft"


def test_a_sample_that_failed_is_data(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: error(400, "no") if "two" in asked.said else completion("fine")
    samples = draw(opened(concurrency=1), [Problem("p", "one"), Problem("q", "two"), Problem("r", "three")])
    assert [(sample.text, sample.finish_reason) for sample in samples] == [
        ("fine", "stop"),
        ("", "error"),
        ("fine", "stop"),
    ]


def test_a_wrong_key_ends_the_run(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: error(401, "no")
    with pytest.raises(RemoteError, match="status 401"):
        draw(opened(), [Problem("p", "one")])


def test_top_k_is_refused(server: FakeServer, opened: Opened) -> None:
    with pytest.raises(ConfigError, match=r'endpoint "local": "sampling.top_k" is no part of its API'):
        draw(opened(), [Problem("p", "one")], top_k=5)
    assert not server.asked


@pytest.mark.parametrize(("text", "reason"), [("", "content_filter"), ("half", "content_filter"), ("", "tool_calls")])
def test_an_answer_that_the_server_kept_back_is_lost(
    text: str, reason: str, server: FakeServer, opened: Opened
) -> None:
    server.reply = lambda asked, number: completion(text, finish_reason=reason)
    [sample] = draw(opened(), [Problem("p", "one")])
    assert (sample.text, sample.finish_reason) == ("", LOST)


def test_an_empty_answer_is_an_answer(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: completion("", finish_reason="stop")
    [sample] = draw(opened(), [Problem("p", "one")])
    assert (sample.text, sample.finish_reason) == ("", "stop")
