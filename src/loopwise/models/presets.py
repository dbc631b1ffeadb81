"""Models made from nothing, by name."""

from __future__ import annotations

import torch

from loopwise.errors import ConfigError, nearest
from loopwise.models.folders import attention_for, calm_transformers
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime, seed_key


def create_policy(preset: str, runtime: Runtime) -> Policy:
    """A freshly initialised policy. Initialisation is a pure function of preset and seed.

    Raises ConfigError for an unknown preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f'key "model.create": unknown preset {preset!r}. {nearest(preset, PRESETS)}')
    calm_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_key("initialise", preset, runtime.seed) % 2**63)
        return PRESETS[preset](runtime)


def character_tokenizer(alphabet: str) -> object:
    """A tokenizer with one token per character, plus padding and end-of-text; it round-trips its alphabet exactly."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {character: place for place, character in enumerate(alphabet, start=len(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def _demo(runtime: Runtime) -> Policy:
    """GPT-2 shape: 2 layers, width 128, 4 heads, learned positions, no dropout, 0.40M parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = character_tokenizer("0123456789+=")
    config = GPT2Config(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    module = GPT2LMHeadModel._from_config(config, attn_implementation=attention_for(config, runtime))
    return Policy(Weights.of(module.to(runtime.torch_device)), tokenizer)


PRESETS = {"demo": _demo}
