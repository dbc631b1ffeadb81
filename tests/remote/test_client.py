"""An endpoint against a server that misbehaves: what is waited for, asked again, cut off, kept secret, paid."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from tests.remote.server import Answer, FakeServer, completion, error

from loopwise.config.blocks import EndpointConfig
from loopwise.errors import ConfigError, RemoteError
from loopwise.remote.client import Endpoint, Reply, ask_all, open_endpoints
from loopwise.remote.failures import retry_after, wait_before
from loopwise.runtime import run_async

Opened = Callable[..., Endpoint]
HELLO = [{"role": "user", "content": "hello"}]


def ask(endpoint: Endpoint, place: str = "p", **more: Any) -> Reply:
    return run_async(endpoint.chat([{"role": "user", "content": place}], place=place, max_tokens=8, **more))


def failure(endpoint: Endpoint, place: str = "p") -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        ask(endpoint, place)
    return caught.value


def ask_many(endpoint: Endpoint, count: int) -> list[Reply | RemoteError]:
    async def all_of_them() -> list[Reply | RemoteError]:
        return await ask_all([endpoint.chat(HELLO, place=str(n), max_tokens=8) for n in range(count)])

    return run_async(all_of_them())


def test_a_call_says_what_was_asked_and_no_more(server: FakeServer, opened: Opened) -> None:
    endpoint = opened()
    server.reply = lambda asked, number: completion("你好", usage=(7, 2), finish_reason="length")
    assert ask(endpoint, temperature=0.5) == Reply("你好", "length", 7, 2)
    assert ask(endpoint, "more", top_p=0.9, stop=("\n",), seed=3).text == "你好"
    first, second = (asked.body for asked in server.asked)
    message = {"role": "user", "content": "p"}
    assert first == {"model": "tiny", "messages": [message], "max_tokens": 8, "temperature": 0.5}
    assert (second["top_p"], second["stop"], second["seed"]) == (0.9, ["\n"], 3)


def test_nothing_of_the_environment_is_sent(
    server: FakeServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "stray")
    monkeypatch.setenv("OPENAI_ORG_ID", "stray")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "stray")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Stray: stray\nAuthorization: Bearer stray")
    monkeypatch.setenv("MY_KEY", "sesame")
    ask(opened())
    ask(opened(key_env="MY_KEY"))
    without, with_key = (asked.headers for asked in server.asked)
    assert "authorization" not in without
    assert with_key["authorization"] == "Bearer sesame"
    known = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"}
    assert set(without) <= known
    assert set(with_key) <= known | {"authorization"}


def test_retry_after_is_obeyed(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: (
        error(429, "slow down", {"Retry-After": "0.3"}) if number == 1 else completion("fine")
    )
    assert ask(opened()).text == "fine"
    first, second = (asked.time for asked in server.asked)
    assert second - first >= 0.3


def test_a_server_that_asks_for_hours_is_not_waited_for(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: error(429, "tomorrow", {"Retry-After": "7200"})
    began = time.monotonic()
    assert failure(opened()).kind == "overloaded"
    assert time.monotonic() - began < 5
    assert len(server.asked) == 1


def test_failures_of_the_server_are_asked_again_until_retries_are_over(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: error(503, "later") if number < 3 else completion("fine")
    endpoint = opened(retries=2)
    assert ask(endpoint).text == "fine"
    assert len(server.asked) == 3
    server.reply = lambda asked, number: error(500, "broken")
    failed = failure(endpoint, "again")
    assert failed.kind == "overloaded"
    assert str(failed) == 'endpoint "local": status 500: broken in 3 attempts.'
    assert len(server.asked) == 6


def test_a_call_that_hangs_is_cut_off_and_not_paid_for_twice(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer(completion("late").body, delay=3.0)
    endpoint = opened(timeout=0.2)
    began = time.monotonic()
    assert failure(endpoint).kind == "timeout"
    assert time.monotonic() - began < 2
    assert len(server.asked) == 1


def test_a_server_that_trickles_is_cut_off_by_the_clock(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer(completion("late").body, trickle=0.1)
    began = time.monotonic()
    assert failure(opened(timeout=0.4)).kind == "timeout"
    assert time.monotonic() - began < 3


def test_all_attempts_of_a_call_share_its_time(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer("", 503, delay=0.9)
    assert failure(opened(timeout=1.6, retries=5)).kind == "timeout"
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refusal_names_the_mend(
    server: FakeServer, opened: Opened, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    server.reply = lambda asked, number: error(status, "bad key: sesame")
    endpoint = opened(key_env="MY_KEY")
    refused = failure(endpoint)
    assert refused.kind == "refused"
    assert "key (MY_KEY)" in str(refused)
    assert server.url in str(refused)
    assert "sesame" not in str(refused) + repr(refused) + repr(endpoint)
    assert len(server.asked) == 1


def test_an_account_without_money_is_refused_and_not_waited_for(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: error(429, "you exceeded your quota", code="insufficient_quota")
    assert failure(opened()).kind == "refused"
    assert len(server.asked) == 1


def test_a_redirect_is_not_followed(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer("", 307, {"Location": f"{server.url}/elsewhere"})
    assert failure(opened()).kind == "refused"
    assert len(server.asked) == 1


def test_one_question_turned_down_later_says_nothing_of_the_others(server: FakeServer, opened: Opened) -> None:
    endpoint = opened()
    ask(endpoint)
    server.reply = lambda asked, number: error(403 if asked.said == "a" else 400, "not this one")
    assert (failure(endpoint, "a").kind, failure(endpoint, "b").kind) == ("rejected", "rejected")


@pytest.mark.parametrize(
    "answer",
    [
        Answer('{"choices": [{"mess'),
        Answer("<html>hello</html>", headers={"Content-Type": "text/html"}),
        Answer("[]"),
        Answer({"choices": []}),
        Answer({"choices": [{"message": {"content": 5}}]}),
        Answer({"error": {"message": "all is lost"}}),
        Answer(""),
    ],
    ids=["torn", "html", "list", "empty", "number", "error", "nothing"],
)
def test_what_is_no_chat_completion_is_a_bad_answer(server: FakeServer, opened: Opened, answer: Answer) -> None:
    server.reply = lambda asked, number: answer
    endpoint = opened()
    assert failure(endpoint).kind == "bad_answer"
    assert endpoint.spent.calls == 0
    assert len(server.asked) == 1


def test_nobody_there(opened: Opened) -> None:
    failed = failure(opened(url="http://127.0.0.1:1/v1", retries=1))
    assert failed.kind == "unreachable"
    assert "in 2 attempts" in str(failed)


def test_an_answer_without_words_is_paid_for_all_the_same(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: completion(None, usage=(10, 8), finish_reason="length")
    endpoint = opened()
    assert ask(endpoint) == ask(endpoint) == Reply("", "length", 10, 8)
    assert len(server.asked) == 1


def test_half_a_surrogate_pair_in_an_answer_is_replaced(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: completion("half \ud83d of it")
    assert ask(opened()).text == "half ? of it"


def test_servers_that_take_no_seed_or_another_limit_are_asked_their_way(server: FakeServer, opened: Opened) -> None:
    def reply(asked: Any, number: int) -> Answer:
        if "max_tokens" in asked.body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "seed" in asked.body:
            return Answer({"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]}, 422)
        return completion("fine")

    server.reply = reply
    endpoint = opened(concurrency=4)

    async def four() -> list[Reply | RemoteError]:
        return await ask_all([endpoint.chat(HELLO, place=str(n), max_tokens=8, seed=n) for n in range(4)])

    assert [reply.text for reply in run_async(four()) if isinstance(reply, Reply)] == ["fine"] * 4
    sent = len(server.asked)
    assert ask(endpoint, "later", seed=1).text == "fine"
    assert len(server.asked) == sent + 1
    assert server.asked[-1].body["max_completion_tokens"] == 8


def test_so_many_calls_at_a_time_and_no_more(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer(completion("fine").body, delay=0.05)
    endpoint = opened(concurrency=3)
    assert all(isinstance(reply, Reply) for reply in ask_many(endpoint, 12))
    assert server.most == 3


def test_the_limit_holds_across_event_loops(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer(completion("fine").body, delay=0.05)
    endpoint = opened(concurrency=2)

    async def from_two_loops() -> None:
        async def some(first: int) -> list[Reply | RemoteError]:
            return await ask_all([endpoint.chat(HELLO, place=f"{first}/{n}", max_tokens=8) for n in range(4)])

        await asyncio.gather(*(asyncio.to_thread(asyncio.run, some(first)) for first in range(2)))

    asyncio.run(from_two_loops())
    assert server.most == 2
    assert len(server.asked) == 8


def test_a_budget_of_tokens_stops_further_calls(server: FakeServer, opened: Opened) -> None:
    endpoint = opened(concurrency=1, most_tokens=40)
    replies = ask_many(endpoint, 6)
    assert [getattr(reply, "kind", "answered") for reply in replies] == ["answered"] * 3 + ["budget"] * 3
    assert len(server.asked) == 3
    assert endpoint.exhausted == 'endpoint "local" has spent 45 tokens (most_tokens: 40)'
    known = run_async(endpoint.chat(HELLO, place="0", max_tokens=8))
    assert known.text == "fine"  # what is paid for can be read on


def test_a_budget_of_money_counts_by_price(server: FakeServer, opened: Opened) -> None:
    price = {"read": 100_000.0, "written": 200_000.0}
    endpoint = opened(concurrency=1, price=price, most_money=3.5)
    assert endpoint.exhausted is None
    ask_many(endpoint, 4)
    spent = endpoint.spent
    assert (spent.calls, spent.read, spent.written, spent.money) == (2, 20, 10, 4.0)
    assert endpoint.exhausted == 'endpoint "local" has spent 4 of money (most_money: 3.5)'


def test_a_server_that_does_not_count_is_counted_for(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: completion("九个字节", usage=None)
    reply = ask(opened(), "hello!")
    assert (reply.read, reply.written) == (2, 4)


def test_calls_are_given_up_where_one_is_refused(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: error(401, "no")
    with pytest.raises(RemoteError, match="status 401"):
        ask_many(opened(concurrency=1), 20)
    assert len(server.asked) < 20


def test_close_cuts_what_is_in_flight(server: FakeServer, opened: Opened) -> None:
    server.reply = lambda asked, number: Answer(completion("late").body, delay=5)
    endpoint = opened()

    async def asked_and_closed() -> None:
        call = asyncio.ensure_future(endpoint.chat(HELLO, place="p", max_tokens=8))
        while not server.asked:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(endpoint.close)
        with pytest.raises(asyncio.CancelledError):
            await call

    began = time.monotonic()
    asyncio.run(asked_and_closed())
    assert time.monotonic() - began < 4
    server.reply = lambda asked, number: completion("fine")
    assert ask(endpoint, "after").text == "fine"  # closed, it opens again when it is asked


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "localhost:8000"}, "is no address"),
        ({"url": "http://[::1"}, "is no address"),
        ({"url": "ftp://host/v1"}, "is no address"),
        ({"url": "https://me:secret@host/v1"}, "no keys in an address"),
        ({"key_env": "NOT_SET"}, "environment variable NOT_SET holds no key"),
        ({"key_env": "BROKEN"}, "characters that no key has"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], says: str
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("BROKEN", "ab\ncd")
    config = EndpointConfig.model_validate({"url": "http://host/v1", "model": "m"} | settings)
    with pytest.raises(ConfigError, match=says) as caught:
        open_endpoints({"judge": config})
    assert str(caught.value).startswith('endpoint "judge": ')
    assert "secret" not in str(caught.value)


def test_without_the_package_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'loopwise\[remote\]'"):
        open_endpoints({"judge": EndpointConfig(url="http://host/v1", model="m")})


def test_the_wait_grows_and_is_never_shorter_than_asked() -> None:
    assert [wait_before(n, None, 0.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert wait_before(1, 20.0, 0.9) == pytest.approx(20.0 * 1.225)
    assert wait_before(1, 121.0, 0.0) is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": later}) == pytest.approx(30, abs=2)
    assert [retry_after({"retry-after": value}) for value in ("2.5", "soon", "nan", "-1")] == [2.5, None, None, 0.0]
    assert retry_after({}) is None
