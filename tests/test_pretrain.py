"""``loopwise pretrain`` on small real runs: what it writes, that it learns, that it resumes exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.stopping import CutShortError, StopAt

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import PretrainRecipe
from loopwise.data.sources import Document
from loopwise.errors import ConfigError, DataError, ModelError, ResumeError, VocabularyError
from loopwise.evaluate import floor as module_of_floor
from loopwise.evaluate.floor import measure_floor
from loopwise.evaluate.perplexity import keeps_apart, text_perplexity, tokens_at_once
from loopwise.models.folders import load_policy, save_policy
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime
from loopwise.stages.pretrain import prepare, pretrain, window_of

POEM = "the moon is up\nthe river bends\nand home is far\n"


def write_corpus(folder: Path, count: int = 60) -> Path:
    path = folder / "poems.jsonl"
    lines = [json.dumps({"text": f"poem {number}\n{POEM * (1 + number % 3)}"}) for number in range(count)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def recipe(corpus: Path, shape: str = "gpt2", **changes: Any) -> PretrainRecipe:
    content: dict[str, Any] = {
        "model": {"create": shape, "depth": 2, "width": 32, "context": 32, "tokenizer": "char"},
        "data": {"train": str(corpus), "dev": 0.2, "test": 0.2},
        "update": {"steps": 8, "batch_size": 8, "optimizer": {"name": "muon", "lr": 1e-2, "warmup_steps": 2}},
        "rounds": 2,
        "prompts": ["the ", ""],
        "sampling": {"max_tokens": 6, "temperature": 1.0},
        "runtime": {"threads": 1, "checkpoint_steps": 3},
    }
    return parse_recipe(PretrainRecipe, content | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("pretrain")
    return folder, pretrain(recipe(write_corpus(folder)), folder / "out")


def test_it_learns_and_says_so(finished: tuple[Path, Any]) -> None:
    _, result = finished
    stages = result.summary["stages"]
    before, after, floor = (stages[name]["test"] for name in ("untrained", "pretrained", "ngram"))
    assert after["nats_per_token"] < 0.8 * before["nats_per_token"]
    assert math.isclose(math.exp(after["nats_per_token"]), after["perplexity"])
    assert before["tokens"] == after["tokens"] == floor["tokens"]
    assert before["bytes"] == after["bytes"] > 0
    assert 0 < floor["nats_per_token"] < before["nats_per_token"]
    assert floor["trained_on"] > 1000
    assert result.summary["corpus"]["dev/documents"] > 0
    assert {"model", "report.html", "summary.json", "metrics.jsonl"} <= {path.name for path in result.out.iterdir()}


def test_the_folder_opens_in_transformers_and_gives_the_figures_of_the_run(finished: tuple[Path, Any]) -> None:
    from transformers import AutoModelForCausalLM

    folder, result = finished
    assert AutoModelForCausalLM.from_pretrained(result.model).config.n_layer == 2
    runtime = Runtime("cpu", "float32", 1, 0)
    policy = load_policy(result.model, runtime)
    texts = [json.loads(line)["text"] for line in (folder / "poems.jsonl").read_text().splitlines()]
    whole = text_perplexity(policy, texts, runtime)
    assert whole.documents == 60
    assert whole.bytes == sum(len(text) for text in texts)
    # One prediction for each character and one for the end of each text.
    assert whole.tokens == whole.bytes + 60
    assert math.isclose(whole.bits_per_byte, whole.nats / math.log(2) / whole.bytes)


def test_samples_fit_the_context_unless_the_recipe_says_how_long_they_are(tmp_path: Path) -> None:
    given = recipe(write_corpus(tmp_path)).model_dump()
    del given["sampling"]
    assert prepare(parse_recipe(PretrainRecipe, given)).recipe.sampling.max_tokens == 32 - len("the ")


def test_perplexity_by_hand(make_policy: Any) -> None:
    """A model that knows nothing gives each of V tokens a probability of 1 / V."""
    policy = make_policy()
    module = policy.trainable_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    flat = policy.with_module(module)
    found = text_perplexity(flat, ["12+3=", "4"], Runtime("cpu", "float32", 1, 0))
    assert math.isclose(found.perplexity, module.config.vocab_size, rel_tol=1e-5)


@pytest.mark.parametrize("shape", ["gpt2", "lstm"])
@pytest.mark.parametrize("step", [5, 13])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path: Path, shape: str, step: int) -> None:
    chosen = recipe(write_corpus(tmp_path), shape)
    whole = pretrain(chosen, tmp_path / "whole")
    with pytest.raises(CutShortError):
        pretrain(chosen, tmp_path / "cut", observer=StopAt(step))
    resumed = pretrain(chosen, tmp_path / "cut", resume=True)
    assert resumed.policy.id == whole.policy.id
    assert resumed.summary["stages"] == whole.summary["stages"]


def test_micro_batches_make_no_difference(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    update = {"steps": 4, "batch_size": 6, "optimizer": {"name": "adamw", "lr": 1e-3}}
    one = pretrain(recipe(corpus, update=update, rounds=1), tmp_path / "one")
    two = pretrain(recipe(corpus, update={**update, "micro_batch_size": 2}, rounds=1), tmp_path / "two")
    pairs = zip(one.policy.weights.module.parameters(), two.policy.weights.module.parameters(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < 2e-5


def test_other_text_is_not_resumed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    with pytest.raises(CutShortError):
        pretrain(recipe(corpus), tmp_path / "out", observer=StopAt(4))
    corpus.write_text(corpus.read_text() + '\n{"text": "one more, of other words"}\n')
    with pytest.raises(ResumeError, match="different now"):
        pretrain(recipe(corpus), tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gate": {"metric": "reward"}}, "gate.metric"),
        ({"update": {"window": 64}}, "update.window"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare(recipe(write_corpus(tmp_path), **changes))


def test_the_floor_is_of_the_very_predictions_of_the_model(tmp_path: Path) -> None:
    prepared = prepare(recipe(write_corpus(tmp_path)))
    floor, counted = prepared.floor()
    assert counted == sum(map(len, prepared.train))
    for split, text in prepared.held_out.items():
        assert text.windows.tokens == sum(len(document) - 1 for document in text.documents)
        assert len(floor[split].scores) == len(text.lengths)
        assert text.lengths.sum() == text.windows.tokens
        assert np.isfinite(floor[split].scores).all()
    assert isinstance(prepared.corpus.sources[0].documents[0], Document)


OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 2},
    "opt": {"num_attention_heads": 2, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "falcon": {"num_attention_heads": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2},
    "mamba": {"state_size": 4},
    "biogpt": {"num_attention_heads": 2, "intermediate_size": 64},
    "phi": {"num_attention_heads": 2, "intermediate_size": 64},
    "gpt_neox": {"num_attention_heads": 2, "intermediate_size": 64},
}


def other_policy(name: str, tokenizer: Any) -> Policy:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    tokens = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **sizes | OTHERS[name], **tokens)
        return Policy(Weights.of(AutoModelForCausalLM.from_config(config, dtype=torch.float32)), tokenizer)


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_that_do_not_keep_documents_apart_are_found_out(
    name: str, tokenizer: Any, runtime: Runtime
) -> None:
    policy = other_policy(name, tokenizer)
    kept = keeps_apart(policy)
    assert kept == (name in ("phi", "gpt_neox"))
    # Whatever it is, no document changes what is found of another.
    texts = ["1+2=3", "4+5=9, 10", "7"]
    alone = sum(text_perplexity(policy, [text], runtime).nats for text in texts)
    found = text_perplexity(policy, texts, runtime, window=32)
    assert found.nats == pytest.approx(alone, rel=1e-5)
    assert found.tokens == sum(map(len, texts)) + 3


@pytest.mark.parametrize("spread", [0.02, 0.2])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3", "mistral"])
def test_attention_that_heeds_positions_is_let_through(make_policy: Any, shape: str, spread: float) -> None:
    for context in (2, 5, 48):
        assert keeps_apart(make_policy(shape, initializer_range=spread, max_position_embeddings=context))


def test_a_model_that_would_mix_documents_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    save_policy(other_policy("opt", tokenizer), tmp_path / "opt")
    rows, book = tmp_path / "rows.jsonl", tmp_path / "book.txt"
    rows.write_text("".join(json.dumps({"text": f"{number}+{number}"}) + "\n" for number in range(60)))
    book.write_text("".join(f"{number}+{number}=" for number in range(60)))
    changes: dict[str, Any] = {"model": {"path": str(tmp_path / "opt")}, "prompts": [], "update": {"window": 16}}
    with pytest.raises(ModelError, match=r"model_type opt: .* cannot keep the documents"):
        prepare(recipe(rows, **changes))
    # one text, one part of it held out: nothing meets anything
    prepare(recipe(book, **changes, data={"train": str(book), "dev": 0.2, "test": 0}))


def gapped_tokenizer() -> Any:
    """Characters whose ids lie apart."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set(POEM + "0123456789"))
    ids = {"<eos>": 0, **{character: 10 + 2 * place for place, character in enumerate(characters)}}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def test_ids_may_have_gaps(tmp_path: Path, no_report: None) -> None:
    gapped_tokenizer().save_pretrained(tmp_path / "gapped")
    model = {"create": "gpt2", "depth": 1, "width": 32, "context": 32, "tokenizer": {"path": str(tmp_path / "gapped")}}
    update = {"steps": 1, "batch_size": 2}
    result = pretrain(recipe(write_corpus(tmp_path), model=model, update=update, rounds=1), tmp_path / "out")
    assert result.summary["stages"]["ngram"]["test"]["tokens"] > 0


