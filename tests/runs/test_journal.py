"""The journal gives back what it was given, keeps whole transactions, and can be read while it is written."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopwise.errors import ConfigError
from loopwise.runs.journal import Journal, Place
from loopwise.types import Budget, Decision, Evaluation, Feedback, Preference, Problem

ANY_TEXT = st.text(st.characters(exclude_categories=()))
FLOAT32 = st.floats(width=32, allow_nan=False)


def commit(journal, round=0, *, name=None, kept=(), steps=(), decision=None, budget=None, summary=None):
    journal.commit_round(
        "run",
        round=round,
        summary=summary or {"reward": 0.5},
        decision=decision,
        checkpoint=(name or f"round-{round}", f"hash-{round}"),
        step_metrics=steps,
        kept=kept,
        budget=budget or Budget(),
    )


def feedback(rewards, **fields):
    rewards = np.array(rewards, dtype=np.float64)
    parts = ("correct", "short")[: rewards.shape[1]]
    return Feedback(parts, (1.0, 0.25)[: rewards.shape[1]], rewards, ~np.isnan(rewards), **fields)


def same_feedback(one, other):
    np.testing.assert_array_equal(one.rewards, other.rewards)
    np.testing.assert_array_equal(one.mask, other.mask)
    assert one.rewards.dtype == other.rewards.dtype
    blank = np.zeros(0)
    assert replace(one, rewards=blank, mask=blank) == replace(other, rewards=blank, mask=blank)


class TestRuns:
    def test_comes_back(self, journal):
        run = journal.run("run")
        assert (run.kind, run.status, run.config, run.config_hash) == ("improve", "running", {"seed": 1}, "cafe")
        assert (run.fingerprint, run.versions, run.threads) == ({"train": "f00d"}, {"torch": "2.13.0"}, 2)
        assert run.schema_version == 1
        assert run.created.utcoffset().total_seconds() == 0
        assert journal.runs() == [run]
        assert journal.run("other") is None

    def test_status_changes_with_its_time(self, journal):
        before = journal.run("run")
        journal.set_status("run", "paused")
        assert journal.run("run").status == "paused"
        assert journal.run("run").updated > before.updated

    def test_twice_is_an_error(self, journal):
        with pytest.raises(ConfigError, match='a run "run" already'):
            journal.create_run("run", "improve", {}, "", {}, {}, 1)

    def test_unknown_status_and_unknown_run(self, journal):
        with pytest.raises(ValueError, match="expected one of running, paused"):
            journal.set_status("run", "sleeping")
        with pytest.raises(ConfigError, match='no run "other"'):
            journal.set_status("other", "paused")


class TestProblems:
    def test_come_back(self, journal):
        chat = Problem("chat", ({"role": "user", "content": "\0\ud800"},), {"answer": 2, "tags": ["a", None]})
        journal.add_problems("run", [chat, Problem("p0", "another prompt")])
        found = journal.problems("run", ["chat", "p0", "unknown"])
        assert found == {"chat": chat, "p0": Problem("p0", "0+1=")}
        assert len(journal.problems("run")) == 301


class TestSamples:
    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        text=ANY_TEXT,
        ids=st.lists(st.integers(-(2**31), 2**31 - 1)),
        logps=st.none() | st.lists(FLOAT32),
        stats=st.dictionaries(ANY_TEXT, st.floats(allow_nan=False)),
        parent=st.none() | st.just("s0"),
    )
    def test_come_back_bit_for_bit(self, journal, make_sample, text, ids, logps, stats, parent):
        number = time.perf_counter_ns()
        place = Place("run", 0, number, "skill:sums")
        sample = make_sample(
            id=str(number),
            text=text,
            token_ids=tuple(ids),
            logps=None if logps is None else tuple(logps),
            parent=parent,
            # The names of figures are ours: only their values need be exact.
            stats={repr(name): value for name, value in stats.items()},
        )
        journal.add_samples(place, [sample])
        assert journal.samples_at(place) == {str(number): sample}

    def test_are_listed_group_after_group(self, journal, make_sample, place):
        samples = [make_sample(number) for number in range(20)]
        journal.add_samples(place, samples[10:])
        journal.add_samples(place, samples[:10])
        assert list(journal.samples_at(place).values()) == samples
        assert journal.samples_at(place._replace(step=1)) == {}

    def test_are_never_doubled(self, journal, make_sample, place):
        journal.add_samples(place, [make_sample(1)])
        with pytest.raises(ValueError, match="journaled already"):
            journal.add_samples(place._replace(round=1), [make_sample(0), make_sample(1)])
        assert journal.samples_at(place._replace(round=1)) == {}, "the other sample of the failed call stayed"

    def test_need_their_problem(self, journal, make_sample, place):
        with pytest.raises(ValueError, match="add_problems before add_samples"):
            journal.add_samples(place, [make_sample(problem_id="unknown")])

    def test_refuse_what_would_not_come_back_equal(self, journal, make_sample, place):
        with pytest.raises(ValueError, match=r"sample s0.*float32"):
            journal.add_samples(place, [make_sample(logps=(0.1,))])

    def test_are_quick(self, journal, make_sample, place):
        samples = [make_sample(number) for number in range(2000)]
        start = time.perf_counter()
        journal.add_samples(place, samples)
        assert list(journal.samples_at(place).values()) == samples
        assert time.perf_counter() - start < 2


class TestFeedback:
    @pytest.fixture
    def samples(self, journal, make_sample, place):
        samples = [make_sample(number) for number in range(4)]
        journal.add_samples(place, samples)
        return samples

    def test_comes_back_in_any_order(self, journal, place, samples):
        given = feedback(
            [[1, np.nan], [0, 0.1], [np.nan, np.nan], [np.inf, -0.0]],
            preferences=(Preference(3, 0), Preference(1, 2, 0.1), Preference(3, 0)),
            critiques=("\0 \ud800", None, "", "fine"),
            edits=(None, None, None, None),
            extra=({"n": 1}, {}, {"error": "boom"}, {"odd": np.float32(0.5)}),
            metrics={"seconds": 0.1},
        )
        journal.add_feedback(place, samples, given)
        same_feedback(journal.feedback_at(place, samples), given)
        turned = journal.feedback_at(place, samples[::-1])
        np.testing.assert_array_equal(turned.totals, given.totals[::-1])
        assert turned.preferences == (Preference(0, 3), Preference(2, 1, 0.1), Preference(0, 3))
        part = journal.feedback_at(place, samples[:2])
        assert (part.preferences, part.critiques) == ((), ("\0 \ud800", None))

    def test_that_says_nothing_comes_back(self, journal, place, samples):
        journal.add_feedback(place, samples, Feedback.empty(4))
        same_feedback(journal.feedback_at(place, samples), Feedback.empty(4))

    def test_of_several_acts_is_merged(self, journal, place, samples):
        first = feedback([[1.0]], metrics={"failed": 1.0, "first": 5.0}, critiques=("good",))
        journal.add_feedback(place, samples[2:3], first)
        assert journal.feedback_at(place, samples[2:3]) is not None
        assert journal.feedback_at(place, samples) is None
        rest = [samples[0], samples[1], samples[3]]
        journal.add_feedback(place, rest, feedback([[0.0], [2.0], [3.0]], metrics={"failed": 0.0}))
        merged = journal.feedback_at(place, samples)
        assert merged.rewards[:, 0].tolist() == [0.0, 2.0, 1.0, 3.0]
        assert merged.critiques == (None, None, "good", None)
        assert merged.metrics == {"failed": 0.25, "first": 5.0}

    def test_of_one_unit_is_read_without_the_others(self, journal, place, make_sample):
        units = [[make_sample(number) for number in range(start, start + 64)] for start in range(0, 64 * 20, 64)]

        def steps_to_ask(samples):
            """How many steps of SQLite's machine the question takes, in hundreds."""
            count = 0

            def tick():
                nonlocal count
                count += 1

            connection = journal._engine.raw_connection()
            connection.set_progress_handler(tick, 100)
            connection.close()
            assert (journal.feedback_at(place, samples) is None) == (samples is units[-1])
            return count

        asked = []
        for unit in units:
            journal.add_samples(place, unit)
            if unit is not units[-1]:
                pairs = (Preference(0, 1), Preference(2, 3))
                journal.add_feedback(place, unit, feedback([[1.0]] * 64, preferences=pairs))
                asked.append(steps_to_ask(unit))
        asked.append(steps_to_ask(units[-1]))
        assert asked[0] > 5, "the handler counted nothing"
        assert max(asked) < 1.5 * asked[0]

    def test_at_another_place_is_none(self, journal, place, samples):
        journal.add_feedback(place, samples, feedback([[1.0]] * 4))
        assert journal.feedback_at(place._replace(round=1), samples) is None

    def test_of_different_rewards_is_not_merged(self, journal, place, samples):
        journal.add_feedback(place, samples[:2], feedback([[1.0], [1.0]]))
        journal.add_feedback(place, samples[2:], feedback([[1.0, 1.0], [1.0, 1.0]]))
        with pytest.raises(ValueError, match="different rewards"):
            journal.feedback_at(place, samples)

    def test_kinds_are_apart(self, journal, place, samples):
        gold, reward = feedback([[1.0]] * 4), feedback([[0.0]] * 4)
        journal.add_feedback(place, samples, gold, "gold")
        assert journal.feedback_at(place, samples) is None
        journal.add_feedback(place, samples, reward)
        same_feedback(journal.feedback_at(place, samples), reward)
        same_feedback(journal.feedback_at(place, samples, "gold"), gold)

    def test_twice_is_an_error_and_adds_nothing(self, journal, place, samples):
        journal.add_feedback(place, samples[:1], feedback([[1.0]]))
        with pytest.raises(ValueError, match="reward feedback already"):
            journal.add_feedback(place, samples, feedback([[1.0]] * 4))
        assert journal.feedback_at(place, samples[:1]) is not None
        assert journal.feedback_at(place, samples[1:2]) is None

    @pytest.mark.parametrize(
        ("broken", "match"),
        [
            (feedback([[1.0]]), "4 samples in 1 parts"),
            (feedback([[1.0]] * 4, extra=({},)), "has 1 extra"),
            (replace(feedback([[1.0, 1.0]] * 4), parts=("a", "a")), "one name"),
            (replace(feedback([[np.nan]] * 4), mask=np.ones((4, 1), dtype=bool)), "NaN"),
        ],
    )
    def test_must_fit(self, journal, place, samples, broken, match):
        with pytest.raises(ValueError, match=match):
            journal.add_feedback(place, samples, broken)


