"""Pass rates by problem, from the journal alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loopwise.runs.journal import Journal, Place
from loopwise.types import Feedback, Sample


def test_pass_rates_are_those_of_the_last_round(journal: Journal, make_sample: Callable[..., Sample]) -> None:
    def judge(place: Place, problem: str, *rewards: float | None) -> None:
        values = np.array([[np.nan if reward is None else reward] for reward in rewards])
        samples = [
            make_sample(n, id=f"{place.phase}/{place.round}/{problem}/{n}", problem_id=problem)
            for n in range(len(rewards))
        ]
        journal.add_samples(place, samples)
        journal.add_feedback(place, samples, Feedback(("right",), (1.0,), values, ~np.isnan(values)))

    train = Place("run", 1, 0, "train")
    judge(train, "p1", 1.0, 0.0, 0.5)
    judge(train, "p2", 1.0, None, 1.0 - 1e-12)
    judge(train, "p3", None, None)
    judge(train._replace(phase="dev"), "p4", 1.0)
    judge(train._replace(round=2), "p1", 1.0, 1.0)
    judge(train._replace(round=3), "p2", 0.0)
    assert journal.pass_rates("run", 1, 1.0) == {}
    assert journal.pass_rates("run", 2, 1.0) == {"p1": (1, 1, 3), "p2": (1, 2, 2), "p3": (1, 0, 0)}
    assert journal.pass_rates("run", 3, 1.0) == {"p1": (2, 2, 2), "p2": (1, 2, 2), "p3": (1, 0, 0)}
    assert journal.pass_rates("run", 2, 0.5)["p1"] == (1, 2, 3)
    assert journal.pass_rates("other", 9, 1.0) == {}


def test_revisions_say_nothing_of_how_hard_a_problem_is(journal: Journal, make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample(0, id="draft", problem_id="p1"), make_sample(1, id="more", problem_id="p2", parent="draft")]
    place = Place("run", 1, 0, "train")
    journal.add_samples(place, samples)
    values = np.array([[0.0], [1.0]])
    journal.add_feedback(place, samples, Feedback(("right",), (1.0,), values, ~np.isnan(values)))
    assert journal.pass_rates("run", 2, 1.0) == {"p1": (1, 0, 1)}
    assert journal.drawn("run") == ["p1"]
    assert journal.drawn("other") == []
