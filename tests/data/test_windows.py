"""Packed windows: every prediction once, no padding, no leak across documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.data.batches import mixture_batch
from loopwise.data.encoding import encode_documents
from loopwise.data.sources import Document
from loopwise.data.windows import Windows, evaluation_windows, frame, gather, pack
from loopwise.errors import DataError
from loopwise.models.policy import Policy
from loopwise.models.presets import character_tokenizer
from loopwise.models.tokens import encode_prompts
from loopwise.types import Problem

SHAKESPEARE = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare.txt"
END = 0

documents_of_text = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=6)


def framed(*texts: list[int]) -> list[np.ndarray]:
    return [frame(text, END) for text in texts]


def predictions(windows: Windows) -> list[tuple[int, int]]:
    return list(zip(windows.input_ids.ravel().tolist(), windows.targets.ravel().tolist(), strict=True))


@pytest.mark.parametrize(
    ("end", "opens", "closes", "expected"),
    [
        (0, True, True, [0, 5, 6, 0]),
        (0, True, False, [0, 5, 6]),
        (0, False, True, [5, 6, 0]),
        (0, False, False, [5, 6]),
        (None, True, True, [5, 6]),
    ],
)
def test_frame(end: int | None, opens: bool, closes: bool, expected: list[int]) -> None:
    document = frame([5, 6], end, opens=opens, closes=closes)
    assert document.tolist() == expected
    assert document.dtype == np.int32


def test_what_opens_a_document_may_differ_from_what_closes_it() -> None:
    assert frame([5, 6], 0, 1).tolist() == [1, 5, 6, 0]
    assert frame([5, 6], None, 1).tolist() == [1, 5, 6]
    assert frame([5, 6], 0, 1, opens=False).tolist() == [5, 6, 0]
    [(windows, _)] = evaluation_windows([frame(text, 0, 1) for text in ([5, 6], [7])], 9).batches(1)
    assert predictions(windows) == [(1, 5), (5, 6), (6, 0), (1, 7), (7, 0)]
    assert windows.position_ids is not None
    assert windows.position_ids.tolist() == [[0, 1, 2, 0, 1]]


@pytest.mark.parametrize("opening", [None, "<s>"])
def test_documents_open_as_an_empty_prompt_does(opening: str | None) -> None:
    policy = Policy(tokenizer=character_tokenizer("ab"))
    if opening:
        policy.tokenizer.add_special_tokens({"bos_token": opening})
    [[begin]] = encode_prompts(policy, [Problem("p", "")])
    [document] = encode_documents(policy, [Document("ab", "here")])
    assert document.tolist() == [begin, 3, 4, policy.tokenizer.eos_token_id]
    assert (begin != policy.tokenizer.eos_token_id) == bool(opening)


def test_targets_and_positions_equal_those_written_by_hand() -> None:
    [(windows, documents), (tail, tail_documents)] = evaluation_windows(framed([1, 2, 3], [4], [5, 6, 7]), 8).batches(9)
    assert windows.input_ids.tolist() == [[0, 1, 2, 3, 0, 4, 0, 5]]
    assert windows.targets.tolist() == [[1, 2, 3, 0, 4, 0, 5, 6]]
    assert windows.position_ids is not None
    assert windows.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert documents.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2]]
    assert (tail.input_ids.tolist(), tail.targets.tolist()) == ([[6, 7]], [[7, 0]])
    assert tail.position_ids is None, "the rest of a document goes on from the window's edge"
    assert tail_documents.tolist() == [[2, 2]]
    arrays = [windows.input_ids, windows.targets, windows.position_ids, documents]
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


def test_without_an_end_nothing_is_predicted_across_a_boundary() -> None:
    held_out = evaluation_windows([frame(text, None) for text in ([1, 2, 3], [4], [], [5, 6])], 3)
    [(windows, documents)] = held_out.batches(1)
    assert predictions(windows) == [(1, 2), (2, 3), (5, 6)]
    assert windows.position_ids is not None
    assert windows.position_ids.tolist() == [[0, 1, 0]]
    assert documents.tolist() == [[0, 0, 3]]


@settings(max_examples=60, deadline=None)
@given(documents_of_text, st.integers(1, 9), st.integers(1, 4))
def test_evaluation_predicts_every_token_once(texts: list[list[int]], window: int, size: int) -> None:
    held_out = evaluation_windows(framed(*texts), window)
    batches = list(held_out.batches(size))
    expected = [pair for text in texts for pair in zip([END, *text], [*text, END], strict=True)]
    assert [pair for windows, _ in batches for pair in predictions(windows)] == expected
    assert held_out.tokens == len(expected)
    counts = np.bincount(np.concatenate([documents.ravel() for _, documents in batches]), minlength=len(texts))
    assert counts.tolist() == [len(text) + 1 for text in texts]
    assert all(windows.input_ids.shape[1] == window for windows, _ in batches[:-1])


@settings(max_examples=60, deadline=None)
@given(documents_of_text, st.integers(1, 8), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_is_full_windows_of_different_predictions(
    texts: list[list[int]], window: int, seed: int, epoch: int
) -> None:
    everything = Counter(
        pair for number, text in enumerate(texts) for pair in zip([END, *text], [*text, END], strict=True)
    )
    if everything.total() < window:
        return
    packed = pack(framed(*texts), window)
    assert packed.tokens == everything.total()
    drawn = packed.batch(seed, epoch, np.arange(packed.windows))
    assert drawn.input_ids.shape == drawn.targets.shape == (packed.tokens // window, window)
    walked = Counter(predictions(drawn))
    assert walked <= everything
    assert (everything - walked).total() < window


def test_cuts_and_the_left_over_move_from_epoch_to_epoch() -> None:
    packed = pack(framed(list(range(1, 100))), 16)
    everything = np.arange(packed.windows)
    epochs = [packed.batch(0, epoch, everything) for epoch in range(6)]
    assert len({tuple(windows.input_ids[0]) for windows in epochs}) == 6
    left_out = [set(range(100)) - set(windows.input_ids.ravel().tolist()) for windows in epochs]
    assert all(len(left) == 4 for left in left_out)
    assert len({frozenset(left) for left in left_out}) > 1
    assert set().union(*(set(windows.targets.ravel().tolist()) for windows in epochs)) == set(range(100))


def test_a_row_does_not_depend_on_its_batch() -> None:
    packed = pack(framed([1, 2, 3, 4, 5], [6, 7], [8, 9, 1, 2]), 3)
    whole = packed.batch(7, 2, np.array([3, 0, 2]))
    again = packed.batch(7, 2, np.array([3, 0, 2]))
    assert (whole.input_ids == again.input_ids).all()
    for row, index in enumerate([3, 0, 2]):
        alone = packed.batch(7, 2, np.array([index]))
        assert alone.input_ids.tolist() == [whole.input_ids[row].tolist()]
        assert alone.targets.tolist() == [whole.targets[row].tolist()]
        expected = np.arange(3) if whole.position_ids is None else whole.position_ids[row]
        assert (np.arange(3) if alone.position_ids is None else alone.position_ids[0]).tolist() == expected.tolist()
    assert (packed.batch(8, 2, np.arange(4)).input_ids != packed.batch(7, 2, np.arange(4)).input_ids).any()


def test_positions_are_left_out_only_where_no_document_begins_inside() -> None:
    packed = pack(framed(list(range(1, 50))), 10)
    restarts = []
    for epoch in range(8):
        for index in range(packed.windows):
            drawn = packed.batch(0, epoch, np.array([index]))
            inside = [place for place in np.flatnonzero(drawn.input_ids[0] == END).tolist() if place]
            assert (drawn.position_ids is not None) == bool(inside)
            if drawn.position_ids is not None:
                assert drawn.position_ids[0].tolist() == [*range(inside[0]), *range(10 - inside[0])]
            restarts.append(bool(inside))
    assert 4 <= sum(restarts) <= 8


def test_windows_of_several_sources_come_in_the_order_of_the_mixture() -> None:
    plays, poems = pack(framed(list(range(1, 60))), 8), pack(framed([70, 71, 72], [73, 74, 75], [76, 77]), 8)
    rows = mixture_batch([plays.windows, poems.windows], [2, 1], 12, seed=3, step=2)
    drawn = gather([plays, poems], rows, seed=3)
    assert drawn.position_ids is not None
    for place, (source, index, epoch) in enumerate(zip(rows.source, rows.index, rows.epoch, strict=True)):
        alone = [plays, poems][source].batch(3, int(epoch), np.array([index]))
        assert drawn.input_ids[place].tolist() == alone.input_ids[0].tolist()
        assert drawn.targets[place].tolist() == alone.targets[0].tolist()
        expected = np.arange(8) if alone.position_ids is None else alone.position_ids[0]
        assert drawn.position_ids[place].tolist() == expected.tolist()
    assert {bool(source) for source in rows.source} == {True, False}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
def test_a_packed_document_is_read_as_if_it_were_alone(
    make_policy: Callable[..., Any], shape: str, attention: str
) -> None:
    import torch

    module = make_policy(shape).weights.module.eval()
    module.set_attn_implementation(attention)
    texts = [[7, 9, 11, 5], [20, 3], [13, 14, 15, 16, 17, 18]]
    batches = list(evaluation_windows(framed(*texts), 12).batches(4))

    def logits(input_ids: np.ndarray, position_ids: np.ndarray | None) -> torch.Tensor:
        positions = None if position_ids is None else torch.from_numpy(position_ids)
        with torch.no_grad():
            output = module(input_ids=torch.from_numpy(input_ids), position_ids=positions, use_cache=False)
        return output.logits[0]

    (window, _), (rest, _) = batches
    packed = logits(window.input_ids, window.position_ids)
    alone = torch.cat([logits(np.array([[END, *text]]), None) for text in texts])
    torch.testing.assert_close(packed, alone[:12], atol=2e-5, rtol=1e-4)
    assert (logits(window.input_ids, None) - alone[:12]).abs().max() > 1e-2, "otherwise this test sees no leak"
    assert predictions(rest) == [(16, 17), (17, 18), (18, END)]


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the folder shared/data beside the repository is absent")
def test_a_cut_text_is_evaluated_as_nanogpt_does() -> None:
    text = SHAKESPEARE.read_text(encoding="utf-8")
    data = np.array([ord(character) for character in text[int(0.9 * len(text)) :]])
    held_out = evaluation_windows([frame(data, None, opens=False, closes=False)], 64)
    batches = list(held_out.batches(500))
    inputs = np.concatenate([windows.input_ids for windows, _ in batches[:-1]])
    targets = np.concatenate([windows.targets for windows, _ in batches[:-1]])
    starts = range(0, len(data) - 64, 64)
    assert (inputs == np.stack([data[i : i + 64] for i in starts])).all()
    assert (targets == np.stack([data[i + 1 : i + 65] for i in starts])).all()
    assert batches[-1][0].targets[0].tolist() == data[len(inputs) * 64 + 1 :].tolist()
    assert all(windows.position_ids is None for windows, _ in batches)
    assert held_out.tokens == len(data) - 1 == 111539


def test_too_little_text() -> None:
    with pytest.raises(DataError) as caught:
        pack(framed([1, 2], [3]), 6)
    assert str(caught.value) == (
        "the text makes 5 tokens to predict, less than one window of 6. Lower update.window, or add text."
    )
    with pytest.raises(DataError) as caught:
        evaluation_windows([frame([1], None), frame([], None)], 6)
    assert str(caught.value) == "the text has 2 documents of less than two tokens: nothing to predict. Add text."
    with pytest.raises(DataError, match=r"^poems makes 5 tokens"):
        pack(framed([1, 2], [3]), 6, "poems")