class TestRounds:
    DECISION = Decision(True, "no loss \ud800", 0.5, 0.4, float("nan"), 0.2, 10, True, {"dev": {"upper": 0.2}})

    def test_comes_back(self, journal, make_sample, place):
        journal.add_samples(place, [make_sample(number) for number in range(3)])
        budget = Budget(10, 20, 1e12, 0.1, 3)
        steps = [(np.int64(1), {"loss": 2.0}), (2, {"loss": float("nan")})]
        decision = replace(self.DECISION, difference=0.1, best=np.bool_(True), n=np.int64(10), upper=np.float64(0.2))
        commit(journal, 0, kept=["s0", "s2", "s0"], steps=steps, decision=decision, budget=budget)
        [row] = journal.rounds("run")
        assert (row.round, row.summary, row.budget) == (0, {"reward": 0.5}, budget)
        assert [(row.round, row.decision) for row in journal.decisions("run")] == [(0, decision)]
        assert journal.kept("run") == {"s0", "s2"}
        first, second = journal.steps("run")
        assert (first.round, first.step, first.metrics) == (0, 1, {"loss": 2.0})
        assert np.isnan(second.metrics["loss"])

    def test_figures_may_be_missing(self, journal):
        commit(journal, decision=self.DECISION)
        [row] = journal.decisions("run")
        assert np.isnan(row.decision.difference)

    def test_again_replaces_its_own_rows(self, journal, make_sample, place):
        journal.add_samples(place, [make_sample(number) for number in range(3)])
        commit(journal, 0, kept=["s2"])
        commit(journal, 1, kept=["s0"], steps=[(1, {"loss": 1.0})], decision=self.DECISION)
        commit(journal, 1, kept=["s1"], steps=[(1, {"loss": 2.0})], summary={"reward": 1.0})
        assert [row.summary for row in journal.rounds("run")] == [{"reward": 0.5}, {"reward": 1.0}]
        assert [row.metrics for row in journal.steps("run")] == [{"loss": 2.0}]
        assert journal.kept("run") == {"s1", "s2"}
        assert journal.decisions("run") == []

    def test_is_one_transaction(self, journal):
        with pytest.raises(Exception, match="FOREIGN KEY"):
            commit(journal, 0, kept=["unknown"])
        assert journal.rounds("run") == []
        assert journal.checkpoints("run") == []

    def test_progress_keeps_the_steps_before_it(self, journal):
        metrics = {"loss": 1.0}
        journal.commit_progress(
            "run", round=0, step=2, checkpoint=("a", "h"), step_metrics=[(1, metrics), (2, metrics)]
        )
        commit(journal, 0, steps=[(3, metrics)])
        assert [(row.round, row.step) for row in journal.steps("run")] == [(0, 1), (0, 2), (0, 3)]


