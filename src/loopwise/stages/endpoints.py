"""The remote models of a stage: opened before it, kept in its folder, counted and closed after it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from loopwise.config.blocks import EndpointConfig
from loopwise.remote.client import Endpoint, open_endpoints
from loopwise.workspace import Workspace

Endpoints = Mapping[str, Endpoint]


def enter_endpoints(stack: ExitStack, configs: Mapping[str, EndpointConfig]) -> Endpoints:
    """Open what a recipe names under ``endpoints``, until ``stack`` is closed. Nothing is sent yet.

    Raises ConfigError where an address or a key is no good.
    """
    remote = open_endpoints(configs)
    for endpoint in remote.values():
        stack.callback(endpoint.close)
    return remote


def attach(remote: Endpoints, workspace: Workspace, run: str = "") -> None:
    """Keep what is paid for in the run's folder from now on, and know what was paid there before."""
    ranks = workspace.ranks
    for endpoint in remote.values():
        endpoint.attach(workspace.out, ranks.rank, world=ranks.world, run=run, store=workspace.store_alone)


def exhausted(remote: Endpoints) -> str | None:
    """The limit that is reached, as a sentence; None while every endpoint has something to spend."""
    return next((why for endpoint in remote.values() if (why := endpoint.exhausted)), None)


def spent(remote: Endpoints) -> dict[str, dict[str, Any]]:
    """Calls, tokens read and written, and money, by endpoint."""
    return {name: asdict(endpoint.spent) for name, endpoint in remote.items()}


def in_words(name: str, costs: Mapping[str, Any]) -> str:
    """What one endpoint of ``spent`` was paid for, as a sentence."""
    money = f", {costs['money']:.4g} of money" if costs["money"] else ""
    return (
        f'endpoint "{name}": {costs["calls"]:,} answers, {costs["read"]:,} tokens read, {costs["written"]:,} written'
        f"{money}"
    )
