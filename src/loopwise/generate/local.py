"""Batched sampling from a policy's own weights, with a key-value cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loopwise.errors import ModelError
from loopwise.generate.sampling import choose
from loopwise.models.logps import last_logits
from loopwise.models.policy import Policy
from loopwise.models.tokens import decode, encode_fitting, special_id
from loopwise.runtime import Runtime, uniforms
from loopwise.types import Request, Sample, Sampling, Segment


@dataclass
class _Row:
    """A completion while it grows."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish_reason: str = "length"
    text: str | None = None


@dataclass(frozen=True)
class LocalGenerator:
    """Generates with transformers' own forward pass: each prompt is read once per group, finished rows leave.

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
        rows = [_Row() for _ in requests]
        steps = self._decode(policy, prompts, [places[request.group] for request in requests], requests, rows, sampling)
        going = True
        while going:
            # The modes are the thread's: they must not outlast the step, after which other tasks may have their turn.
            with torch.inference_mode(), self.runtime.autocast():
                going = next(steps, None) is not None
            # Where cancellation comes in: without it, Ctrl-C would wait for the end of the unit.
            await asyncio.sleep(0)
        return _finish(policy, prompts, places, requests, rows)

    def _decode(
        self,
        policy: Policy,
        prompts: list[list[int]],
        row_groups: list[int],
        requests: Sequence[Request],
        rows: list[_Row],
        sampling: Sampling,
    ) -> Iterator[int]:
        """Fill ``rows``; yields the position of each token after which some rows go on."""
        assert policy.weights is not None
        module, device = policy.weights.module, self.runtime.torch_device
        cache, logits, mask, lengths = prefill(module, prompts, device)
        select = torch.tensor(row_groups, device=device)
        cache.batch_select_indices(select)
        logits, lengths = logits[select], lengths[select]
        mask = mask[select] if mask is not None else None
        keys = np.array([request.key for request in requests], dtype=np.uint64)
        alive = np.arange(len(rows))
        watch = _Watch(policy, sampling)
        for position in range(sampling.max_tokens):
            draws = torch.from_numpy(uniforms(keys[alive], position))
            tokens, logps, entropies = choose(logits, draws, sampling)
            going = _append(rows, alive, tokens, logps, entropies, watch)
            if self.on_token is not None:
                for row in alive.tolist():
                    self.on_token(requests[row], rows[row].tokens)
            if position + 1 == sampling.max_tokens or not going.any():
                return
            if not going.all():
                chosen = torch.from_numpy(np.flatnonzero(going)).to(device)
                cache.batch_select_indices(chosen)
                tokens, lengths, alive = tokens[chosen], lengths[chosen], alive[going]
                mask = mask[chosen] if mask is not None else None
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            logits = advance(module, cache, tokens, mask, lengths + position)
            yield position


def prefill(
    module: Any, prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Any, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Read each prompt once: the cache, next-token logits ``[P, V]``, attention mask ``[P, T]`` and lengths ``[P]``.

    Shorter prompts are padded on the left; the mask is ``None`` when all have one length.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    input_ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask: torch.Tensor | None = None
    positions = torch.arange(width, device=device)[None].expand(len(prompts), -1)
    if int(lengths.min()) < width:
        mask = (positions >= (width - lengths)[:, None]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = _new_cache(module)
    output = module(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **last_logits(module, 1),
    )
    return cache, output.logits[:, -1], mask, lengths


def _new_cache(module: Any) -> Any:
    """The module's own kind of memory where it makes one, as our LSTM does, and keys and values elsewhere."""
    if hasattr(module, "make_cache"):
        return module.make_cache()
    from transformers import DynamicCache

    return DynamicCache(config=module.config)


def advance(
    module: Any, cache: Any, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
) -> torch.Tensor:
    """Read one more token of each row: next-token logits ``[S, V]`` of tokens ``[S]`` at positions ``[S]``."""
    output = module(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    return output.logits[:, -1]  # type: ignore[no-any-return]


class _Watch:
    """Says when a row is finished: an end-of-text token or a stop string.

    A stop string that is one special token, as a chat model's end of turn, is found by its id: no text shows it.
    """

    def __init__(self, policy: Policy, sampling: Sampling) -> None:
        self.policy = policy
        special = {stop: special_id(policy, stop) for stop in sampling.stop}
        self.ends = {*policy.end_ids, *(end for end in special.values() if end is not None)}
        self.stop = [stop for stop, end in special.items() if end is None]

    def finished(self, row: _Row) -> bool:
        if row.tokens[-1] in self.ends:
            row.finish_reason = "stop"
            return True
        if not self.stop:
            return False
        # A token holds at least one byte, so the stop string lies within its own length in bytes, plus the last token.
        reach = max(len(stop.encode()) for stop in self.stop) + 8
        tail = decode(self.policy, [row.tokens[-reach:]])[0]
        if not any(stop in tail for stop in self.stop):
            return False
        text = decode(self.policy, [row.tokens])[0]
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        if not cuts:  # a tokenizer that writes its first token differently, as WordPiece does
            return False
        row.finish_reason, row.text = "stop", text[: min(cuts)]
        return True


def _append(
    rows: list[_Row],
    alive: np.ndarray,
    tokens: torch.Tensor,
    logps: torch.Tensor,
    entropies: torch.Tensor,
    watch: _Watch,
) -> np.ndarray:
    """Add one token to each living row; bool ``[S]``: which go on."""
    going = np.ones(len(alive), dtype=bool)
    steps = zip(alive.tolist(), tokens.tolist(), logps.tolist(), entropies.tolist(), strict=True)
    for place, (row_number, token, logp, entropy) in enumerate(steps):
        row = rows[row_number]
        row.tokens.append(token)
        row.logps.append(logp)
        row.entropies.append(entropy)
        going[place] = not watch.finished(row)
    return going


def _finish(
    policy: Policy,
    prompts: list[list[int]],
    places: dict[int, int],
    requests: Sequence[Request],
    rows: list[_Row],
) -> list[Sample]:
    texts = decode(policy, [row.tokens for row in rows])
    samples = []
    for request, row, text in zip(requests, rows, texts, strict=True):
        count = len(row.tokens)
        samples.append(
            Sample(
                id=request.sample_id,
                problem_id=request.problem.id,
                group=request.group,
                index=request.index,
                policy_id=policy.id,
                text=text if row.text is None else row.text,
                finish_reason=row.finish_reason,
                prompt_ids=tuple(prompts[places[request.group]]),
                token_ids=tuple(row.tokens),
                loss_mask=(1,) * count,
                logps=tuple(row.logps),
                segments=(Segment("model", 0, count),),
                stats={"entropy": sum(row.entropies) / count},
            )
        )
    return samples
