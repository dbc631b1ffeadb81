"""Fluency: how likely a frozen model finds a text, after its prompt or alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from loopwise.evaluate.likelihood import sum_logps
from loopwise.evaluate.parts import Judged
from loopwise.evaluate.perplexity import Perplexity
from loopwise.evaluate.references import Figures
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_rows
from loopwise.runtime import Runtime
from loopwise.types import Problem, Sample


class Fluency:
    """A judge: 1 / perplexity of each completion a token, which is in (0, 1]; 0 for an empty one."""

    def __init__(self, policy: Policy, runtime: Runtime, *, after_prompt: bool) -> None:
        self._policy = policy
        self._runtime = runtime
        self._after_prompt = after_prompt

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Judge samples [S]; one that does not fit into the frozen model's context is masked."""
        judged = Judged.nothing(len(samples))
        rows = self._rows(problems, samples)
        fits = [place for place, row in enumerate(rows) if self._fits(row)]
        for place in set(range(len(rows))) - set(fits):
            judged.errors[place] = f"{rows[place].total_tokens} tokens are over the frozen model's context"
        sums = sum_logps(self._policy, [rows[place] for place in fits], self._runtime)
        for place, total in zip(fits, sums, strict=True):
            count = len(rows[place].token_ids)
            judged.rewards[place] = math.exp(total / count) if count else 0.0
        return judged

    def report(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Figures | None:
        """Perplexity a token and bits per byte of all completions together, in the frozen model's tokens."""
        rows = self._rows(problems, samples)
        read = [place for place, row in enumerate(rows) if len(row.token_ids) and self._fits(row)]
        if not read:
            return None
        nats = -float(sum_logps(self._policy, [rows[place] for place in read], self._runtime).sum())
        tokens = sum(len(rows[place].token_ids) for place in read)
        found = Perplexity(nats, tokens, sum(len(samples[place].text.encode()) for place in read), len(read))
        figures = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        return {**figures, "tokens": tokens, "completions": len(read)}

    def close(self) -> None:
        """Nothing to end."""

    def _rows(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> list[TokenRow]:
        read = [replace(p, shown=None) if self._after_prompt else Problem(p.id, "") for p in problems]
        return encode_rows(self._policy, read, [sample.text for sample in samples], end_of_text=False)

    def _fits(self, row: TokenRow) -> bool:
        limit = self._policy.weights.context_length if self._policy.weights else None
        return limit is None or row.total_tokens <= limit
