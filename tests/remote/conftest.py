"""A fake server, and endpoints that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.remote.server import FakeServer, fake_server

from loopwise.config.blocks import EndpointConfig
from loopwise.remote import failures
from loopwise.remote.client import Endpoint, open_endpoints


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server on the loopback; nothing between it and its clients, and retries that come soon."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(failures, "FIRST_WAIT", 0.02)
    with fake_server() as server:
        yield server


@pytest.fixture
def opened(server: FakeServer) -> Iterator[Callable[..., Endpoint]]:
    """Open one endpoint of the server, called "local", with other settings."""
    made: list[Endpoint] = []

    def make(**settings: Any) -> Endpoint:
        config = EndpointConfig.model_validate({"url": server.url, "model": "tiny", "timeout": 5.0} | settings)
        made.append(open_endpoints({"local": config})["local"])
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()
