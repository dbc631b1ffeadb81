"""What both sides are given: a Llama of 6.3 million parameters with its tokenizer, prompts, and a reward."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopwise.runtime import seed_key

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
END = SPECIAL[2]
CONTEXT = 640
_DIGITS = "0123456789"


@dataclass(frozen=True)
class Shape:
    """A Llama: layers, width, width inside the feed-forward layers, attention heads."""

    layers: int
    width: int
    inner: int
    heads: int

    @property
    def multiplied(self) -> int:
        """Weights that every token is multiplied with: those of the blocks, without tables and norms."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)

    def decoding_bytes(self, prompts: int, prompt: int, samples: int, completion: int) -> float:
        """The least that sampling in fp32 must read: the weights and each sample's own keys and values once a token,
        a prompt's once a token for all of its samples.
        """
        own = prompts * samples * completion * (completion - 1) // 2
        kept = own + prompts * prompt * completion
        return 4.0 * (self.multiplied * completion + 2 * self.layers * self.width * kept)


FULL = Shape(layers=6, width=256, inner=1024, heads=4)
QUICK = Shape(layers=2, width=32, inner=64, heads=2)


def save_model(shape: Shape, folder: Path, *, end_of_text: bool) -> Path:
    """Write a model folder with random weights, always the same for a shape.

    Without ``end_of_text`` neither model nor tokenizer know a token that ends a completion.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from loopwise.models.folders import calm_transformers

    calm_transformers()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2 if end_of_text else None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer(end_of_text=end_of_text).save_pretrained(folder)
    return folder


def digit_share(completions: Sequence[str], **_: Any) -> list[float]:
    """The reward: the share of a completion's characters that are digits."""
    return [sum(character in _DIGITS for character in text) / max(1, len(text)) for text in completions]


def generator(*key: object) -> np.random.Generator:
    """Random numbers, a pure function of ``key``."""
    return np.random.Generator(np.random.Philox(key=seed_key(*key)))


def text(length: int, *key: object) -> str:
    """Digits and plus signs, ``length`` of them, a pure function of ``key``."""
    return "".join(generator("text", *key).choice(list(_DIGITS + "+"), size=length))


def prompt(place: int, length: int) -> str:
    """The prompt of a place, of ``length`` tokens (at least 6): no two are alike."""
    return f"{place:05d}{text(length - 6, 'prompt', place)}="


def prompts(count: int, length: int) -> list[str]:
    """So many different prompts of ``length`` tokens each."""
    return [prompt(place, length) for place in range(count)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _tokenizer(*, end_of_text: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate((*SPECIAL, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[3]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=END if end_of_text else None,
        unk_token=SPECIAL[3],
        padding_side="left",
    )
