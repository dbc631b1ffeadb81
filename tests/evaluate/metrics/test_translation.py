"""BLEU and chrF beside sacrebleu itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

from loopwise.evaluate.metrics.translation import bleu, chrf, corpus_bleu, corpus_chrf

POEMS = Path(__file__).resolve().parents[4] / "shared" / "data" / "tang300.json"
TEXTS = ["the cat sat on the mat", "a dog barks loudly at night", ""]
REFERENCES = [["the cat is on the mat", "there is a cat on the mat"], ["the dog barks at night"], ["not empty"]]


def test_sentences_score_as_sacrebleus() -> None:
    for text, references in zip(TEXTS, REFERENCES, strict=True):
        assert bleu(text, references) == pytest.approx(sacrebleu.sentence_bleu(text, references).score / 100)
        assert chrf(text, references) == pytest.approx(sacrebleu.sentence_chrf(text, references).score / 100)
    assert bleu("the cat is on the mat", REFERENCES[0]) == pytest.approx(1.0)
    assert bleu("", ["x"]) == chrf("", ["x"]) == 0.0


def test_a_corpus_scores_as_sacrebleus_with_its_signature() -> None:
    streams = [["the cat is on the mat", "the dog barks at night", "not empty"], [REFERENCES[0][1], None, None]]
    found = corpus_bleu(TEXTS, REFERENCES)
    assert found is not None
    metric = BLEU()
    assert found["bleu"] == pytest.approx(metric.corpus_score(TEXTS, streams).score)
    assert found["signature"] == str(metric.get_signature())
    assert "tok:13a" in found["signature"]
    same = corpus_chrf(TEXTS, REFERENCES)
    assert same is not None
    assert same["chrf"] == pytest.approx(CHRF().corpus_score(TEXTS, streams).score)
    assert "nc:6" in same["signature"]


def test_texts_without_a_reference_are_left_out() -> None:
    assert bleu("a", []) is bleu("a", ["", " "]) is chrf("a", []) is None
    assert corpus_bleu(["a b c d"], [[]]) is corpus_chrf(["a"], [[""]]) is None
    assert corpus_bleu([*TEXTS, "x"], [*REFERENCES, []]) == corpus_bleu(TEXTS, REFERENCES)


def test_chinese_by_characters_unless_told_otherwise() -> None:
    text, reference = "床前明月光，疑是地上霜。", "床前看月光，疑是地上霜。"
    expected = sacrebleu.sentence_bleu(text, [reference], tokenize="zh").score / 100
    assert bleu(text, [reference]) == bleu(text, [reference], "zh") == pytest.approx(expected)
    assert 0.5 < expected < 1
    assert bleu(text, [reference], "13a") < 0.2, "one word a half-line: hardly any in common"
    found = corpus_bleu([text], [[reference]])
    assert found is not None
    assert "tok:zh" in found["signature"]


def test_japanese_by_characters_too() -> None:
    text, reference = "これはとても良いです。", "これはとても良い。"
    expected = sacrebleu.sentence_bleu(text, [reference], tokenize="char").score / 100
    assert bleu(text, [reference]) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_real_poems() -> None:
    if not POEMS.is_file():
        pytest.skip(f"there is no {POEMS.name} in the folder of texts")
    poems = ["".join(poem["paragraphs"]) for poem in json.loads(POEMS.read_text(encoding="utf-8"))[:40]]
    others = [*poems[1:], poems[0]]
    found = corpus_bleu(poems, [[other] for other in others])
    assert found is not None
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(poems, [others], tokenize="zh").score)
    assert all(bleu(poem, [poem]) == pytest.approx(1.0) == chrf(poem, [poem]) for poem in poems)
    likeness = [chrf(poem, [other]) for poem, other in zip(poems, others, strict=True)]
    assert all(one is not None and one < 0.2 for one in likeness)


def test_rounding_takes_no_score_beyond_its_scale() -> None:
    text = "a b c d e f g h i j"
    for count in range(1, 11):
        words = " ".join(text.split()[:count])
        assert 0.0 <= bleu(words, [words]) <= 1.0  # type: ignore[operator]
