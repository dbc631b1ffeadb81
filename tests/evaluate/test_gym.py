"""Scores of reasoning-gym: entries survive their text, and what a model wrote is never run."""

from __future__ import annotations

import ast
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from loopwise.evaluate.gym import EVALUATES, EVALUATES_ENTRY, PARSES, harmless, make_dataset, pack, score
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


def entry_text(dataset: str, answer: object, source: str = "anything", **metadata: object) -> str:
    metadata = {"source_dataset": source, "valid_answers": [], "numbers": [2], "target": 2, **metadata}
    return repr({"dataset": dataset, "parameters": {}, "entry": {"answer": answer, "metadata": metadata}})


@pytest.mark.parametrize("name", sorted(EVALUATES | PARSES))
def test_the_scorer_that_runs_decides_whatever_its_entry_says(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = CODE[0].format(trace)
    metadata = {"integrand": "x", "variable": "x"}
    assert score(entry_text(name, "1", **metadata), code) == 0.0
    # An answer that is the expected one, as rows may have it, is code all the same.
    score(entry_text(name, code, **metadata), code)
    assert not trace.exists()


def test_a_composite_scores_as_its_member_does(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    parameters = {"datasets": [{"name": "n_queens"}, {"name": "chain_sum"}]}
    dataset = make_dataset("composite", parameters, 1, 20)
    for entry in (dataset[index] for index in range(6)):
        packed = pack("composite", parameters, entry)
        assert score(packed, entry["answer"]) == 1.0
        assert score(packed, CODE[0].format(trace)) == 0.0
        source = entry["metadata"]["source_dataset"]
        assert score(packed.replace(f"'source_dataset': '{source}'", "'source_dataset': 'countdown'"), "1") is None
    assert not trace.exists()


def test_entries_are_not_run_either(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for code in (text.format(trace) for text in CODE):
        assert score(entry_text("number_sorting", f"{code} or ['1']", direction="ascending"), '["1"]') is None
        assert score(entry_text("bitwise_arithmetic", "0x1", problem=code), "0x1") is None
        assert score(entry_text("polynomial_multiplication", code), "x") is None
        for name in ("simple_integration", "intermediate_integration"):
            assert score(entry_text(name, "x", variable="x", integrand=code), "x") is None
    assert not trace.exists()
    assert score(entry_text("number_sorting", b"['1']", direction="ascending"), '["1"]') is None
    assert score(entry_text("number_sorting", "['1']", direction="ascending"), '["1"]') == 1.0
    assert score(entry_text("bitwise_arithmetic", "0x4", problem="((0x1 << 0x2) * 0x1)"), "4") == 1.0
    assert score(entry_text("bitwise_arithmetic", "0x4", problem="(0x1 << 0xffffffff)"), "4") is None
    assert score(entry_text("simple_integration", "x**2", variable="x", integrand="2*x"), "x**2 + C") == 1.0


@pytest.mark.parametrize("packed", ["(" * 100_000, "[" * 150 + "]" * 150, "-" * 3000 + "1", "{}", "[1]", "1"])
def test_texts_that_hold_no_entry(packed: str) -> None:
    assert score(packed, "1") is None


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        *(("countdown", text) for text in (
            "2**9999999999", "9**9**9**9", "(((9**99)**99)**99)**99", "2**-9999999999", "9**(1/(1/9999999999))",
            "2**(x - x + 9999999999)", "(2/3)**99999", "exp(99999*log(9))", "exp(999999*ln(9)/7)", "1e999", "3j",
            "N(pi, 10000000)", "factorial(9**9)", "sin(x, evaluate=x)", "sin(*x)", "x.y", "x(3)", "True", "eval",
            "x if x else y", "lambda", "9" * 5000, "-" * 3000 + "1", "1 == 2", "exec(x)", "x # y", "cosh(9**9**9)",
            "(x + 1)**9999", "0.1**99999",
        )),
        ("coin_flip", "1e999999999"),
        ("coin_flip", "1E-9_99,999"),
        ("rubiks_cube", "R999999999999"),
        ("rubiks_cube", "R U9999 " * 2),
        ("rush_hour", "F+999999999"),
    ],
)  # fmt: skip
def test_answers_that_would_take_for_ever(name: str, answer: str) -> None:
    assert not harmless(name, answer)


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
        ("countdown", "94*4 - 61 - 6"),
        ("intermediate_integration", "x*asin(3*x) + sqrt(1 - 9*x**2)/3 + C"),
        ("intermediate_integration", "-4*(-2*x - 8)**(3/2)/3 + 3*Integral(x**3*cos(3*x), x)"),
        ("intermediate_integration", "exp(-0.25*x**2 + 20*x)/1.75 + E**x"),
        ("simple_integration", "alpha**11/12 - 5*alpha"),
        ("polynomial_multiplication", " + ".join(f"{99_999 + power}*x**{power}*y**3" for power in range(99))),
        ("coin_flip", "1.5e-3"),
        ("rubiks_cube", "R U2 R' F3"),
        ("rush_hour", "F+1 K-2"),
    ],
)
def test_honest_answers_pass(name: str, answer: str) -> None:
    assert harmless(name, answer)


def test_no_other_scorer_evaluates_what_it_is_given() -> None:
    """A version of reasoning-gym with one more must be noticed, also where a function of its own stands between."""
    suspects = {"eval", "exec", "compile", "parse_expr", "sympify", "literal_eval", "Fraction", "loads", "load"}
    found: dict[str, set[str]] = {}
    for path in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if "def score_answer" in source else ():
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if called in suspects and ast.unparse(node.func) not in ("json.loads", "re.compile"):
                    found.setdefault(called, set()).add(path.stem)
    # codeio runs programs of its own data to make problems; propositional_logic has a parser of its own.
    assert found == {
        "eval": EVALUATES | {"number_sorting", "bitwise_arithmetic"},
        "parse_expr": PARSES | {"propositional_logic"},
        "exec": {"codeio"},
        "Fraction": {"coin_flip", "simple_integration"},
    }
    assert {"number_sorting", "bitwise_arithmetic"} <= EVALUATES_ENTRY
