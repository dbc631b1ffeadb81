"""ROUGE and token F1."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from loopwise.evaluate.metrics.overlap import KINDS, rouge, same_answer, token_f1
from loopwise.evaluate.metrics.words import words

SHAKESPEARE = Path(__file__).resolve().parents[4] / "shared" / "data" / "tinyshakespeare.txt"


def test_english_scores_as_rouge_score() -> None:
    if not SHAKESPEARE.is_file():
        pytest.skip(f"there is no {SHAKESPEARE.name} in the folder of texts")
    lines = SHAKESPEARE.read_text(encoding="utf-8")[:20_000].split("\n\n")
    tokenizer, scorer = DefaultTokenizer(), RougeScorer(list(KINDS))
    for text, reference in pairwise(lines):
        assert words(text) == tokenizer.tokenize(text)
        expected = scorer.score(reference, text)
        assert rouge(text, [reference]) == {kind: pytest.approx(expected[kind].fmeasure) for kind in KINDS}


def test_rouge_by_hand() -> None:
    # One of three words is shared by the first reference, two in order by the second.
    found = rouge("police killed gunman", ["gunman", "police kill the gunman"])
    assert found == {
        "rouge1": pytest.approx(4 / 7),
        "rouge2": 0.0,
        "rougeL": pytest.approx(4 / 7),
    }
    assert rouge("", ["a"]) == dict.fromkeys(KINDS, 0.0)
    assert rouge("a", []) is rouge("a", ["。"]) is None


def test_rouge_of_chinese_is_of_characters() -> None:
    found = rouge("床前明月光", ["床前看月光"])
    assert found == {"rouge1": pytest.approx(0.8), "rouge2": pytest.approx(0.5), "rougeL": pytest.approx(0.8)}
    assert RougeScorer(["rougeL"]).score("床前看月光", "床前明月光")["rougeL"].fmeasure == 0.0, "its own sees no words"


def test_token_f1() -> None:
    assert token_f1("The Eiffel Tower!", ["eiffel tower"]) == 1.0
    assert token_f1("in Paris, France", ["Paris"]) == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("x", ["y", "x z"]) == pytest.approx(2 / 3)
    assert token_f1("北京市", ["北京"]) == pytest.approx(4 / 5)
    assert token_f1("", [""]) == 1.0
    assert token_f1("", ["x"]) == token_f1("x", [""]) == 0.0
    assert token_f1("x", []) is None
    assert same_answer("an answer", ["no", "Answer."])
    assert not same_answer("answers", ["answer"])
