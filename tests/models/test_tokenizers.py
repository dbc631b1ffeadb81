"""Tokenizers made here: any text comes back as it was, and no text becomes a special token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.config.blocks import TokenizerConfig
from loopwise.errors import ConfigError
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.models.tokenizers import end_token_ids, is_literal, make_tokenizer
from loopwise.models.tokens import decode, encode_texts

DATA = Path(__file__).parents[3] / "shared" / "data"
KINDS = ("char", "byte", "bpe")
SPECIAL = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>")
TEXTS = (
    "the cat saw the cat, 1234 times.\n\n",
    "春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。",
    "naïve café 😀 é",
)
HARD = (
    "",
    " ",
    "  leading and trailing  ",
    "\n\r\n\t ",
    "\x00\x01\x7f",
    "e\u0301 vs é",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "床前明月光",
    "\ufeff\ufffd\ufdd0\U0010ffff",
    "can't won’t -- 3.14159",
    "ĠĊ<0x41>Ä",
    *SPECIAL,
    " <eos>x<|im_start|>assistant\n<|im_end|>",
)
UNICODE = st.text(st.characters(exclude_categories=("Cs",)))
WRITTEN = st.lists(st.one_of(UNICODE, st.sampled_from(HARD)), max_size=6).map("".join)


def made(kind: str, chat: bool = False, vocabulary: int = 400) -> Any:
    size = {} if kind == "byte" else {"vocabulary": vocabulary}
    return make_tokenizer(TokenizerConfig(kind=kind, chat=chat, **size), TEXTS)


TOKENIZERS = {(kind, chat): made(kind, chat) for kind in KINDS for chat in (False, True)}
each = pytest.mark.parametrize(("kind", "chat"), TOKENIZERS)


def model_of(tokenizer: Any) -> Any:
    """What was learned, without the switches that the last call left behind."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


def real_text(name: str) -> str:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not part of a checkout")
    return (DATA / name).read_text(encoding="utf-8")


def poems() -> list[str]:
    return ["\n".join(poem["paragraphs"]) for poem in json.loads(real_text("tang300.json"))]


@each
@settings(max_examples=60, deadline=None)
@given(text=WRITTEN)
def test_any_text_comes_back_and_none_is_special(kind: str, chat: bool, text: str) -> None:
    policy = Policy(tokenizer=TOKENIZERS[kind, chat])
    [ids] = encode_texts(policy, [text])
    assert decode(policy, [ids]) == [text]
    assert not set(ids) & set(policy.tokenizer.all_special_ids)


@each
@pytest.mark.parametrize("text", HARD)
def test_hard_text_comes_back(kind: str, chat: bool, text: str) -> None:
    policy = Policy(tokenizer=TOKENIZERS[kind, chat])
    assert decode(policy, encode_texts(policy, [text])) == [text]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_reads_text_literally_too(kind: str) -> None:
    tokenizer = TOKENIZERS[kind, False]
    ids = tokenizer("a<eos>")["input_ids"]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<eos>"


@each
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_half_characters_are_decoded_without_an_error(kind: str, chat: bool, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind, chat]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1)))
    assert isinstance(decode(Policy(tokenizer=tokenizer), [ids])[0], str)


def test_a_half_character_spoils_no_whole_one() -> None:
    tokenizer = TOKENIZERS["byte", False]
    ids = tokenizer("中文")["input_ids"]
    assert tokenizer.decode(ids[:5]) == "中\ufffd"


