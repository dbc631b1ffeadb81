"""What a process knows of its place, without any others."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from loopwise import ranks as module_of_ranks
from loopwise.config.blocks import RuntimeConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ConfigError, RankError
from loopwise.ranks import ALONE, Ranks, current_ranks, joined_ranks, launched
from loopwise.runtime import Runtime, make_runtime
from loopwise.starting import ranks_in_words
from loopwise.workspace import _Elsewhere

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ALONE),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ALONE),
        ({"WORLD_SIZE": "4"}, ALONE),  # some clusters set it for programs that are one process
        ({"WORLD_SIZE": "4", "RANK": "3"}, Ranks(3, 4, 3, 4)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Ranks(3, 4, 1, 2)),
    ],
)
def test_the_place_is_the_launchers(given: dict[str, str], expected: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected
    # What was not joined is not waited for: a command of one process, a control in a process of its own.
    assert current_ranks() == ALONE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "0"}, "RANK=0 and WORLD_SIZE=2 are set in the environment, and MASTER_ADDR and MASTER_PORT are not"),
        ({"RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "and MASTER_PORT is not"),
        ({"RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}, "RANK=2 is none of WORLD_SIZE=2 ranks"),
        ({"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"}, "MASTER_PORT=99999 .* is no port"),
    ],
)
def test_a_place_that_was_left_in_the_environment_is_refused(
    given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*PLACE, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"WORLD_SIZE": "2"} | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{message}.*Unset RANK and WORLD_SIZE"), joined_ranks():
        pass


@pytest.mark.parametrize("rank", ["0", "1"])
def test_others_that_never_come_are_not_waited_for_long(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module_of_ranks, "ARRIVAL", timedelta(seconds=1))
    with (
        pytest.raises(RankError, match=rf"rank {rank} of 2 did not find all others at 127\.0\.0\.1:{port}"),
        joined_ranks(),
    ):
        pass


def test_one_process_leads_itself() -> None:
    with joined_ranks() as ranks:
        assert ranks == ALONE
    assert ranks.first
    assert ranks.lead(lambda: 7) == 7
    assert ranks.gather("own") == ["own"]
    assert ranks.waves("abc") == ["a", "b", "c"]
    ranks.agree("weights", "own")


def test_units_are_dealt_in_hands_of_one_each() -> None:
    assert Ranks(1, 2).waves("abcde") == ["ab", "cd", "e"]


def test_the_journal_is_asked_through_the_workspace() -> None:
    with pytest.raises(RuntimeError, match=r"journal\.rounds: only rank 0 has the journal\. Go through Workspace\.ask"):
        _ = _Elsewhere().rounds


def test_shards_on_one_process_are_told_to_do_nothing() -> None:
    runtime = make_runtime(RuntimeConfig(device="cpu", threads=1, shard=True), seed=0)
    assert not runtime.sharded
    assert any("runtime.shard does nothing on one process" in warning for warning in runtime.warnings)


@pytest.mark.parametrize(("unit", "idle"), [(256, True), (8, False)])
def test_work_units_too_few_for_the_ranks_are_told(unit: int, idle: bool) -> None:
    recipe = parse_recipe(
        ImproveRecipe,
        {
            "model": "here",
            "data": {"task": "addition"},
            "problems": 8,
            "samples": 4,
            "update": {"method": "dr_grpo", "problems_per_step": 4},
            "runtime": {"generate_batch": unit},
        },
    )
    told = dict(ranks_in_words(recipe, Runtime("cpu", "float32", 1, 0, Ranks(0, 2))))
    assert told["info"] == "2 ranks, with 1 threads each"
    assert ("warning" in told) == idle
    assert not idle or told["warning"].endswith(
        "1 of 2 ranks have nothing to do. In the next run, set runtime.generate_batch: 8."
    )
    assert not dict(ranks_in_words(recipe, Runtime("cpu", "float32", 1, 0)))
