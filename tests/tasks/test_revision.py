"""Sums to be drafted, criticised and revised: what a labelled one brings to be learned."""

from __future__ import annotations

import re

import pytest

from loopwise.config.blocks import DataConfig
from loopwise.errors import ConfigError
from loopwise.tasks.addition import make
from loopwise.tasks.registry import find_task
from loopwise.tasks.revision import critique_of, rows_of
from loopwise.tasks.streams import open_streams

SUM = make(759, 468)
ANSWER = "7221"


def test_a_labelled_sum_brings_criticised_and_revised_drafts() -> None:
    own, *rest = rows_of(SUM, 2)
    assert own == SUM
    assert [row.id.rpartition("/")[2] for row in rest] == ["critique-0", "revision-0", "critique-1", "revision-1"]
    assert rows_of(SUM, 2) == [own, *rest], "the same each time"
    assert rows_of(SUM, 3)[:5] == [own, *rest]
    assert rows_of(SUM, 0) == [own]


def test_critiques_are_right_and_revisions_do_what_they_are_told() -> None:
    critiques, revisions = (rows_of(SUM, 300)[first::2] for first in (1, 2))
    drafts = [re.fullmatch(r"957\+864=(\d{4})=", str(row.prompt))[1] for row in critiques]
    assert ANSWER not in drafts
    assert [row.columns["answer"] for row in critiques] == [critique_of(draft, ANSWER) for draft in drafts]
    assert {critique_of(draft, ANSWER) for draft in drafts} == {"17", "22", "32", "41"}
    told = set()
    for draft, row in zip(drafts, revisions, strict=True):
        place, digit = re.fullmatch(rf"957\+864={draft}=(\d)(\d)=", str(row.prompt)).groups()
        assert row.columns["answer"] == draft[: int(place) - 1] + digit + draft[int(place) :] != draft
        told.add(place + digit)
    assert len(told) == 40, "every digit at every place, whatever the sum"


@pytest.mark.parametrize(("draft", "critique"), [("8221", "17"), ("7229", "41"), ("72", "32"), ("", "17")])
def test_a_critique_names_the_first_wrong_digit(draft: str, critique: str) -> None:
    assert critique_of(draft, ANSWER) == critique


def test_streams_are_disjoint_by_their_sums() -> None:
    data = DataConfig(task="revision", task_options={"digits": 2, "drafts": 3}, labelled=40, dev=60, test=60)
    streams = open_streams(data, 0, supervised=True)
    assert len(streams.labelled) == 40 * (1 + 2 * 3)
    learned = {streams.key(problem) for problem in streams.labelled}
    assert len(learned) == 40
    for problems in (*streams.held_out.values(), streams.draw(1, 60)):
        assert all(str(problem.prompt).count("=") == 1 for problem in problems), "sums alone, without drafts"
    for problems in streams.held_out.values():
        assert not learned & {streams.key(problem) for problem in problems}


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.task_options\.drafts.*from 0 to 100, found -1"):
        find_task("revision", {"drafts": -1})
    with pytest.raises(ConfigError, match="has no such option"):
        find_task("revision", {"draft": 1})
