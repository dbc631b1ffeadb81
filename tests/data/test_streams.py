"""Streams of problems: keys, disjoint splits, and rounds that walk through every problem."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwise.data.streams import check_disjoint, draw, draw_mixture, problem_key, split
from loopwise.errors import ConfigError, DataError, OverlapError
from loopwise.types import Problem, Prompt


def make(*prompts: Prompt) -> list[Problem]:
    return [Problem(f"id{n}", prompt) for n, prompt in enumerate(prompts)]


def numbered(count: int) -> list[Problem]:
    return make(*(f"problem {n}" for n in range(count)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a  b\n", " a b", True),
        ("ﬁne １", "fine 1", True),
        ("a b", "ab", False),
        ("a", "A", False),
        ("a b", ({"role": "user", "content": "a\tb"},), True),
        ("a", ({"role": "system", "content": "a"},), False),
        (
            ({"role": "user", "content": "a"}, {"role": "user", "content": "b"}),
            ({"role": "user", "content": "a b"},),
            False,
        ),
    ],
)
def test_problem_key_normalises(one: Prompt, other: Prompt, same: bool) -> None:
    first, second = make(one, other)
    assert (problem_key(first) == problem_key(second)) is same


def test_no_column_makes_a_problem_another_one() -> None:
    first, second = Problem("1", "12+7", {"_key": "train"}), Problem("2", "12+7", {"_key": "dev"})
    assert problem_key(first) == problem_key(second)
    assert len(problem_key(first)) == 32
    with pytest.raises(OverlapError):
        check_disjoint([first], {"dev": [second]})


def test_check_disjoint_by_a_key_of_ones_own() -> None:
    train, dev = make("12+7"), make("7+12")
    check_disjoint(train, {"dev": dev})
    with pytest.raises(OverlapError, match=r'for example "7\+12" = "12\+7"\. '):
        check_disjoint(train, {"dev": dev}, lambda problem: "+".join(sorted(str(problem.prompt).split("+"))))


def test_check_disjoint_accepts_repeats_inside_a_split() -> None:
    check_disjoint(make("a", "a"), {"dev": make("b", "b"), "test": make("c"), "skill": []})


def test_check_disjoint_names_every_pair_of_splits() -> None:
    with pytest.raises(OverlapError) as caught:
        check_disjoint(make("a", "b", "c"), {"dev": make("x", "c ", "b", "a"), "test": make("x", "y")})
    assert str(caught.value) == (
        'dev: 3 of 4 different problems are also in train, for example "c" and "b". '
        "Remove them from train or from dev.\n"
        'test: 1 of 2 different problems are also in dev, for example "x". '
        "Remove them from dev or from test."
    )


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (Problem("1", "3" * 40), '"' + "3" * 40 + '"'),
        (Problem("1", "a\n\n" + "3" * 40), '"a ' + "3" * 38 + '…"'),
        (Problem("1", "", {"text": '床前"明月光'}), '"床前\\"明月光"'),
        (Problem("1", ({"role": "system", "content": "Add."}, {"role": "user", "content": "2+2"})), '"2+2"'),
    ],
)
def test_overlaps_show_how_problems_begin(problem: Problem, shown: str) -> None:
    with pytest.raises(OverlapError) as caught:
        check_disjoint([problem], {"dev": [problem]})
    assert f"for example {shown}. Remove" in str(caught.value)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(0, 9), st.data())
def test_split_is_disjoint_deterministic_and_blind_to_order(numbers: list[int], seed: int, data: st.DataObject) -> None:
    problems = make(*(f"problem {n}" for n in numbers))
    dev = data.draw(st.integers(0, len(problems)))
    sizes = {"dev": dev, "train": len(problems) - dev}
    try:
        parts = split(problems, sizes, seed)
    except DataError:
        # Only equal prompts, which must stay together, may make exact sizes impossible.
        if len(set(numbers)) == len(numbers):
            raise
        return
    assert {name: len(part) for name, part in parts.items()} == sizes
    check_disjoint(parts["train"], {"dev": parts["dev"]})
    assert sorted(problem.id for part in parts.values() for problem in part) == sorted(p.id for p in problems)
    assert split(data.draw(st.permutations(problems)), sizes, seed) == parts


def test_split_leaves_the_rest_out_and_depends_on_the_seed() -> None:
    problems = numbered(100)
    parts = split(problems, {"dev": 20, "test": 30}, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"dev": 20, "test": 30}
    assert parts["dev"] != split(problems, {"dev": 20}, seed=1)["dev"]
    assert parts["dev"] != problems[:20]
    more = split(numbered(120), {"dev": 20}, seed=0)["dev"]
    kept = {problem.id for problem in parts["dev"]} & {problem.id for problem in more}
    assert len(kept) >= 10, "a problem's place depends on its own key"


@pytest.mark.parametrize(
    ("sizes", "kind", "message"),
    [
        (
            {"train": 3, "dev": 2},
            DataError,
            "3 train + 2 dev = 5 problems wanted, but there are 4. Choose smaller sizes or add rows.",
        ),
        (
            {"dev": 3},
            DataError,
            'split "dev": 3 problems cannot be filled without parting equal prompts. '
            "Choose another size, or remove rows whose prompt stands in the file twice.",
        ),
        (
            {"dev": -1},
            ConfigError,
            'split "dev": expected a size of at least 0, found -1. Name a larger one, or make the others smaller.',
        ),
    ],
)
def test_split_refuses(sizes: dict[str, int], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        split(make("a", "a", "b", "b"), sizes, seed=0)
    assert str(caught.value) == message


@given(st.integers(1, 30), st.data())
def test_draw_walks_through_every_pass(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    problems = numbered(total)
    rounds = [[problem.id for problem in draw(problems, count, 7, round)] for round in range(4 * total // count + 1)]
    assert all(len(set(drawn)) == count for drawn in rounds)
    walked = [identity for drawn in rounds for identity in drawn]
    for start in range(0, len(walked) - total + 1, total):
        assert len(set(walked[start : start + total])) == total


def test_draw_is_random_and_fresh_each_pass() -> None:
    problems = numbered(50)
    first, second = draw(problems, 50, 0, 0), draw(problems, 50, 0, 1)
    assert first != problems
    assert first != second
    assert first == draw(problems, 50, 0, 0) != draw(problems, 50, 1, 0)


@pytest.mark.parametrize("round", [0, 1, 5])
def test_draw_of_more_than_there_are_repeats_evenly(round: int) -> None:
    drawn = [problem.id for problem in draw(numbered(3), 8, 0, round)]
    assert len(drawn) == 8
    assert {drawn.count(identity) for identity in ("id0", "id1", "id2")} <= {2, 3, 4}


def test_draw_from_nothing() -> None:
    with pytest.raises(DataError) as caught:
        draw([], 1, 0, 0)
    assert str(caught.value) == "no problems to draw from. Give at least one."


MIXTURES = st.lists(st.tuples(st.integers(1, 12), st.floats(0.01, 10.0)), min_size=1, max_size=4)


@given(MIXTURES, st.integers(1, 12), st.integers(0, 2**40))
def test_draw_mixture_follows_weights_and_walks_every_source(
    mixture: list[tuple[int, float]], count: int, seed: int
) -> None:
    sources = [make(*(f"{name} {n}" for n in range(size))) for name, (size, _) in enumerate(mixture)]
    sources = [[Problem(problem.prompt, problem.prompt) for problem in problems] for problems in sources]
    weights = [weight for _, weight in mixture]
    total = sum(size for size, _ in mixture)
    rounds = [draw_mixture(sources, weights, min(count, total), seed, round) for round in range(6)]
    assert all(len({problem.id for problem in drawn}) == min(count, total) for drawn in rounds)
    for name, problems in enumerate(sources):
        counts = [sum(problem.id.startswith(f"{name} ") for problem in drawn) for drawn in rounds]
        assert max(counts) - min(counts) <= 1, "a share, rounded up or down"
        walked = [problem.id for drawn in rounds for problem in drawn if problem.id.startswith(f"{name} ")]
        for start in range(0, len(walked) - len(problems) + 1, len(problems)):
            assert len(set(walked[start : start + len(problems)])) == len(problems), "every pass visits each once"


def test_draw_mixture_of_shares_worked_out_by_hand() -> None:
    large, small = numbered(100), [Problem(f"s{n}", "s") for n in range(4)]
    rounds = [draw_mixture([large, small], [3, 1], 10, 5, round) for round in range(200)]
    mean = sum(problem.prompt == "s" for drawn in rounds for problem in drawn) / 200
    assert mean == pytest.approx(2.5, abs=0.15)
    assert len([p for p in draw_mixture([large, small], [1, 9], 10, 5, 3) if p.prompt == "s"]) == 4
    with pytest.raises(DataError, match="no problems to draw from"):
        draw_mixture([large, []], [1, 1], 10, 0, 0)
