"""Runs on several ranks: the same samples, figures and bits as on one process, also after a rank was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load
from tests.ranks.conftest import Launch
from tests.resume.test_kill import content

from loopwise.runs.journal import Journal

SLOW = pytest.mark.slow


class Whole(dict[str, Path]):
    """The folder of each kind of run, made when it is asked for."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self.launch, self.folder = launch, folder

    def __missing__(self, kind: str) -> Path:
        out = self[kind] = self.folder / kind / "out"
        out.parent.mkdir()
        self.launch("run", 1, kind=kind, out=str(out))
        return out


@pytest.fixture(scope="module")
def whole(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Each run on one process."""
    return Whole(launch, tmp_path_factory.mktemp("whole"))


def names(out: Path) -> set[str]:
    """All files of a run; SQLite leaves its side files at will."""
    return {
        str(path.relative_to(out.parent)) for path in out.parent.rglob("*") if path.suffix not in (".db-wal", ".db-shm")
    }


@pytest.mark.parametrize("kind", ["improve", "ppo", pytest.param("tune", marks=SLOW)])
def test_two_ranks_end_as_one_process_does(kind: str, whole: Whole, launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch("run", 2, kind=kind, out=str(out))
    expected = content(whole[kind])
    found = content(out)
    for run_id, run in expected["runs"].items():
        assert found["runs"][run_id]["samples"] == run["samples"]
        assert found["runs"][run_id]["steps"] == run["steps"]
    assert found == expected
    assert names(out) == names(whole[kind])
    with Journal.open(out / "journal.db", read_only=True) as journal:
        assert (
            next(event.message for event in journal.events(journal.runs()[0].run_id)) == "2 ranks, with 1 threads each"
        )


@pytest.mark.parametrize(
    ("kind", "rank", "again"),
    [("tune", 1, 1), pytest.param("improve", 0, 2, marks=SLOW), pytest.param("ppo", 1, 3, marks=SLOW)],
)
def test_a_killed_rank_ends_the_others_and_the_run_goes_on_on_any_number(
    kind: str, rank: int, again: int, whole: Whole, launch: Launch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped = launch("run", 2, fails=True, kind=kind, out=str(out), stop=(rank, 8, "kill"))
    assert stopped.codes[rank] == -9
    assert stopped.codes[1 - rank] == 1
    assert stopped.errors.count("RankError: lost contact with another rank") == 1
    launch("run", again, kind=kind, out=str(out), resume=True)
    assert content(out) == content(whole[kind])


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=SLOW)])
def test_an_error_of_one_rank_ends_all_and_is_told_once(rank: int, launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed = launch("run", 3, fails=True, kind="tune", out=str(out), stop=(rank, 3, "raise"))
    assert failed.codes == [1, 1, 1]
    assert failed.errors.count("ArithmeticError: the test's own failure") == 1
    assert failed.errors.count("Traceback") == 1
    with Journal.open(out / "journal.db", read_only=True) as journal:
        assert [run.status for run in journal.runs()] == ["failed"]


def test_an_error_of_all_ranks_is_told_once(whole: Whole, launch: Launch) -> None:
    refused = launch("run", 2, fails=True, kind="tune", out=str(whole["tune"]))
    assert refused.errors.count("errors.OutputExistsError: ") == 1
    assert refused.codes == [1, 1]


@SLOW
def test_a_sharded_run_goes_on_and_ends_close_to_one_process(whole: Whole, launch: Launch, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch("run", 2, fails=True, kind="tune", out=str(out), shard=True, stop=(1, 8, "kill"))
    launch("run", 2, kind="tune", out=str(out), shard=True, resume=True)
    expected = load(content(whole["tune"])["weights"])
    found = load(content(out)["weights"])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Adam makes whole steps of gradients that are nothing but rounding; the weights moved by a hundred times this.
        assert (found[name] - tensor).abs().max() < 1e-4


@SLOW
def test_adapters_and_a_value_head_in_shards(launch: Launch, tmp_path: Path) -> None:
    out, model = tmp_path / "out", {"lora": {"rank": 3}}
    launch("run", 2, fails=True, kind="ppo", out=str(out), shard=True, model=model, stop=(0, 10, "kill"))
    launch("run", 2, kind="ppo", out=str(out), shard=True, model=model, resume=True)
    with Journal.open(out / "journal.db", read_only=True) as journal:
        assert len(journal.rounds("improve")) == 3
        assert all(row.metrics["kl"] >= 0 for row in journal.steps("improve"))


def test_recurrent_layers_are_not_sharded(launch: Launch, tmp_path: Path) -> None:
    model = {"create": "lstm", "heads": None}
    refused = launch("run", 2, fails=True, kind="tune", out=str(tmp_path / "out"), shard=True, model=model)
    assert refused.errors.count('ConfigError: key "runtime.shard": recurrent layers') == 1