def test_a_floor_that_fails_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("loopwise.stages.pretrain.measure_floor", fail)
    with pytest.raises(MemoryError):
        pretrain(recipe(write_corpus(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_floor_counts_some_of_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = np.tile(np.arange(30, 40), 10)
    noise = np.random.default_rng(0).integers(1, 20, size=(300, 100))
    held_out = {"dev": [np.array([0, *pattern, 0])]}
    short = [np.array([0, *document, 0]) for document in (*noise, *[pattern] * 300)]
    long = [np.concatenate(short[:300]), np.concatenate(short[300:])]
    whole = measure_floor(short, held_out, 40)
    assert whole.trained_on == 600 * 102
    monkeypatch.setattr(module_of_floor, "MOST_TOKENS", 20_000)
    monkeypatch.setattr(module_of_floor, "PIECE", 1000)
    for documents in (short, long):
        found = measure_floor(documents, held_out, 40)
        assert 15_000 < found.trained_on <= 21_000
        assert found.logps["dev"].mean() == pytest.approx(whole.logps["dev"].mean(), abs=0.1)


@pytest.mark.parametrize("held_out", [0, 0.2])
def test_text_that_the_tokenizer_does_not_know_is_refused(tmp_path: Path, held_out: float) -> None:
    corpus = write_corpus(tmp_path)
    changes = {"model": {"create": "demo"}, "data": {"train": str(corpus), "dev": held_out, "test": held_out}}
    with pytest.raises(VocabularyError) as caught:
        prepare(recipe(corpus, **changes))
    assert "poems.jsonl: 9" in str(caught.value)
    assert "% of its tokens are <unk>, text that the tokenizer does not know, first in " in str(caught.value)
    assert "poems.jsonl line 1" in str(caught.value)


def test_unknown_text_is_found_in_what_is_held_out_and_a_mark_for_it_is_text(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.txt", tmp_path / "dev.txt"
    train.write_text("1+1=2<unk>" * 40)
    held_out.write_text("1+1=3" * 10)
    data = {"train": str(train), "dev": str(held_out), "test": 0}
    changes = {"model": {"create": "demo"}, "prompts": [], "data": data}
    prepare(recipe(train, **changes))
    held_out.write_text("1+1=3" * 10 + "?")
    with pytest.raises(VocabularyError, match=r"^the dev text: 1\.89% of its tokens are <unk>"):
        prepare(recipe(train, **changes))


def test_too_little_text_names_its_source(tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("moon")
    data = {"train": [{"path": str(write_corpus(tmp_path))}, {"path": str(few)}], "dev": 0, "test": 0}
    with pytest.raises(DataError, match=r"few.*makes 5 tokens to predict, less than one window"):
        prepare(recipe(few, data=data))


def test_memory_knows_the_vocabulary(make_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    assert tokens_at_once(policy) == 16_384
    wide = make_policy(vocab_size=151_936, n_embd=4, n_layer=1)
    assert tokens_at_once(wide) * 151_936 <= 2**28
    monkeypatch.setattr("loopwise.evaluate.perplexity.LOGITS_AT_ONCE", 10 * policy.weights.module.config.vocab_size)
    read: list[int] = []
    policy.weights.module.register_forward_pre_hook(
        lambda module, arguments, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    text_perplexity(policy, ["1" * 60], Runtime("cpu", "float32", 1, 0))
    assert max(read) == 10


@pytest.mark.parametrize(("context", "window"), [(4096, 1024), (64, 64)])
def test_windows_of_a_loaded_model_are_not_all_of_a_long_context(make_policy: Any, context: int, window: int) -> None:
    policy = make_policy("llama", max_position_embeddings=context)
    loaded = parse_recipe(PretrainRecipe, {"model": {"path": "somewhere"}, "data": {"train": "text.txt"}})
    assert window_of(loaded, policy) == window
    created = {"model": {"create": "llama", "context": context}, "data": {"train": "text.txt"}}
    assert window_of(parse_recipe(PretrainRecipe, created), policy) == context
