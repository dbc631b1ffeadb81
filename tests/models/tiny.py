"""A tiny random LSTM, beside the transformers of the shared fixtures."""

from __future__ import annotations

from typing import Any

import torch

from loopwise.models.lstm import LstmConfig, LstmForCausalLM
from loopwise.models.policy import Policy, Weights

CONTEXT = 48


def tiny_lstm(tokenizer: Any, *, seed: int = 0, **changes: Any) -> Policy:
    """Two blocks of width 32; weights as wide as those of the shared fixtures; keywords change its configuration."""
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "context": CONTEXT}
    common = {"initializer_range": 0.2, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = LstmForCausalLM(LstmConfig(**shape | common | changes))
    return Policy(Weights.of(module), tokenizer)