class TestCheckpoints:
    @pytest.fixture
    def three(self, journal):
        commit(journal, 0)
        for step in (10, 9):
            journal.commit_progress("run", round=1, step=step, checkpoint=(f"step-{step}", "h"), step_metrics=[])

    def test_newest_first(self, journal, three):
        assert [(row.name, row.round, row.step) for row in journal.checkpoints("run")] == [
            ("step-10", 1, 10),
            ("step-9", 1, 9),
            ("round-0", 0, None),
        ]
        commit(journal, 1)
        newest = journal.checkpoints("run")[0]
        assert (newest.name, newest.hash, newest.step) == ("round-1", "hash-1", None)

    def test_quarantine_until_committed_again(self, journal, three):
        journal.quarantine("run", "step-10", "a byte flipped")
        assert [row.name for row in journal.checkpoints("run")] == ["step-9", "round-0"]
        [event] = journal.events("run")
        assert (event.round, event.level) == (1, "warning")
        assert event.message == "checkpoint step-10 is in quarantine: a byte flipped"
        journal.commit_progress("run", round=1, step=10, checkpoint=("step-10", "new"), step_metrics=[])
        assert journal.checkpoints("run")[0].hash == "new"


class TestEvaluationsAndEvents:
    def test_evaluation_comes_back(self, journal):
        scores = np.array([1.0, np.nan, 0.0])
        journal.add_evaluation("run", 0, "base", Evaluation("dev", "policy", np.ones(2)), (0.0, 1.0))
        journal.add_evaluation("run", 0, "base", Evaluation("dev", "policy", scores), (0.25, float("nan")))
        [row] = journal.evaluations("run")
        assert (row.round, row.stage, row.evaluation.split, row.evaluation.policy_id) == (0, "base", "dev", "policy")
        np.testing.assert_array_equal(row.evaluation.scores, scores)
        assert row.interval[0] == 0.25
        assert np.isnan(row.interval[1])

    def test_events_in_order(self, journal):
        journal.add_event("run", None, "info", "b \udcff")
        journal.add_event("run", 3, "warning", "a")
        assert [(row.round, row.level, row.message) for row in journal.events("run")] == [
            (None, "info", "b \udcff"),
            (3, "warning", "a"),
        ]


