"""Scores of reasoning-gym: entries survive their text, and what a model wrote is never run."""

from __future__ import annotations

import ast
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from loopwise.evaluate.gym import EVALUATES, PARSES, harmless, make_dataset, pack, score
from loopwise.evaluate.rules import RULES

reasoning_gym = pytest.importorskip("reasoning_gym", reason="needs reasoning-gym")
CODE = [
    "__import__('os').system('touch {}')",
    "[].append(open('{}', 'w'))",
    "eval(chr(49))",
    " \t[open('{}', 'w')]",
    "(lambda: open('{}', 'w'))()",
    "[open('{}', 'w') for _ in [1]]",
]


def test_entries_survive_their_text() -> None:
    entry = {
        "question": "left out",
        "answer": "1",
        "metadata": OrderedDict(
            grid=((1, 2), [3]),
            numbered={1: "one"},
            scalar=np.float64(0.5),
            name=np.str_("x"),
            lost=float("inf"),
            none=None,
        ),
    }
    metadata = ast.literal_eval(pack("chain_sum", {"min_terms": 2}, entry))["entry"]["metadata"]
    assert metadata == {
        "grid": ((1, 2), [3]), "numbered": {1: "one"}, "scalar": 0.5, "name": "x", "lost": "inf", "none": None
    }  # fmt: skip


def test_scores() -> None:
    dataset = make_dataset("spell_backward", {}, 1)
    packed = pack("spell_backward", {}, dataset[0])
    answer = dataset[0]["answer"]
    assert [score(packed, text) for text in (answer, f" {answer}\n", answer + "x")] == [
        1.0,
        1.0,
        score(packed, answer + "x"),
    ]
    assert score(packed, answer + "x") < 1.0
    assert score("no entry", answer) is None
    assert score("{'dataset': 'unknown', 'parameters': {}, 'entry': {}}", answer) is None


def test_partial_credit_is_no_solution() -> None:
    entry = {"question": "", "answer": "abcd", "metadata": {"source_dataset": "spell_backward"}}
    packed = pack("spell_backward", {}, entry)
    judged = {"completions": ["abcd", "abcx", "no", "no"], "entry": [packed, packed, packed, None]}
    assert RULES["reasoning_gym"].make({})(**judged) == [1.0, 0.75, 0.0, None]
    assert RULES["reasoning_gym"].make({"solved": True})(**judged) == [1.0, 0.0, 0.0, None]


def test_a_scorer_that_fails_on_an_answer_gives_nothing() -> None:
    dataset = make_dataset("prime_factorization", {}, 1)
    assert score(pack("prime_factorization", {}, dataset[0]), "junk") == 0.0


@pytest.mark.parametrize("name", sorted(EVALUATES | PARSES))
@pytest.mark.parametrize("code", CODE)
def test_code_is_no_answer(name: str, code: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    dataset = make_dataset(name, {}, 1)
    assert score(pack(name, {}, dataset[0]), code.format(trace)) == 0.0
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("countdown", "(3 + 4) * 5 - 6/2"),
        ("simple_integration", "3*x**2 + 7*x/2 + C"),
        ("intermediate_integration", "exp(2*x)*sin(x) + log(x**2 + 1) + C"),
        ("polynomial_multiplication", "-3*x**2*y + 1.5"),
        ("n_queens", "_ Q _\nQ _ _"),
        ("spiral_matrix", "[1, 2, 3]"),
        ("spiral_matrix", "1 2 3"),
        ("chain_sum", "__import__('os')"),
    ],
)
def test_honest_answers_pass(name: str, answer: str) -> None:
    assert harmless(name, answer)


def test_no_other_scorer_evaluates_what_it_is_given() -> None:
    """A version of reasoning-gym with one more must be noticed."""
    suspects = {"eval", "exec", "compile", "parse_expr", "sympify"}
    found = set()
    for path in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "def score_answer" in source else ():
            if isinstance(node, ast.FunctionDef) and node.name == "score_answer":
                calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                names = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
                found |= {path.stem} if names & suspects else set()
    # number_sorting evaluates its own answer, never the model's.
    assert found == EVALUATES | PARSES | {"number_sorting"}
