"""Tokenizers made here: characters, bytes, byte-level BPE. Each reads any Unicode text and gives it back exactly.

All three stand on the 256 bytes of UTF-8, so nothing is unknown. What a person or a model wrote is only ever text to
them: a literal ``<eos>`` in it becomes the bytes of ``<eos>``, never the token that ends a document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from loopwise.config.blocks import TokenizerConfig
from loopwise.errors import ConfigError

PADDING, END_OF_TEXT = "<pad>", "<eos>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- message['content'] + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, with the marks of what the assistant writes: its content and the end of its turn."""

# Where BPE may not merge across: words with the space before them, single digits, punctuation with the line break
# after it, white space. Scripts without spaces are cut at punctuation alone, so that merges find their words.
_PIECES = r"[ '’]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|[^\S\r\n]*[\r\n]+|\s+(?!\S)|\s+"
# Characters that may be one token stand alone. The rest is single bytes in runs, which are quicker, but a run must not
# be looked up whole where it spells a special token: each of those begins with this bracket.
_ALONE = r"[^\x00-\x7f]|<"
_LITERAL = "literal_text"


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str] = ()) -> Any:
    """A ``PreTrainedTokenizerFast`` with ``<pad>`` and ``<eos>``, padding on the left; equal texts make equal ones.

    - ``char``: a token a character, for the ``vocabulary`` most frequent characters of ``texts`` beyond ASCII (equally
      frequent ones by code point); ASCII is its bytes anyway, and all other characters are their UTF-8 bytes.
    - ``byte``: a token a byte of UTF-8; needs no texts.
    - ``bpe``: byte-level BPE (Sennrich et al. 2016, over bytes as in Radford et al. 2019) learned from ``texts``, at
      most ``vocabulary`` tokens in all; pairs seen once are not merged.

    ``chat`` adds ``<|im_start|>``, ``<|im_end|>`` and the ChatML template. ``path`` names a tokenizer to load instead.
    Raises ConfigError where texts are needed and there are none, where ``vocabulary`` is too small, and where ``path``
    holds no usable tokenizer.
    """
    if config.path is not None:
        return _load(config.path, config.chat)
    special = [PADDING, END_OF_TEXT, *((TURN_START, TURN_END) if config.chat else ())]
    if config.kind == "byte":
        backend = _characters(special, ())
    elif config.kind == "char":
        backend = _characters(special, _frequent(_some(texts, "char"), config.vocabulary))
    else:
        backend = _bpe(special, _some(texts, "bpe"), config.vocabulary)
    return _wrap(backend, config.chat)


def is_literal(tokenizer: Any) -> bool:
    """Whether text means itself to this tokenizer, even where it spells a special token: true of those made here."""
    return getattr(tokenizer, "init_kwargs", {}).get(_LITERAL) is True


def encodable(text: str) -> str:
    """The text with ``?`` for each half of a surrogate pair, which is no character: tokenizers refuse it."""
    return text.encode("utf-8", "replace").decode()


def end_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids after which generation stops: end-of-text and, where there is one, ChatML's end of turn."""
    turn = tokenizer.get_added_vocab().get(TURN_END)
    return tuple(dict.fromkeys(end for end in (tokenizer.eos_token_id, turn) if end is not None))


def loading_fault(error: Exception) -> str:
    """What transformers says is wrong with a folder, in a few words."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        return "it needs program code from its own folder, which loopwise never runs"
    return text.partition("\n")[0].rstrip(".") or type(error).__name__


def opening_id(tokenizer: Any) -> int | None:
    """What a document begins from where nothing else stands before it: the opening token or, without one, end-of-text.

    Documents are learned from after it, and an empty prompt is continued from it. None where the tokenizer has neither.
    """
    found = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if found is None else int(found)


def vocabulary_size(tokenizer: Any) -> int:
    """How many embeddings a tokenizer needs: one more than its highest id. Ids may have gaps."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _wrap(backend: Any, chat: bool) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PADDING,
        eos_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START, TURN_END] if chat else [],
        chat_template=CHATML if chat else None,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        # A template's own special tokens must be found in plain transformers, which reads its text like any other;
        # here, text is encoded literally in either case (see ``is_literal``).
        split_special_tokens=not chat,
        **{_LITERAL: True},
    )


def _characters(special: list[str], frequent: Iterable[str]) -> Any:
    """Special tokens, the 256 bytes, and the characters that are one token in spite of their several bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    stand_ins = _stand_ins()
    tokens = [*special, *stand_ins]
    tokens += ["".join(stand_ins[byte] for byte in character.encode()) for character in frequent]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    # No merges: a character is found whole, or falls apart into its bytes.
    backend = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_ALONE), "isolated"), _byte_level(pre_tokenizers)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe(special: list[str], texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    least = len(special) + 256
    if vocabulary < least:
        raise ConfigError(
            f'key "model.tokenizer.vocabulary": expected at least {least} for bpe ({len(special)} special tokens and '
            f"256 bytes), found {vocabulary}. Raise it, or use kind: byte."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), _byte_level(pre_tokenizers)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _load(path: str, chat: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises a dozen kinds here, all of them about this folder
        raise ConfigError(
            f'key "model.tokenizer.path": {path} holds no loadable tokenizer ({loading_fault(error)}). '
            "Name a folder with tokenizer.json, or leave the key out to train one."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f'key "model.tokenizer.path": the tokenizer in {path} has no end-of-text token, so documents would run '
            "into one another. Set its eos_token and save it again."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat and not tokenizer.chat_template:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [TURN_START, TURN_END]}, replace_extra_special_tokens=False
        )
        tokenizer.chat_template = CHATML
    tokenizer.padding_side = "left"
    return tokenizer


def _some(texts: Iterable[str], kind: str) -> Iterator[str]:
    """The texts as they are, one at a time. Raises ConfigError at the end if all of them were empty."""
    empty = True
    for text in texts:
        empty = empty and not text
        yield text
    if empty:
        raise ConfigError(
            f'key "model.tokenizer.kind": {kind} is learned from text, and there is none. '
            "Give rows or a corpus with text, use kind: byte, or name a tokenizer with model.tokenizer.path."
        )


def _frequent(texts: Iterable[str], most: int) -> list[str]:
    """The most frequent characters beyond ASCII, at most ``most``."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    beyond = [character for character in counts if not character.isascii()]
    return sorted(beyond, key=lambda character: (-counts[character], character))[:most]


def _stand_ins() -> list[str]:
    """The character that a byte-level model writes for each byte: itself where it is printable, or one from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = count(256)
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _byte_level(pre_tokenizers: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
