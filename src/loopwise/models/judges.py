"""A judge as a model of transformers: a body that reads, a pooled state, a head. Importing this module registers it.

One class has three heads. ``labels`` says which of some labels a text has, ``score`` gives it a number, and ``tokens``
fills in masked tokens, which is how a body made here learns to read before it learns to judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from loopwise.errors import ModelError
from loopwise.models.policy import Policy
from loopwise.models.templates import transcript
from loopwise.models.tokenizers import encodable, opening_id
from loopwise.models.trees import evaluating
from loopwise.runtime import Runtime
from loopwise.types import Completion, Prompt

Reading = tuple[str, str | None]
"""What a judge reads: a text, or a text and what follows it."""
TokenIds = Sequence[int]


class JudgeConfig(PreTrainedConfig):  # type: ignore[misc]  # mypy skips transformers
    """Shape of a judge, and what its figures mean.

    ``body`` is the configuration of the model below, ``model_type`` included. ``reads`` says which text is judged
    (completion, prompt or both), ``labels`` what the head's numbers stand for. ``temperature`` divides them before they
    are probabilities (Guo et al. 2017); ``centre`` is the score of an answer of the middling kind.
    """

    model_type = "loopwise_judge"

    body: dict[str, Any] | None = None
    head: str = "score"
    pooling: str = "mean"
    reads: str = "completion"
    labels: list[str] | None = None
    temperature: float = 1.0
    centre: float = 0.0
    dropout: float = 0.1
    initializer_range: float = 0.02
    max_position_embeddings: int | None = None
    hidden_size: int = 0
    vocab_size: int = 0


class AttentionPooling(nn.Module):
    """One learned query over the states of a text: ``softmax(q h / sqrt(H)) h``. It starts as their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States ``[B, T, H]`` with their mask ``[B, T]`` as one state a text, ``[B, H]``."""
        scores = (states @ self.query / math.sqrt(states.shape[-1])).masked_fill(mask == 0, -torch.inf)
        return torch.einsum("bt,bth->bh", scores.softmax(-1), states)


class TokenHead(nn.Module):
    """What BERT puts before its output layer (Devlin et al. 2019): a layer of its own, GELU, a layer norm."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, V]`` of states ``[N, H]``; the output layer is the embeddings ``[V, H]``."""
        return F.linear(self.norm(F.gelu(self.dense(states))), embeddings, self.bias)


class Judge(PreTrainedModel):  # type: ignore[misc]  # mypy skips transformers
    """A body, its pooled state, and a head; saves and loads as any model of transformers."""

    config_class = JudgeConfig
    base_model_prefix = ""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        if config.body is None:
            raise ModelError('config.json of a judge without the key "body". Train it again with `loopwise judge`.')
        body = dict(config.body)
        self.body = AutoModel.from_config(AutoConfig.for_model(body.pop("model_type"), **body))
        bare(self.body)
        self.dropout = nn.Dropout(config.dropout)
        self.pool = AttentionPooling(config.hidden_size) if config.pooling == "attention" else None
        if config.head == "tokens":
            self.head: nn.Module = TokenHead(config.hidden_size, config.vocab_size)
        else:
            self.head = nn.Linear(config.hidden_size, len(config.labels or ()) if config.head == "labels" else 1)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, predicting: torch.Tensor | None = None
    ) -> torch.Tensor:
        """fp32 logits of texts ``input_ids`` ``[B, T]``, padded on the right where ``attention_mask`` ``[B, T]`` is 0.

        ``labels``: ``[B, C]``. ``score``: ``[B]``. ``tokens``: ``[N, V]`` of the N positions where ``predicting``
        (bool ``[B, T]``) is set, row by row.
        """
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.config.head == "tokens":
            logits = self.head(states[predicting], self.get_input_embeddings().weight)
        else:
            logits = self.head(self.dropout(self._pooled(states, attention_mask)))
        exact: torch.Tensor = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return exact.squeeze(-1) if self.config.head == "score" else exact

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States ``[B, T, H]`` with their mask ``[B, T]`` as one state a text, ``[B, H]``."""
        pooling = self.config.pooling
        if self.pool is not None:
            pooled: torch.Tensor = self.pool(states, mask)
            return pooled
        if pooling == "mean":
            weights = mask[..., None].to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1)
        places = torch.zeros_like(mask[:, 0]) if pooling == "cls" else mask.sum(1) - 1
        rows = torch.arange(len(states), device=states.device)
        chosen: torch.Tensor = states[rows, places]
        return chosen

    def get_input_embeddings(self) -> nn.Module:
        """The body's embeddings."""
        embeddings: nn.Module = self.body.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer; of tokens there is none besides the embeddings."""
        return None if self.config.head == "tokens" else self.head

    def set_output_embeddings(self, layer: nn.Module) -> None:
        """Put another output layer in the place of the head."""
        self.head = layer

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AttentionPooling):
            nn.init.zeros_(module.query)
        elif isinstance(module, TokenHead):
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def bare(body: Any) -> None:
    """Take away what a body has for other purposes: BERT's own pooler, and a cache of what was read."""
    if getattr(body, "pooler", None) is not None:
        body.pooler = None
    if hasattr(body.config, "use_cache"):
        body.config.use_cache = False


