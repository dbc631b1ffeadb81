"""Models made from nothing: a preset names the architecture, and ``depth`` is the dial from which its size follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from loopwise.config.blocks import ModelConfig, TokenizerConfig
from loopwise.errors import ConfigError, nearest
from loopwise.models.folders import attention_for, calm_transformers
from loopwise.models.policy import Policy, Weights
from loopwise.models.tokenizers import end_token_ids, make_tokenizer, vocabulary_size
from loopwise.runtime import Runtime, seed_key

WIDTH_A_LAYER = 32
WIDTH_A_HEAD = 32
Texts = Callable[[], Iterable[str]]


def create_policy(model: ModelConfig, runtime: Runtime, texts: Texts | None = None) -> Policy:
    """A freshly initialised policy. Initialisation is a pure function of the model's shape and ``runtime.seed``.

    ``texts`` gives the text to train a tokenizer on, each time it is called. Raises ConfigError for an unknown preset,
    for a shape that it cannot have, and where a tokenizer needs text and there is none.
    """
    preset = str(model.create)
    if preset not in PRESETS:
        raise ConfigError(f'key "model.create": unknown preset {preset!r}. {nearest(preset, PRESETS)}')
    calm_transformers()
    if preset == "demo":
        tokenizer: Any = character_tokenizer("0123456789+=")
    else:
        tokenizer = _tokenizer(model.tokenizer or TokenizerConfig(), texts)
    config = PRESETS[preset](model, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_key(model, runtime.seed) % 2**63)
        module = _module(config, attention_for(config, runtime))
    return Policy(Weights.of(module.to(runtime.torch_device)), tokenizer)


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


@dataclass(frozen=True)
class _Shape:
    """Width and attention heads that follow from a model's dials."""

    width: int
    heads: int

    @staticmethod
    def of(model: ModelConfig, *, even_heads: bool) -> _Shape:
        """Rotary positions turn pairs of numbers, so there each head's width must be even: ``even_heads``."""
        width = model.width or WIDTH_A_LAYER * model.depth
        heads = model.heads or max(1, width // WIDTH_A_HEAD)
        unit = 2 * heads if even_heads else heads
        if width % unit:
            good = max(unit, round(width / unit) * unit)
            even = " of an even number each" if even_heads else ""
            raise ConfigError(
                f'key "model.width": {width} cannot be split into {heads} heads{even}. The nearest is {good}.'
            )
        return _Shape(width, heads)


def _tokenizer(config: TokenizerConfig, texts: Texts | None) -> Any:
    trained = config.path is None and config.kind != "byte"
    if trained and texts is None:
        raise ConfigError(
            f'key "model.tokenizer": a tokenizer of the kind {config.kind} is trained on text, and there is none here. '
            "Use kind: byte, or name the folder of one under model.tokenizer.path."
        )
    return make_tokenizer(config, texts() if trained and texts is not None else ())


def _key(model: ModelConfig, seed: int) -> int:
    """What the first weights depend on: not on adapters put in later, nor on where a tokenizer came from."""
    if model.create == "demo":
        return seed_key("initialise", "demo", seed)
    return seed_key("initialise", model.model_dump_json(exclude={"path", "tokenizer", "lora"}), seed)


def _module(config: Any, attention: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    ends = end_token_ids(tokenizer)
    return {
        "vocab_size": vocabulary_size(tokenizer),
        "bos_token_id": None,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": tokenizer.pad_token_id,
    }


def _demo(model: ModelConfig, tokenizer: Any) -> Any:
    """GPT-2 shape: 2 layers, width 128, 4 heads, learned positions, no dropout, 0.40M parameters."""
    shape = ModelConfig(create="gpt2", depth=2, width=128, heads=4, context=32)
    return _gpt2(shape, tokenizer, activation="gelu")


def _gpt2(model: ModelConfig, tokenizer: Any, activation: str = "gelu_new") -> Any:
    """GPT-2 (Radford et al. 2019): learned positions, dropout everywhere, feed-forward layers of 4 times the width."""
    from transformers import GPT2Config

    shape = _Shape.of(model, even_heads=False)
    return GPT2Config(
        n_embd=shape.width,
        n_layer=model.depth,
        n_head=shape.heads,
        n_positions=model.context,
        resid_pdrop=model.dropout,
        embd_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        activation_function=activation,
        initializer_range=model.init_std,
        **_special_ids(tokenizer),
    )


def _llama(model: ModelConfig, tokenizer: Any) -> Any:
    """Llama (Touvron et al. 2023): rotary positions, gated feed-forward layers of 8/3 of the width; drops attention."""
    from transformers import LlamaConfig

    return LlamaConfig(**_rotary(model), **_special_ids(tokenizer))


def _qwen3(model: ModelConfig, tokenizer: Any) -> Any:
    """Qwen3 (Yang et al. 2025): as Llama, with queries and keys normalised."""
    from transformers import Qwen3Config

    shape = _rotary(model)
    head = shape["hidden_size"] // shape["num_attention_heads"]
    return Qwen3Config(**shape, head_dim=head, **_special_ids(tokenizer))


def _rotary(model: ModelConfig) -> dict[str, Any]:
    shape = _Shape.of(model, even_heads=True)
    return {
        "hidden_size": shape.width,
        "intermediate_size": max(32, round(shape.width * 8 / 3 / 32) * 32),
        "num_hidden_layers": model.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": model.context,
        "attention_dropout": model.dropout,
        "initializer_range": model.init_std,
        "tie_word_embeddings": True,  # at these sizes an output layer of its own would be most of the model
    }


def _lstm(model: ModelConfig, tokenizer: Any) -> Any:
    """Our own LSTM (see lstm.py): ``context`` is the window it is trained on, not a limit."""
    from loopwise.models.lstm import LstmConfig

    if model.heads is not None:
        raise ConfigError('key "model.heads": an LSTM has no attention heads. Leave it out.')
    return LstmConfig(
        hidden_size=model.width or WIDTH_A_LAYER * model.depth,
        num_hidden_layers=model.depth,
        context=model.context,
        dropout=model.dropout,
        initializer_range=model.init_std,
        **_special_ids(tokenizer),
    )


PRESETS: dict[str, Callable[[ModelConfig, Any], Any]] = {
    "demo": _demo,
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen3": _qwen3,
    "lstm": _lstm,
}
