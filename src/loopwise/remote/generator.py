"""Completions from a remote model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import ConfigError, RemoteError
from loopwise.models.prompts import render
from loopwise.remote.answers import is_kept_back
from loopwise.remote.client import Endpoint, Reply, ask_all
from loopwise.types import LOST, Message, Request, Sample, Sampling

_SEEDS = 2**31
"""Seeds that every server takes: some hold them in 32 bits with a sign."""


@dataclass(frozen=True)
class RemoteGenerator:
    """Draws completions from an endpoint: text alone, no token ids and no log-probabilities.

    The policy's prompt state is rendered as for a model of our own; a text prompt becomes one message of the user.
    """

    endpoint: Endpoint
    offers = frozenset({"text"})

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        """One sample a request, in order. One that failed has no text and the finish reason LOST.

        Each request's key is sent as its seed, to servers that take one; whether they keep to it is theirs. Raises
        RemoteError where the endpoint refuses every call, ConfigError for ``top_k``, which the API does not have.
        """
        if sampling.top_k:
            raise ConfigError(
                f'endpoint "{self.endpoint.name}": "sampling.top_k" is no part of its API. Leave it out; top_p is.'
            )
        replies = await ask_all(
            [
                self.endpoint.chat(
                    _messages(policy, request),
                    place=f"sample/{request.sample_id}",
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    stop=sampling.stop,
                    seed=request.key % _SEEDS,
                )
                for request in requests
            ]
        )
        return [_sample(policy, request, reply) for request, reply in zip(requests, replies, strict=True)]


def _messages(policy: Any, request: Request) -> Sequence[Message]:
    prompt = render(request.problem, policy.prompt_state)
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _sample(policy: Any, request: Request, reply: Reply | RemoteError) -> Sample:
    """The sample; one that was lost where no answer came, or the server kept it back: no words of the model's."""
    text, reason = "", LOST
    if not isinstance(reply, RemoteError) and not is_kept_back(reply.text, reply.finish_reason):
        text, reason = reply.text, reply.finish_reason
    return Sample(
        id=request.sample_id,
        problem_id=request.problem.id,
        group=request.group,
        index=request.index,
        policy_id=policy.id,
        text=text,
        finish_reason=reason,
    )