class TestPages:
    def test_pages_and_filters(self, journal, make_sample, place):
        samples = [make_sample(number) for number in range(24)]
        journal.add_samples(place, samples[:16])
        journal.add_samples(Place("run", 1, 0, "dev"), samples[16:])
        journal.add_feedback(place, samples[:2], feedback([[1.0, np.nan], [1.0, 2.0]]))
        commit(journal, kept=["s1"])
        everything = journal.page_samples("run", limit=100)
        assert [row.sample for row in everything] == samples[16:] + samples[:16], "phases come in alphabetical order"
        assert everything == journal.page_samples("run", limit=9) + journal.page_samples("run", limit=90, offset=9)
        assert everything == list(journal.all_samples("run"))
        first, second, third = journal.page_samples("run", phase="train", limit=3)
        assert (first.place, first.prompt, first.kept) == (place, "0+1=", False)
        assert first.parts == {"correct": 1.0, "short": None}
        assert (second.kept, second.total, second.parts) == (True, 1.5, {"correct": 1.0, "short": 2.0})
        assert (third.total, third.parts) == (None, {})
        assert len(journal.page_samples("run", round=1, limit=100)) == 8
        assert [row.sample for row in journal.page_samples("run", problem_id="p1", limit=100)] == samples[8:16]
        assert journal.page_samples("other", limit=100) == []

    def test_a_page_is_found_through_the_index(self, journal):
        connection = journal._engine.raw_connection()
        query = "SELECT id FROM samples WHERE run_id = 'run' AND phase = 'train' ORDER BY phase, round, step LIMIT 5"
        [plan] = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + query)]
        connection.close()
        assert "COVERING INDEX samples_by_place" in plan


