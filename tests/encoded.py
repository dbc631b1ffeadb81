"""What rows and completions come to, for tests that look at them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loopwise.config.blocks import RowFormat
from loopwise.data.messages import Completion
from loopwise.data.rows import read_source
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_texts
from loopwise.types import Problem


@dataclass(frozen=True)
class Labelled:
    """A problem and the completion to learn: text, or the messages that a conversation goes on with."""

    problem: Problem
    completion: Completion


def labelled_from_rows(
    path: str | Path,
    *,
    format: RowFormat = "auto",
    prompt_column: str | None = None,
    completion_column: str | None = None,
) -> list[Labelled]:
    """The rows of a file that are learned from."""
    source = read_source(path, format, prompt_column, completion_column, supervised=True)
    return [Labelled(problem, source.completions[problem.id]) for problem in source.problems]


def encode_completions(policy: Policy, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as a model writes it: closed with end-of-text where the tokenizer has one."""
    end = policy.tokenizer.eos_token_id
    rows = encode_texts(policy, texts)
    return [[*row, end] if end is not None else row for row in rows]
