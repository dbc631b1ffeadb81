"""A judge as a model: pooling by hand, padding, folders, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loopwise.config.judge_blocks import JudgeModelConfig
from loopwise.errors import ModelError
from loopwise.models.encoders import calibrated, encoder_folder, most_tokens, start_judge, with_body
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.judges import encode_readings, judge_of, judge_texts, padded, read_texts, reading_of
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime

SHAPE: dict[str, Any] = {"create": "bert", "depth": 1, "width": 16, "heads": 2, "context": 40, "tokenizer": "byte"}
Make = Callable[..., Policy]


@pytest.fixture
def judge(runtime: Runtime) -> Make:
    """Make a judge of two labels; keywords change its shape."""

    def make(head: str = "labels", **changes: Any) -> Policy:
        labels = ("no", "yes") if head == "labels" else ()
        config = JudgeModelConfig.model_validate(SHAPE | changes)
        return start_judge(config, head, "completion", labels, runtime, ["some text"])

    return make


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "attention"])
def test_states_are_pooled_without_the_padding(judge: Make, pooling: str) -> None:
    policy = judge(pooling=pooling)
    module: Any = judge_of(policy)
    if pooling == "attention":
        module.pool.query.data.normal_()
    rows = encode_readings(policy, [("short", None), ("a longer text", None)])
    ids, mask = padded(module, rows)
    with torch.no_grad():
        states = module.body(input_ids=ids, attention_mask=mask).last_hidden_state
        found = module._pooled(states, mask)
        for row, length in enumerate(map(len, rows)):
            own = states[row, :length]
            if pooling == "attention":
                scores = (own @ module.pool.query) / 4  # the square root of the width
                expected = (scores.softmax(0)[:, None] * own).sum(0)
            else:
                expected = {"mean": own.mean(0), "cls": own[0], "last": own[-1]}[pooling]
            torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("changes", [{}, {"depth": 0, "pooling": "attention"}])
def test_a_text_is_judged_alike_alone_and_among_longer_ones(
    judge: Make, runtime: Runtime, changes: dict[str, Any]
) -> None:
    policy = judge(**changes)
    rows = encode_readings(policy, [("a", None), ("a text of some length", None), ("", None), ("bb", None)])
    together = judge_texts(judge_of(policy), rows, runtime)
    alone = np.concatenate([judge_texts(judge_of(policy), [row], runtime) for row in rows])
    cut = judge_texts(judge_of(policy), rows, runtime, tokens_per_pass=1)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, cut, atol=1e-6)
    assert together.shape == (4, 2)


def test_a_judge_comes_back_from_its_folder(judge: Make, runtime: Runtime, tmp_path: Path) -> None:
    policy = calibrated(judge(), 1.7, 0.25)
    save_policy(policy, tmp_path / "judge")
    found = load_policy(tmp_path / "judge", runtime, judges=True)
    assert found.id == policy.id
    config = judge_of(found).config
    assert (config.temperature, config.centre, config.labels) == (1.7, 0.25, ["no", "yes"])
    rows = encode_readings(found, [("some text", None)])
    assert torch.equal(read_texts(judge_of(found), rows), read_texts(judge_of(policy), rows))


def test_a_body_that_learned_to_read_is_taken_over(judge: Make) -> None:
    read, fresh = judge("tokens"), judge()
    assert read.weights is not None
    with torch.no_grad():
        read.weights.module.body.embeddings.word_embeddings.weight.add_(1)  # type: ignore[union-attr, operator]
    taken: Any = judge_of(with_body(fresh, read))
    assert torch.equal(
        taken.get_input_embeddings().weight,
        read.weights.module.get_input_embeddings().weight,  # type: ignore[operator]
    )
    assert torch.equal(taken.head.weight, judge_of(fresh).head.weight)  # type: ignore[arg-type, union-attr]


def test_a_text_cannot_write_marks(judge: Make) -> None:
    policy = judge()
    marks = set(policy.tokenizer.all_special_ids)
    [row] = encode_readings(policy, [("<sep> <cls> <mask>", None)])
    assert [token for token in row if token in marks] == [row[0], row[-1]]


def test_prompt_and_completion_are_divided(judge: Make) -> None:
    policy = judge()
    divider = policy.tokenizer.sep_token_id
    [row] = encode_readings(policy, [("a", "b")])
    assert row.count(divider) == 2
    assert row[-1] == divider


def test_what_is_read_of_prompt_and_completion() -> None:
    chat = ({"role": "user", "content": "hi"},)
    assert reading_of("completion", "p", "c") == ("c", None)
    assert reading_of("prompt", "p", "c") == ("p", None)
    assert reading_of("both", chat, "c") == ("user: hi", "c")


def test_a_causal_model_pools_its_last_token(folder: Path, runtime: Runtime) -> None:
    policy = start_judge(JudgeModelConfig(path=str(folder)), "score", "both", (), runtime, ())
    assert judge_of(policy).config.pooling == "last"
    rows = encode_readings(policy, [("1+1=", "2"), ("1", "")])
    assert all(row[-1] == policy.tokenizer.eos_token_id for row in rows)
    assert judge_texts(judge_of(policy), rows, runtime).shape == (2,)


def test_roberta_counts_positions_after_its_padding(runtime: Runtime, tmp_path: Path, judge: Make) -> None:
    from transformers import RobertaConfig, RobertaModel

    tokenizer = judge().tokenizer
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, pad_token_id=1, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    tokenizer.save_pretrained(tmp_path)
    policy = start_judge(JudgeModelConfig(path=str(tmp_path)), "score", "completion", (), runtime, ())
    assert most_tokens(policy) == 10
    rows = encode_readings(policy, [("12345678", None), ("1", None)])
    assert judge_texts(judge_of(policy), rows, runtime)[1] == pytest.approx(
        judge_texts(judge_of(policy), rows[1:], runtime)[0], abs=1e-6
    )


def test_a_language_model_is_no_judge(policy: Policy) -> None:
    with pytest.raises(ModelError, match="a language model, no judge"):
        judge_of(policy, "here")


def test_a_judge_is_no_language_model(judge: Make, runtime: Runtime, tmp_path: Path) -> None:
    save_policy(judge(), tmp_path / "judge")
    with pytest.raises(ModelError, match="a judge, which writes no text"):
        load_policy(tmp_path / "judge", runtime)


def test_pickles_are_never_loaded(folder: Path, runtime: Runtime) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match="is a pickle"):
        start_judge(JudgeModelConfig(path=str(folder)), "score", "both", (), runtime, ())


def test_weights_that_lack_a_part_are_refused(folder: Path, runtime: Runtime) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "n_layer": 3}))
    with pytest.raises(ModelError, match="no weights for"):
        start_judge(JudgeModelConfig(path=str(folder)), "score", "both", (), runtime, ())


def test_a_judge_of_another_judge_is_refused(judge: Make, runtime: Runtime, tmp_path: Path) -> None:
    save_policy(judge(), tmp_path / "judge")
    with pytest.raises(ModelError, match="loopwise_judge"):
        start_judge(JudgeModelConfig(path=str(tmp_path / "judge")), "score", "both", (), runtime, ())


def test_the_model_in_a_package(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_with_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="no model"):
        encoder_folder("package:a_package_with_a_model")
    folder.rename(package / "model")
    assert encoder_folder("package:a_package_with_a_model") == package / "model"
    with pytest.raises(ModelError, match="no such package"):
        encoder_folder("package:../up")


def test_halves_of_surrogate_pairs_are_read_as_question_marks(judge: Make) -> None:
    policy = judge()
    halves = encode_readings(policy, [("a\ud83d", None), ("a", "\udc00")])
    assert halves == encode_readings(policy, [("a?", None), ("a", "?")])