@each
def test_a_saved_tokenizer_opens_as_it_was(kind: str, chat: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = TOKENIZERS[kind, chat]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert model_of(again) == model_of(tokenizer)
    assert is_literal(again)
    assert again.chat_template == tokenizer.chat_template
    for name in ("padding_side", "pad_token_id", "eos_token_id", "all_special_ids", "split_special_tokens"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert encode_texts(Policy(tokenizer=again), HARD) == encode_texts(Policy(tokenizer=tokenizer), HARD)


@each
def test_special_tokens(kind: str, chat: bool) -> None:
    tokenizer = TOKENIZERS[kind, chat]
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<eos>", 1)
    assert end_token_ids(tokenizer) == ((1, 3) if chat else (1,))
    assert bool(tokenizer.chat_template) is chat
    padded = tokenizer(["a", "a a"], padding=True)["input_ids"]
    assert padded[0][0] == 0
    assert padded[0][-1] == padded[1][-1]


def test_bytes_are_numbered_in_order() -> None:
    assert TOKENIZERS["byte", False]("é\x00\xff".encode().decode())["input_ids"] == [2 + b for b in "é\x00ÿ".encode()]
    assert len(TOKENIZERS["byte", True]) == 260
    assert model_of(made("byte")) == model_of(TOKENIZERS["byte", False])


def test_frequent_characters_are_one_token_and_rare_ones_their_bytes() -> None:
    # 乙 (U+4E59) and 丙 (U+4E19) are equally frequent: only the lower code point fits.
    tokenizer = make_tokenizer(TokenizerConfig(kind="char", vocabulary=2), ["甲甲甲 aaaa", "乙丙丙乙", "丁"])
    assert [len(tokenizer(text)["input_ids"]) for text in "甲丙乙丁a"] == [1, 1, 3, 3, 1]
    assert len(tokenizer) == 2 + 256 + 2


def test_every_ascii_character_is_one_token_of_its_own() -> None:
    text = "".join(map(chr, range(128)))
    assert len(set(TOKENIZERS["char", False](text)["input_ids"])) == 128


def test_bpe_learns_words_across_no_digits_and_no_documents_end() -> None:
    texts = ["the 123 the 123 <eos>" * 50]
    tokenizer = make_tokenizer(TokenizerConfig(kind="bpe", vocabulary=300), texts)
    assert tokenizer.tokenize("the 123") == ["the", "Ġ", "1", "2", "3"]
    # Learned often enough to become one token, were it not cut: it would take the special token's id.
    assert 1 not in tokenizer("<eos>")["input_ids"]


def test_bpe_learns_chinese_words_without_spaces() -> None:
    tokenizer = make_tokenizer(TokenizerConfig(kind="bpe", vocabulary=270), ["我看明月，他看明月。", "明月在天"] * 3)
    assert [tokenizer.decode([token]) for token in tokenizer("明月")["input_ids"]] == ["明月"]


def test_bpe_training_is_repeatable_and_blind_to_the_order_of_texts() -> None:
    config = TokenizerConfig(kind="bpe", vocabulary=400)
    first, again, turned = (model_of(make_tokenizer(config, texts)) for texts in (TEXTS, TEXTS, reversed(TEXTS)))
    assert len(first["merges"]) > 10
    assert first == again == turned


def test_bpe_holds_at_most_the_vocabulary() -> None:
    assert len(made("bpe", vocabulary=261)) == 261
    assert len(made("bpe", chat=True, vocabulary=261)) == 261
    with pytest.raises(ConfigError, match=r'"model.tokenizer.vocabulary": expected at least 258 for bpe .* found 257'):
        made("bpe", vocabulary=257)


@pytest.mark.parametrize("texts", [(), ("", "")], ids=["no texts", "empty texts"])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_nothing_is_learned_from_nothing(kind: str, texts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=rf'"model.tokenizer.kind": {kind} is learned from text, and there is none'):
        make_tokenizer(TokenizerConfig(kind=kind), texts)


def test_a_tokenizer_from_a_folder(tmp_path: Path) -> None:
    TOKENIZERS["bpe", False].save_pretrained(tmp_path)
    tokenizer = make_tokenizer(TokenizerConfig(path=str(tmp_path)))
    assert encode_texts(Policy(tokenizer=tokenizer), HARD) == encode_texts(
        Policy(tokenizer=TOKENIZERS["bpe", False]), HARD
    )


def test_a_tokenizer_from_a_folder_becomes_one_for_chats(tmp_path: Path) -> None:
    character_tokenizer("abc\n").save_pretrained(tmp_path)
    tokenizer = make_tokenizer(TokenizerConfig(path=str(tmp_path), chat=True))
    assert tokenizer.all_special_tokens[-2:] == ["<|im_start|>", "<|im_end|>"]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=False)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_a_folder_without_a_usable_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"model.tokenizer.path": .*missing holds no loadable tokenizer'):
        make_tokenizer(TokenizerConfig(path=str(tmp_path / "missing")))
    tokenizer = character_tokenizer("abc")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        make_tokenizer(TokenizerConfig(path=str(tmp_path)))


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "tang300.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_real_text_comes_back(kind: str, name: str) -> None:
    texts = poems() if name.endswith("json") else [real_text(name)[:100_000]]
    policy = Policy(
        tokenizer=make_tokenizer(TokenizerConfig(kind=kind, **({} if kind == "byte" else {"vocabulary": 1024})), texts)
    )
    assert decode(policy, encode_texts(policy, texts)) == texts


def test_bpe_compresses_english_and_chinese() -> None:
    english, chinese = real_text("tinyshakespeare.txt"), poems()
    config = TokenizerConfig(kind="bpe", vocabulary=4096)
    [ids] = encode_texts(Policy(tokenizer=make_tokenizer(config, [english[:-100_000]])), [english[-100_000:]])
    assert 100_000 / len(ids) > 2.9
    rows = encode_texts(Policy(tokenizer=make_tokenizer(config, chinese)), chinese)
    assert sum(map(len, chinese)) / sum(map(len, rows)) > 1.2


def test_code_in_a_folder_is_never_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    content = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("") or "y")
    with pytest.raises(ConfigError, match="from its own folder, which loopwise never runs"):
        make_tokenizer(TokenizerConfig(path=str(tmp_path)))
    assert not asked
    assert not trace.exists()
