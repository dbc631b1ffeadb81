"""The LSTM as a model of transformers: batches, packed documents, caches, generation, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.tiny import CONTEXT, tiny_lstm
from transformers import AutoConfig, AutoModelForCausalLM

from loopwise.models.folders import load_policy, save_policy
from loopwise.models.lstm import LstmCache, LstmForCausalLM
from loopwise.models.policy import Weights
from loopwise.runtime import Runtime

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24, 25, 26, 27]])
TOLERANCE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def module(tokenizer: Any) -> Any:
    """Two blocks, random, in evaluation mode."""
    return tiny_lstm(tokenizer).weights.module


def logits(module: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    with torch.inference_mode():
        return module(ids, use_cache=False, **arguments).logits


def test_it_looks_back(module: Any) -> None:
    # Otherwise no comparison below could fail.
    changed = IDS.clone()
    changed[:, 0] = 30
    assert (logits(module, IDS)[:, -1] - logits(module, changed)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("mask", [[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0, 1, 1]])
def test_padding_anywhere_is_skipped(module: Any, mask: list[int]) -> None:
    attention = torch.tensor([mask, [1] * 8])
    kept = attention[0].bool()
    found = logits(module, IDS, attention_mask=attention)
    torch.testing.assert_close(found[0, kept], logits(module, IDS[:1, kept])[0], **TOLERANCE)
    torch.testing.assert_close(found[1], logits(module, IDS[1:])[0], **TOLERANCE)


PACKED = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [3, 4, 0, 0, 1, 2, 0, 1]])


def test_packed_documents_do_not_see_one_another(module: Any) -> None:
    found = logits(module, IDS, position_ids=PACKED)
    spans = [(0, 0, 3), (0, 3, 8), (1, 0, 2), (1, 2, 3), (1, 3, 6), (1, 6, 8)]
    for row, start, stop in spans:
        apart = logits(module, IDS[row : row + 1, start:stop])
        torch.testing.assert_close(found[row, start:stop], apart[0], **TOLERANCE)
    assert (found - logits(module, IDS)).abs().max() > 1e-3


def test_gradients_of_packed_documents_equal_those_of_documents_apart(module: Any) -> None:
    def gradients(batches: list[tuple[torch.Tensor, torch.Tensor | None]]) -> list[torch.Tensor]:
        model = Weights(module).trainable()
        for ids, positions in batches:
            model(ids, position_ids=positions).logits.square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    packed = gradients([(IDS[:1], PACKED[:1])])
    apart = gradients([(IDS[:1, :3], None), (IDS[:1, 3:], None)])
    for found, expected in zip(packed, apart, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("splits", [[8], [3, 5], [1] * 8])
@pytest.mark.parametrize("padding", [0, 2])
def test_reading_in_parts_equals_reading_at_once(module: Any, splits: list[int], padding: int) -> None:
    mask = torch.ones_like(IDS)
    mask[0, :padding] = 0
    cache, found, done = module.make_cache(), [], 0
    for count in splits:
        seen = slice(done, done + count)
        with torch.inference_mode():
            found.append(
                module(IDS[:, seen], attention_mask=mask[:, : seen.stop], past_key_values=cache, use_cache=True).logits
            )
        done += count
        assert cache.get_seq_length() == done
    kept = mask.bool()
    expected = logits(module, IDS, attention_mask=mask)
    torch.testing.assert_close(torch.cat(found, dim=1)[kept], expected[kept], **TOLERANCE)


def test_a_restart_after_a_cache_forgets_it(module: Any) -> None:
    cache = module.make_cache()
    with torch.inference_mode():
        module(IDS[:, :4], past_key_values=cache, use_cache=True)
        positions = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
        found = module(IDS[:, 4:], position_ids=positions, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(found[0], logits(module, IDS[:1, 4:])[0], **TOLERANCE)
    torch.testing.assert_close(found[1], logits(module, IDS[1:])[0, 4:], **TOLERANCE)


def test_a_cache_follows_its_rows() -> None:
    cache = LstmCache()
    cache.batch_select_indices(torch.tensor([0]))  # nothing read yet: nothing to select
    state = torch.arange(6.0).view(1, 3, 2)
    cache.update((state, -state), 1)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.state is not None
    assert cache.state[0][0].tolist() == [[4, 5], [0, 1], [0, 1]]
    assert torch.equal(cache.state[1], -cache.state[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generates_as_it_does_without_a_cache(module: Any, beams: int) -> None:
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    common = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    cached = module.generate(IDS, use_cache=True, **common)
    assert torch.equal(cached, module.generate(IDS, use_cache=False, **common))
    alone = module.generate(IDS[:1, 3:], max_new_tokens=6, do_sample=False, num_beams=beams)
    assert torch.equal(cached[0, 3 : 3 + alone.shape[1]], alone[0])


def test_transformers_samples(module: Any) -> None:
    torch.manual_seed(0)
    assert module.generate(IDS, max_new_tokens=6, do_sample=True).shape[1] > IDS.shape[1]


def test_the_loss_is_that_of_the_shifted_labels(module: Any) -> None:
    labels = IDS.clone()
    labels[0, :3] = -100
    with torch.inference_mode():
        loss = module(IDS, labels=labels).loss
    targets = labels[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits(module, IDS)[:, :-1].flatten(0, 1), targets)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_the_last_logits_alone(module: Any) -> None:
    assert torch.equal(logits(module, IDS, logits_to_keep=2), logits(module, IDS)[:, -2:])
    assert logits(module, IDS).shape == (2, 8, module.config.vocab_size)


def test_dropout_is_on_in_training_alone(tokenizer: Any) -> None:
    policy = tiny_lstm(tokenizer, dropout=0.5)
    training = policy.weights.trainable()
    assert not torch.equal(training(IDS).logits, training(IDS).logits)
    assert torch.equal(logits(policy.weights.module, IDS), logits(policy.weights.module, IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_folder_opens_in_transformers(tokenizer: Any, runtime: Runtime, tmp_path: Path, tied: bool) -> None:
    policy = tiny_lstm(tokenizer, tie_word_embeddings=tied)
    save_policy(policy, tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    module = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(module, LstmForCausalLM)
    assert (module.get_output_embeddings().weight is module.get_input_embeddings().weight) == tied
    assert torch.equal(logits(module, IDS), logits(policy.weights.module, IDS))
    assert AutoConfig.from_pretrained(tmp_path).context == policy.weights.window == CONTEXT
    loaded = load_policy(tmp_path, runtime)
    assert loaded.id == policy.id
    assert loaded.weights.context_length is None


def test_bfloat16_compute_is_close(module: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(module, IDS, position_ids=PACKED)
    torch.testing.assert_close(found.float(), logits(module, IDS, position_ids=PACKED), atol=0.05, rtol=0.05)


def test_it_learns_to_count(tokenizer: Any) -> None:
    module: Any = tiny_lstm(tokenizer, initializer_range=0.02).weights.trainable()
    rows = (torch.arange(16)[None] + torch.arange(8)[:, None]) % 10 + 3
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = module(rows, labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < 3 < losses[0]