def judge_of(policy: Policy, place: str = "this policy") -> Judge:
    """The judge in a policy. Raises ModelError where it is a language model."""
    module = policy.weights.module if policy.weights else None
    if not isinstance(module, Judge) or module.config.head == "tokens":
        raise ModelError(f"{place}: a language model, no judge. Train one with `loopwise judge`.")
    return module


def reading_of(reads: str, prompt: Prompt, completion: Completion) -> Reading:
    """What a judge reads of a prompt and its completion. Messages are read as lines ``role: content``."""
    if reads == "completion":
        return transcript(completion, "\n"), None
    return transcript(prompt, "\n"), transcript(completion, "\n") if reads == "both" else None


def encode_readings(policy: Policy, readings: Sequence[Reading]) -> list[tuple[int, ...]]:
    """Token ids of what a judge reads, with the tokenizer's own marks around it, never cut.

    A text that spells a special token is the characters of it: who is judged must not be able to write marks. Where
    the last state is pooled, a text is closed with end-of-text.
    """
    tokenizer, config = policy.tokenizer, judge_config(policy)
    alone = [first for first, second in readings if second is None]
    pairs = [(first, second) for first, second in readings if second is not None]
    encoded = iter(_encode(tokenizer, alone)) if alone else iter(())
    paired = iter(_encode(tokenizer, *zip(*pairs, strict=True))) if pairs else iter(())
    rows = []
    for _, second in readings:
        ids = list(next(encoded if second is None else paired))
        end = tokenizer.eos_token_id
        if config.pooling == "last" and end is not None and ids[-1:] != [end]:
            ids.append(end)
        rows.append(tuple(ids) if ids else (_blank(tokenizer),))
    return rows


def judge_config(policy: Policy) -> Any:
    """The configuration of the judge in a policy."""
    assert policy.weights is not None
    return policy.weights.module.config


def padded(judge: nn.Module, rows: Sequence[TokenIds]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``[B, T]`` of B texts, padded on the right, and their mask ``[B, T]``, where the judge is."""
    device = next(judge.parameters()).device
    # RoBERTa counts positions by what is padding, so it has to be its own token.
    padding = getattr(judge.config, "pad_token_id", None) or 0
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(longest, device=device) < lengths[:, None]).long()


def read_texts(judge: nn.Module, rows: Sequence[TokenIds]) -> torch.Tensor:
    """The judge's logits of B texts, with gradients: ``[B, C]``, or ``[B]`` of a score."""
    logits: torch.Tensor = judge(*padded(judge, rows))
    return logits


def judge_texts(
    judge: nn.Module, rows: Sequence[TokenIds], runtime: Runtime, tokens_per_pass: int = 8192
) -> np.ndarray:
    """The judge's logits of texts without gradients: float64 ``[N, C]``, or ``[N]`` of a score.

    Texts of like length share a forward pass, of at most ``tokens_per_pass`` padded tokens.
    """
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
    found: list[np.ndarray] = []
    first = 0
    with torch.no_grad(), evaluating(judge), runtime.autocast():
        while first < len(order):
            part = order[first : first + max(1, tokens_per_pass // len(rows[order[first]]))]
            found.append(read_texts(judge, [rows[place] for place in part]).double().cpu().numpy())
            first += len(part)
    logits = np.concatenate(found) if found else np.zeros(0)
    return logits[np.argsort(order, kind="stable")] if found else logits


def _encode(tokenizer: Any, *texts: Sequence[str]) -> list[list[int]]:
    sides = [list(map(encodable, side)) for side in texts]
    rows = tokenizer(*sides, split_special_tokens=True, truncation=False, padding=False)["input_ids"]
    return [list(row) for row in rows]


def _blank(tokenizer: Any) -> int:
    """What an empty text is read as where the tokenizer puts no marks around it."""
    found = opening_id(tokenizer)
    return int(tokenizer.pad_token_id or 0) if found is None else found


AutoConfig.register(JudgeConfig.model_type, JudgeConfig)
AutoModel.register(JudgeConfig, Judge)
