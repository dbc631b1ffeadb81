"""Remote models: asked politely, paid once, cut off in time."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loopwise.config.blocks import EndpointConfig
from loopwise.errors import ConfigError, RemoteError, nearest
from loopwise.models.tokenizers import encodable
from loopwise.remote.answers import checked, entry_of
from loopwise.remote.background import Background
from loopwise.remote.failures import Failure, failure_of, wait_before
from loopwise.remote.ledger import Entry, Ledger, question_key
from loopwise.types import Message

_NO_KEY = "none"
"""The client library insists on a key. It is taken off every request again."""
_SENT = frozenset({"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "user-agent"})
"""Headers that leave this machine besides the key. The library would add others, some out of its own environment
variables, and a description of the machine."""
_MOST_REPAIRS = 3


@dataclass(frozen=True)
class Reply:
    """An answer: its text, why it ends there, tokens read and written (estimated where the server does not count)."""

    text: str
    finish_reason: str
    read: int
    written: int


@dataclass(frozen=True)
class Spent:
    """What an endpoint was paid for: answers, tokens, and money at the recipe's prices."""

    calls: int
    read: int
    written: int
    money: float


class Endpoint:
    """A remote model by the name that a recipe gives it. Make it with ``open_endpoints``.

    Those opened together share a ledger and a thread: attaching or closing one does so for all.
    """

    def __init__(
        self, name: str, config: EndpointConfig, key: str | None, ledger: Ledger, background: Background
    ) -> None:
        self.name = name
        self.config = config
        self.ledger = ledger
        self._key = key
        self._background = background
        self._client: Any = None
        self._slots: asyncio.Semaphore | None = None
        self._answered = False
        self._left_out: set[str] = set()
        self._limit = "max_tokens"

    @classmethod
    def of(
        cls, name: str, config: EndpointConfig, *, ledger: Ledger | None = None, background: Background | None = None
    ) -> Endpoint:
        """The endpoint of a recipe. Nothing is sent yet.

        Raises ConfigError where the address or the key's variable is no good, or the package ``openai`` is missing.
        """
        place = f'endpoint "{name}"'
        if importlib.util.find_spec("openai") is None:
            raise ConfigError(f"{place}: needs the package openai. Install it with: pip install 'loopwise[remote]'")
        try:
            address = urlsplit(config.url)
            usable = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f'{place}: "{config.url}" is no address. Write it as http://localhost:8000/v1.')
        if address.username or address.password:
            raise ConfigError(f'{place}: no keys in an address. Put it into a variable that "key_env" names.')
        key = None
        if config.key_env is not None:
            key = os.environ.get(config.key_env, "").strip()
            if not key:
                raise ConfigError(f"{place}: the environment variable {config.key_env} holds no key. Set it.")
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(f"{place}: the key in {config.key_env} has characters that no key has. Set it anew.")
        return cls(name, config, key, ledger or Ledger(), background or Background())

    def attach(
        self,
        folder: Path,
        rank: int = 0,
        *,
        world: int = 1,
        run: str = "",
        store: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Keep what is paid for in a run's folder, and know what was paid there before: see ``Ledger.attach``."""
        self.ledger.attach(folder, rank, world=world, run=run, store=store)

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r}, {self.config.model!r} at {self.config.url!r})"

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        place: str,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Reply:
        """The model's answer to a conversation: from the ledger where it was paid for, else from the server.

        ``place`` says where in the run the question stands: the same question at the same place is asked once. A call
        takes ``timeout`` seconds at most, of all its attempts together; waits between them come on top. From any event
        loop. Raises RemoteError.
        """
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{role: encodable(said) for role, said in message.items()} for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        body |= {"top_p": top_p} if top_p != 1.0 else {}
        body |= {"stop": list(stop)} if stop else {}
        body |= {"seed": seed} if seed is not None else {}
        key = question_key(self.config.url, body, place)
        known = self.ledger.find(key)
        if known is None:
            known = await self._background.run(self._buy(body, key, place))
        return Reply(known.text, known.finish_reason, known.read, known.written)

    @property
    def spent(self) -> Spent:
        """What was spent in all of the run, earlier sessions and what they know of other ranks included."""
        tokens = self.ledger.spent(self.name)
        return Spent(tokens.calls, tokens.read, tokens.written, self._money(tokens.read, tokens.written))

    @property
    def exhausted(self) -> str | None:
        """Which limit is reached, as a sentence; None while there is something to spend.

        Of several ranks each may spend an equal share of what was left at the start.
        """
        now, before = self.ledger.spent(self.name), self.ledger.before(self.name)
        paid, paid_before = (self._money(tokens.read, tokens.written) for tokens in (now, before))
        for limit, most, spent, then, unit in (
            ("most_tokens", self.config.most_tokens, now.all, before.all, "tokens"),
            ("most_money", self.config.most_money, paid, paid_before, "of money"),
        ):
            if most is not None and spent >= then + (most - then) / self.ledger.world:
                share = f", a share for each of {self.ledger.world} ranks" if self.ledger.world > 1 else ""
                return f'endpoint "{self.name}" has spent {spent:,.10g} {unit} ({limit}: {most:,.10g}{share})'
        return None

    def close(self) -> None:
        """Cut what is in flight, close connections and the ledger. Harmless when done twice."""
        self._background.close()
        self.ledger.close()

    async def _buy(self, body: Mapping[str, Any], key: str, place: str) -> Entry:
        client, slots = self._open()
        async with slots:
            known = self.ledger.find(key)
            if known is not None:  # the same was asked meanwhile
                return known
            exhausted = self.exhausted
            if exhausted is not None:
                raise RemoteError(f"{exhausted}. Nothing more is asked.", "budget")
            answer = await self._persist(client, body, key)
            entry = entry_of(answer, body, key, self.name, place)
            # In a thread: other calls go on, and their time runs, while the disk takes its own. Shielded: it is paid.
            await asyncio.shield(asyncio.to_thread(self.ledger.add, entry))
            self._answered = True
            return entry

    async def _persist(self, client: Any, body: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Ask until there is an answer, or no use in asking again."""
        clock = asyncio.get_running_loop().time
        left, attempt, repairs = self.config.timeout, 0, 0
        spread = int(key[:8], 16) / 2**32
        while True:
            began, sent = clock(), self._sendable(body)
            try:
                async with asyncio.timeout(left):
                    return checked(await client.post("/chat/completions", body=sent, cast_to=object))
            except Exception as error:
                failure = failure_of(error, answered=self._answered)
            left = max(0.0, left - (clock() - began))
            if failure.complains and repairs < _MOST_REPAIRS and self._repaired(failure.complains, sent):
                repairs += 1
                continue
            attempt += 1
            wait = wait_before(attempt, failure.wait, spread)
            if not failure.again or attempt > self.config.retries or wait is None:
                raise self._error(failure, attempt)
            await asyncio.sleep(wait)

    def _sendable(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as this server takes it."""
        sent = {name: value for name, value in body.items() if name not in self._left_out}
        sent[self._limit] = sent.pop("max_tokens")
        return sent

    def _repaired(self, complaint: str, sent: Mapping[str, Any]) -> bool:
        """Whether the complaint is about one of the two keys in which servers differ, and is met from now on."""
        if "max_completion_tokens" in complaint and "max_tokens" in sent:
            self._limit = "max_completion_tokens"
            return True
        if "seed" in complaint and "seed" in sent:
            self._left_out.add("seed")
            return True
        return False

    def _error(self, failure: Failure, attempts: int) -> RemoteError:
        reason = failure.reason.replace(self._key, "***") if self._key else failure.reason
        tries = f" in {attempts} attempts" if attempts > 1 else ""
        mend = ""
        if failure.kind == "refused":
            key = self.config.key_env or "key_env, which is not set"
            mend = f" Mend its url ({self.config.url}), model ({self.config.model}), key ({key}) or account."
        elif failure.kind == "unreachable":
            mend = f" Start the server at {self.config.url}, or mend its url."
        return RemoteError(f'endpoint "{self.name}": {reason}{tries}.{mend}', failure.kind)

    def _money(self, read: int, written: int) -> float:
        price = self.config.price
        return (read * price.read + written * price.written) / 1e6

    def _open(self) -> tuple[Any, asyncio.Semaphore]:
        """The connection and the slots of calls, which belong to the background's event loop."""
        if self._client is None or self._slots is None:
            import openai

            web = openai.DefaultAsyncHttpxClient(
                # A redirect would take prompts and key to another address.
                follow_redirects=False,
                timeout=self.config.timeout,
                event_hooks={"request": [self._strip]},
            )
            self._client = openai.AsyncOpenAI(
                api_key=self._key or _NO_KEY, base_url=self.config.url, max_retries=0, http_client=web
            )
            self._slots = asyncio.Semaphore(self.config.concurrency)
            self._background.at_end(self._shut)
        return self._client, self._slots

    async def _shut(self) -> None:
        client, self._client, self._slots = self._client, None, None
        if client is not None:
            await client.close()

    async def _strip(self, request: Any) -> None:
        """Leave only the headers of this recipe on a request."""
        for name in list(request.headers):
            if name.lower() not in _SENT:
                del request.headers[name]
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"


def open_endpoints(configs: Mapping[str, EndpointConfig]) -> dict[str, Endpoint]:
    """The endpoints that a recipe names, with one ledger and one thread. Raises ConfigError: see ``Endpoint.of``."""
    ledger, background = Ledger(), Background()
    return {name: Endpoint.of(name, one, ledger=ledger, background=background) for name, one in configs.items()}


def find_endpoint(known: Mapping[str, Endpoint], name: str, whose: str) -> Endpoint:
    """The endpoint ``name`` of those ``known``; ``whose`` is what names it, as ``key "generator"``.

    Raises ConfigError where there is none of that name.
    """
    if name not in known:
        mend = nearest(name, known) if known else 'Add it: "endpoints: {NAME: {url: ..., model: ...}}".'
        raise ConfigError(f'{whose}: the recipe has no endpoint "{name}". {mend}')
    return known[name]


async def ask_all(asked: Sequence[Awaitable[Reply]]) -> list[Reply | RemoteError]:
    """All replies in order, or what kept one away. A refusal is raised: no other call would fare better."""
    tasks = [asyncio.ensure_future(_kept(one)) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _kept(asked: Awaitable[Reply]) -> Reply | RemoteError:
    try:
        return await asked
    except RemoteError as error:
        if error.kind == "refused":
            raise
        return error
