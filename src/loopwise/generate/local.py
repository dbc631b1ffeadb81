"""Batched sampling from a policy's own weights, with a key-value cache."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loopwise.errors import ModelError
from loopwise.generate.check import Rows, why_not_shared_prefix
from loopwise.generate.padded import PaddedRows
from loopwise.generate.prefix_cache import closed_up
from loopwise.generate.sampling import Chosen, choose
from loopwise.generate.twin import twin_of
from loopwise.models.policy import Policy
from loopwise.models.tokens import decode, encode_fitting, special_id
from loopwise.runtime import Runtime, uniforms
from loopwise.types import Request, Sample, Sampling, Segment


class _Drawn:
    """What was drawn so far, ``[S, max_tokens]``: token ids, and the log-probability of each and what was said of its
    distribution; ``counts`` of each row."""

    def __init__(self, rows: int, max_tokens: int) -> None:
        self.tokens = np.zeros((rows, max_tokens), dtype=np.int64)
        self.logps = np.zeros((rows, max_tokens), dtype=np.float32)
        self.entropies = np.zeros((rows, max_tokens), dtype=np.float32)
        self.certainties = np.zeros((rows, max_tokens), dtype=np.float32)
        self.counts = np.zeros(rows, dtype=np.int64)
        self.stopped: dict[int, str | None] = {}

    def add(self, alive: np.ndarray, position: int, chosen: Chosen) -> None:
        """One token more of the rows ``alive``."""
        kept: list[np.ndarray] = [self.tokens, self.logps, self.entropies, self.certainties]
        for values, new in zip(kept, chosen, strict=True):
            values[alive, position] = new.cpu().numpy()
        self.counts[alive] = position + 1

    def ids(self, row: int, last: int | None = None) -> list[int]:
        """A row's token ids, or its ``last`` ones."""
        count = int(self.counts[row])
        ids: list[int] = self.tokens[row, 0 if last is None else max(0, count - last) : count].tolist()
        return ids