class TestTwoConnections:
    def test_a_reader_sees_whole_transactions_while_a_run_writes(self, journal, make_sample, place, tmp_path):
        with Journal.open(tmp_path / "journal.db", read_only=True) as reader, journal._writing() as connection:
            connection.exec_driver_sql("UPDATE runs SET status = 'paused'")
            assert reader.run("run").status == "running"
            connection.commit()
            assert reader.run("run").status == "paused"

    def test_a_read_only_journal_refuses_to_write(self, journal, tmp_path):
        with Journal.open(tmp_path / "journal.db", read_only=True) as reader:
            with pytest.raises(ConfigError, match="for reading only"):
                reader.set_status("run", "paused")
            with pytest.raises(Exception, match="readonly"), reader._engine.begin() as connection:
                connection.exec_driver_sql("UPDATE runs SET status = 'paused'")

    def test_pragmas(self, journal):
        connection = journal._engine.raw_connection()
        values = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
        connection.close()
        assert values == ["wal", 2, 1, 30000]


class TestOpening:
    def test_missing_file(self, tmp_path):
        with pytest.raises(ConfigError, match="no such journal"):
            Journal.open(tmp_path / "journal.db")
        assert list(tmp_path.iterdir()) == []

    def test_missing_folder(self, tmp_path):
        with pytest.raises(ConfigError, match="folder does not exist"):
            Journal.open(tmp_path / "no" / "journal.db", create=True)

    def test_not_a_database(self, tmp_path):
        path = tmp_path / "journal.db"
        path.write_text("rows and rows of something else" * 100)
        with pytest.raises(ConfigError, match="no SQLite database"):
            Journal.open(path)

    def test_somebody_elses_database(self, tmp_path):
        path = tmp_path / "journal.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE recipes (name)")
        connection.close()
        with pytest.raises(ConfigError, match="no journal of loopwise"):
            Journal.open(path)

    def test_newer_schema(self, tmp_path):
        path = tmp_path / "journal.db"
        Journal.open(path, create=True).close()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0099'")
        connection.close()
        with pytest.raises(ConfigError, match="newer loopwise \\(schema 99, this one knows 1\\)"):
            Journal.open(path)

    def test_odd_characters_in_the_path(self, tmp_path):
        folder = tmp_path / "50% of?mode=x #é"
        folder.mkdir()
        Journal.open(folder / "journal.db", create=True).close()
        with Journal.open(folder / "journal.db", read_only=True) as journal:
            assert journal.runs() == []

    def test_a_url(self, tmp_path):
        with Journal.open(f"sqlite:///{tmp_path}/journal.db", create=True) as journal:
            assert journal.runs() == []
