"""Tiny random models of architectures that other people's users bring."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FOREIGN = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "opt": {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
        "dropout": 0.0,
    },
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma2": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    },
    "cohere": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "granite": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "logits_scaling": 8.0,
    },
}  # fmt: skip


def foreign(kind: str, **changes: Any) -> Any:
    """An untrained model of a kind in FOREIGN; keywords change its configuration."""
    common = {"vocab_size": 40, "initializer_range": 0.2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **common | FOREIGN[kind] | changes)
    config.bos_token_id = config.eos_token_id = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