@dataclass(frozen=True)
class LocalGenerator:
    """Generates with transformers' own forward pass: each prompt is read and, where the architecture allows it, kept
    once per group; finished rows leave.

    ``on_token(request, token_ids)`` is told of every token as it is drawn, with all of its completion so far.
    """

    runtime: Runtime
    on_token: Callable[[Request, Sequence[int]], None] | None = None
    offers = frozenset({"weights", "logprobs", "token_ids", "text"})

    async def generate(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        """One sample per request, in order. All requests are decoded as one batch: a work unit.

        Raises PromptTooLongError when a prompt and ``max_tokens`` exceed the context, ModelError for a policy without
        weights.
        """
        if policy.weights is None:
            raise ModelError("this policy has no weights to generate with. Name a model, or give its own generator.")
        problems = list({request.group: request.problem for request in requests}.values())
        places = {group: place for place, group in enumerate(dict.fromkeys(request.group for request in requests))}
        prompts = encode_fitting(policy, problems, sampling.max_tokens, "generation")
        drawn = _Drawn(len(requests), sampling.max_tokens)
        steps = self._decode(
            policy, prompts, [places[request.group] for request in requests], requests, drawn, sampling
        )
        going = True
        while going:
            # The modes are the thread's: they must not outlast the step, after which other tasks may have their turn.
            with torch.inference_mode(), self.runtime.autocast():
                going = next(steps, None) is not None
            # Where cancellation comes in: without it, Ctrl-C would wait for the end of the unit.
            await asyncio.sleep(0)
        return _finish(policy, prompts, places, requests, drawn)

    def _decode(
        self,
        policy: Policy,
        prompts: list[list[int]],
        row_prompts: list[int],
        requests: Sequence[Request],
        drawn: _Drawn,
        sampling: Sampling,
    ) -> Iterator[int]:
        """Fill ``drawn``; yields the position of each token after which some rows go on."""
        rows = self._open(policy, prompts, row_prompts, sampling.max_tokens)
        keys = np.array([request.key for request in requests], dtype=np.uint64)
        alive = np.arange(len(requests))
        watch = _Watch(policy, sampling)
        for position in range(sampling.max_tokens):
            found = choose(rows.logits, torch.from_numpy(uniforms(keys[alive], position)), sampling)
            drawn.add(alive, position, found)
            going = watch.going(drawn, alive)
            if self.on_token is not None:
                for row in alive.tolist():
                    self.on_token(requests[row], drawn.ids(row))
            if position + 1 == sampling.max_tokens or not going.any():
                return
            tokens = found.tokens
            if not going.all():
                kept = closed_up(going)
                rows.keep(kept)
                tokens, alive = tokens[torch.from_numpy(kept).to(tokens.device)], alive[kept]
            rows.read(tokens)
            yield position

    def _open(self, policy: Policy, prompts: list[list[int]], row_prompts: list[int], max_tokens: int) -> Rows:
        """The rows with their prompts read, in the fastest way that the module allows."""
        assert policy.weights is not None
        module, device = policy.weights.module, self.runtime.torch_device
        shares = why_not_shared_prefix(module) is None
        if torch.is_autocast_enabled(device.type):
            module = twin_of(module, linear=torch.get_autocast_dtype(device.type))
        if shares:
            from loopwise.generate.prefix import SharedRows  # transformers takes seconds to load

            return SharedRows(module, prompts, row_prompts, max_tokens, device)
        return PaddedRows(module, prompts, row_prompts, device)


class _Watch:
    """Says when a row is finished: an end-of-text token or a stop string.

    A stop string that is one special token, as a chat model's end of turn, is found by its id: no text shows it.
    """

    def __init__(self, policy: Policy, sampling: Sampling) -> None:
        self.policy = policy
        special = {stop: special_id(policy, stop) for stop in sampling.stop}
        self.ends = [*policy.end_ids, *(end for end in special.values() if end is not None)]
        self.stop = [stop for stop, end in special.items() if end is None]

    def going(self, drawn: _Drawn, alive: np.ndarray) -> np.ndarray:
        """Which of the rows ``alive`` go on after their last token: bool ``[S]``."""
        going = ~np.isin(drawn.tokens[alive, drawn.counts[alive] - 1], self.ends)
        for row in alive[~going].tolist():
            drawn.stopped[row] = None
        if self.stop and going.any():
            places = np.flatnonzero(going)
            for place, text in zip(places.tolist(), self._cut(drawn, alive[places].tolist()), strict=True):
                if text is not None:
                    drawn.stopped[int(alive[place])] = text
                    going[place] = False
        return going

    def _cut(self, drawn: _Drawn, rows: Sequence[int]) -> list[str | None]:
        """The text of each row before its first stop string; None where it has none."""
        # A token holds at least one byte, so the stop string lies within its own length in bytes, plus the last token.
        reach = max(len(stop.encode()) for stop in self.stop) + 8
        tails = decode(self.policy, [drawn.ids(row, reach) for row in rows])
        return [
            self._before_stop(drawn.ids(row)) if any(stop in tail for stop in self.stop) else None
            for row, tail in zip(rows, tails, strict=True)
        ]

    def _before_stop(self, token_ids: list[int]) -> str | None:
        text = decode(self.policy, [token_ids])[0]
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        # None in the whole text: a tokenizer that writes its first token differently, as WordPiece does.
        return text[: min(cuts)] if cuts else None


def _finish(
    policy: Policy,
    prompts: list[list[int]],
    places: dict[int, int],
    requests: Sequence[Request],
    drawn: _Drawn,
) -> list[Sample]:
    ids = [drawn.ids(row) for row in range(len(requests))]
    texts = decode(policy, ids)
    samples = []
    for row, (request, token_ids, text) in enumerate(zip(requests, ids, texts, strict=True)):
        count = len(token_ids)
        cut = drawn.stopped.get(row)
        samples.append(
            Sample(
                id=request.sample_id,
                problem_id=request.problem.id,
                group=request.group,
                index=request.index,
                policy_id=policy.id,
                text=text if cut is None else cut,
                finish_reason="stop" if row in drawn.stopped else "length",
                prompt_ids=tuple(prompts[places[request.group]]),
                token_ids=tuple(token_ids),
                loss_mask=(1,) * count,
                logps=tuple(drawn.logps[row, :count].tolist()),
                segments=(Segment("model", 0, count),),
                stats=_stats(drawn, row),
            )
        )
    return samples


def _stats(drawn: _Drawn, row: int) -> dict[str, float]:
    """Means over a row's tokens, in nats: ``entropy`` and, where no token was impossible, ``self_certainty``."""
    count = int(drawn.counts[row])
    entropy, certainty = (sum(v[row, :count].tolist()) / count for v in (drawn.entropies, drawn.certainties))
    return {"entropy": entropy} | ({"self_certainty": certainty} if math.isfinite(certainty) else {})
