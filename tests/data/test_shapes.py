"""Every format of rows: what is told by its columns, what prompt and completion are, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.encoded import labelled_from_rows

from loopwise.config.blocks import RowFormat
from loopwise.data.row import Row
from loopwise.data.rows import problems_from_rows, read_source
from loopwise.data.shapes import FORMATS, shape_of
from loopwise.data.streams import problem_key
from loopwise.errors import ConfigError, ProblemFileError


def said(*turns: str) -> list[dict[str, str]]:
    """Messages from ``u: text`` and the like."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


def told(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """A sharegpt conversation."""
    return [{"from": speaker, "value": text} for speaker, text in turns]


ASKED = said("u: 2+2?")
GOES_ON = said("a: 4", "u: sure?", "a: yes")
CASES: list[tuple[str, dict[str, Any], Any, Any, dict[str, Any]]] = [
    ("text", {"text": "A poem.", "by": "me"}, "", "A poem.", {"text": "A poem.", "by": "me"}),
    ("messages", {"messages": [*ASKED, *said("a: 4")], "n": 1}, ASKED, "4", {"completion": "4", "n": 1}),
    ("messages", {"messages": [*ASKED, *GOES_ON]}, ASKED, GOES_ON, {"completion": GOES_ON}),
    (
        "messages",
        {"messages": said("s: be brief", "u: 1", "t: 2", "a: 3")},
        said("s: be brief", "u: 1", "t: 2"),
        "3",
        {"completion": "3"},
    ),
    ("prompt_completion", {"prompt": "2+2=", "completion": "4", "n": 1}, "2+2=", "4", {"completion": "4", "n": 1}),
    ("prompt_completion", {"prompt": ASKED, "completion": said("a: 4")}, ASKED, "4", {"completion": "4"}),
    ("prompt_completion", {"prompt": ASKED, "completion": "4"}, ASKED, "4", {"completion": "4"}),
    ("prompt_completion", {"prompt": "2+2?", "completion": said("a: 4")}, "2+2?", "4", {"completion": "4"}),
    ("prompt_completion", {"prompt": "2+2?", "completion": GOES_ON}, ASKED, GOES_ON, {"completion": GOES_ON}),
    ("preference", {"prompt": "2+2=", "chosen": "4", "rejected": "5"}, "2+2=", "4", {"chosen": "4", "rejected": "5"}),
    (
        "preference",
        {"prompt": "2+2?", "chosen": [*ASKED, *said("a: 4")], "rejected": [*ASKED, *said("a: 5")]},
        "2+2?",
        "4",
        {"chosen": "4", "rejected": "5"},
    ),
    (
        "preference",
        {"chosen": "the sky is blue", "rejected": "the sky is green"},
        "the sky is",
        " blue",
        {"chosen": " blue", "rejected": " green"},
    ),
    (
        "preference",
        {"chosen": [*ASKED, *said("a: 4")], "rejected": [*ASKED, *said("a: 5")], "n": 1},
        ASKED,
        "4",
        {"chosen": "4", "rejected": "5", "n": 1},
    ),
    ("unpaired", {"prompt": "2+2=", "completion": "4", "label": True}, "2+2=", "4", {"completion": "4", "label": True}),
    ("alpaca", {"instruction": "Add.", "input": "2 and 2", "output": "4"}, "Add.\n2 and 2", "4", {"output": "4"}),
    (
        "alpaca",
        {"instruction": "Say hi.", "input": None, "output": "hi", "system": "", "history": []},
        "Say hi.",
        "hi",
        {"output": "hi"},
    ),
    (
        "alpaca",
        {"instruction": "2+2?", "output": "4", "system": "Add."},
        said("s: Add.", "u: 2+2?"),
        "4",
        {"output": "4"},
    ),
    (
        "alpaca",
        {"instruction": "sure?", "output": "yes", "history": [["2+2?", "4"]]},
        ASKED,
        GOES_ON,
        {"output": GOES_ON},
    ),
    (
        "sharegpt",
        {"conversations": told([("human", "2+2?"), ("gpt", "4")]), "id": "x"},
        ASKED,
        "4",
        {"completion": "4", "id": "x"},
    ),
    (
        "sharegpt",
        {"conversations": told([("system", "Add."), ("user", "2+2?"), ("assistant", "4")])},
        said("s: Add.", "u: 2+2?"),
        "4",
        {"completion": "4"},
    ),
    (
        "sharegpt",
        {"conversations": told([("human", "2+2?"), ("chatgpt", "4")]), "system": "Add."},
        said("s: Add.", "u: 2+2?"),
        "4",
        {"completion": "4"},
    ),
    (
        "sharegpt",
        {"conversations": told([("human", "q"), ("function_call", "f()"), ("observation", "4"), ("gpt", "4!")])},
        said("u: q"),
        said("a: f()", "t: 4", "a: 4!"),
        {"completion": said("a: f()", "t: 4", "a: 4!")},
    ),
    (
        "sharegpt",
        {"conversations": [{"role": "human", "text": "2+2?", "weight": None}, {"user": "gpt", "content": "4"}]},
        ASKED,
        "4",
        {"completion": "4"},
    ),
    ("question_answer", {"question": "2+2?", "answer": "4"}, "2+2?", "4", {"answer": "4"}),
]


def plain(value: Any) -> Any:
    """Tuples of messages as the lists that rows hold."""
    return json.loads(json.dumps(value))


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("format", ["auto", "named"])
@pytest.mark.parametrize(("name", "row", "prompt", "completion", "columns"), CASES)
def test_formats(
    tmp_path: Path, format: Any, name: Any, row: dict[str, Any], prompt: Any, completion: Any, columns: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.jsonl", row)
    (labelled,) = labelled_from_rows(path, format="auto" if format == "auto" else name)
    assert plain(labelled.problem.prompt) == prompt
    assert plain(labelled.completion) == completion
    assert labelled.problem.columns == columns, "JSON as it comes back from a journal"
    assert isinstance(labelled.completion, str | tuple)
    (problem,) = problems_from_rows(path, format="auto" if format == "auto" else name)
    assert plain(problem.prompt) in (prompt, row.get("prompt"))
    assert shape_of([Row("", 1, row)], "auto", None, None).name == name


def test_every_format_of_a_recipe_is_read() -> None:
    assert {"auto", *FORMATS} == set(get_args(RowFormat))


def test_verl(tmp_path: Path) -> None:
    row = {
        "data_source": "gsm8k",
        "prompt": ASKED,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 0},
    }
    path = write(tmp_path / "a.jsonl", row)
    source = read_source(path, "auto", None, None, supervised=False)
    (problem,) = source.problems
    assert source.shape.name == "verl"
    assert set(source.shape.references) == {"ground_truth", "reward_model", "extra_info"}
    assert problem.prompt == tuple(ASKED)
    assert problem.columns == {name: row[name] for name in row if name != "prompt"} | {"ground_truth": "4"}
    with pytest.raises(ProblemFileError, match=r'line 1, column "completion": missing\. .* data\.completion_column'):
        labelled_from_rows(path)
    (labelled,) = labelled_from_rows(write(path, {**row, "response": "4"}), format="verl", completion_column="response")
    assert labelled.completion == "4"


def test_prompts_have_no_completion_to_learn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "2+2=", "answer": 4})
    assert problems_from_rows(path)[0].columns == {"answer": 4}
    with pytest.raises(ProblemFileError, match=r'line 1, column "completion": missing\. Known: answer, prompt\.'):
        labelled_from_rows(path)


def test_completions_are_only_looked_at_where_they_are_learned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "2+2?", "answer": 4})
    assert problems_from_rows(path)[0].columns == {"answer": 4}
    with pytest.raises(ProblemFileError, match=r'column "answer": expected text or a list of messages, found number 4'):
        labelled_from_rows(path)


@pytest.mark.parametrize(("true", "false"), [(True, False), ("true", "False"), ("1", "0")])
def test_rows_labelled_false_are_counted_and_not_learned(tmp_path: Path, true: Any, false: Any) -> None:
    rows = [{"prompt": f"{n}", "completion": "c", "label": false if n else true} for n in range(3)]
    path = write(tmp_path / "a.jsonl", *rows)
    source = read_source(path, "auto", None, None, supervised=True)
    assert [problem.prompt for problem in source.problems] == ["0"]
    assert source.left_out == 2
    unsupervised = problems_from_rows(path)
    assert [problem.columns for problem in unsupervised] == [
        {"completion": "c", "label": True},
        {"label": False},
        {"label": False},
    ], "a wrong completion is no gold answer"
    with pytest.raises(ProblemFileError, match=r'a\.jsonl, column "label": no row of it is true'):
        labelled_from_rows(write(path, *rows[1:]))


def test_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "where is my card?", "category": "card_arrival"})
    (labelled,) = labelled_from_rows(path, prompt_column="text", completion_column="category")
    assert (labelled.problem.prompt, labelled.completion) == ("where is my card?", "card_arrival")
    assert labelled.problem.columns == {"category": "card_arrival"}
    with pytest.raises(ProblemFileError, match=r'line 1, column "categroy": missing\. Did you mean "category"\?'):
        labelled_from_rows(path, prompt_column="text", completion_column="categroy")
    path = write(tmp_path / "a.jsonl", {"question": "2+2?", "answer": "4", "gold": "four"})
    assert labelled_from_rows(path, completion_column="gold")[0].problem.prompt == "2+2?"
    assert labelled_from_rows(path, prompt_column="gold")[0].completion == "4"
    path = write(tmp_path / "a.jsonl", {"chat": said("u: q", "a: 1")})
    assert labelled_from_rows(path, format="messages", prompt_column="chat")[0].completion == "1"
    path = write(tmp_path / "a.jsonl", {"poem": "Roses"})
    assert labelled_from_rows(path, format="text", completion_column="poem")[0].problem.columns == {"text": "Roses"}
    with pytest.raises(ConfigError, match=r'key "data.prompt_column": rows of format text have no such column'):
        labelled_from_rows(path, format="text", prompt_column="poem")


NAMED: list[tuple[str, dict[str, Any], str | None, str | None, Any, Any]] = [
    ("alpaca", {"instruction": "i", "input": "x", "output": "o"}, None, "output", "i\nx", "o"),
    ("alpaca", {"instruction": "i", "input": "x", "gold": "g"}, None, "gold", "i\nx", "g"),
    ("preference", {"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt", None, "p", "c"),
    ("preference", {"q": "p", "better": "c", "rejected": "r"}, "q", "better", "p", "c"),
    ("sharegpt", {"conversations": told([("human", "2+2?"), ("gpt", "4")])}, None, "completion", ASKED, "4"),
    ("messages", {"messages": [*ASKED, *said("a: 4")]}, "messages", "completion", ASKED, "4"),
    ("unpaired", {"prompt": "p", "completion": "c", "label": True}, None, "completion", "p", "c"),
    ("unpaired", {"q": "p", "completion": "c", "label": True}, "q", None, "p", "c"),
    ("verl", {"q": "p", "reward_model": {"ground_truth": "4"}, "a": "4"}, "q", "a", "p", "4"),
    ("question_answer", {"question": "q", "gold": "g"}, None, "gold", "q", "g"),
    # Where the named columns say what is meant, the others do not tell the format.
    ("prompt_completion", {"text": "t", "category": "c"}, "text", "category", "t", "c"),
    ("prompt_completion", {"text": "t", "kind": "c", "label": 3}, "text", "kind", "t", "c"),
    ("prompt_completion", {"prompt": "p", "completion": "c", "label": False, "gold": "g"}, None, "gold", "p", "g"),
    ("prompt_completion", {"instruction": "i", "input": "x", "output": "o", "text": "t"}, "text", "output", "t", "o"),
    ("question_answer", {"messages": ASKED, "answer": "4"}, "messages", "answer", ASKED, "4"),
    ("prompt_completion", {"prompt": "2+2?", "messages": [*ASKED, *said("a: 4")]}, "prompt", "messages", "2+2?", "4"),
]


@pytest.mark.parametrize(("name", "row", "prompt_column", "completion_column", "prompt", "completion"), NAMED)
def test_named_columns_take_the_place_of_the_format_s_own(
    tmp_path: Path, name: str, row: Any, prompt_column: Any, completion_column: Any, prompt: Any, completion: Any
) -> None:
    path = write(tmp_path / "a.jsonl", row)
    columns = {"prompt_column": prompt_column, "completion_column": completion_column}
    (labelled,) = labelled_from_rows(path, **columns)
    assert (plain(labelled.problem.prompt), labelled.completion) == (prompt, completion)
    assert shape_of([Row("", 1, row)], "auto", **columns).name == name


@pytest.mark.parametrize(
    ("row", "prompt_column", "completion_column", "references"),
    [
        (
            {"prompt": "p", "reward_model": {"ground_truth": "4"}},
            "prompt",
            None,
            {"ground_truth", "reward_model", "extra_info"},
        ),
        (
            {"q": "p", "reward_model": {"ground_truth": "4"}},
            "q",
            None,
            {"ground_truth", "reward_model", "extra_info"},
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt", "chosen", {"rejected"}),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "gold": "g"}, None, "gold", {"rejected", "chosen"}),
        ({"prompt": "p", "completion": "c", "label": True}, "prompt", "completion", {"label"}),
        ({"question": "q", "answer": "a", "gold": "g"}, None, "gold", {"answer"}),
        ({"question": "q", "answer": "a", "gold": "g"}, "answer", "gold", set()),
    ],
)
def test_what_gives_an_answer_away_is_a_reference_whatever_is_named(
    row: dict[str, Any], prompt_column: str | None, completion_column: str | None, references: set[str]
) -> None:
    assert set(shape_of([Row("", 1, row)], "auto", prompt_column, completion_column).references) == references


def test_rows_labelled_false_are_not_learned_where_columns_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "completion": "c", "label": not n} for n in range(3)]
    source = read_source(write(tmp_path / "a.jsonl", *rows), "auto", "prompt", "completion", supervised=True)
    assert ([problem.prompt for problem in source.problems], source.left_out) == (["0"], 2)


@pytest.mark.parametrize(
    ("row", "prompt_column", "completion_column", "message"),
    [
        ({"question": "q", "answer": "a"}, "qestion", None, 'column "qestion": missing. Did you mean "question"?'),
        ({"chosen": "a b", "rejected": "a c"}, "promt", None, 'column "promt": missing'),
        ({"messages": ASKED}, "mesages", None, 'column "mesages": missing. Did you mean "messages"?'),
        ({"text": "t", "category": "c"}, None, "category", 'column "prompt": missing. Known: category, text.'),
        (
            {"messages": ASKED},
            None,
            "answer",
            'key "data.completion_column": rows of format messages have no such column. Leave it out.',
        ),
    ],
)
def test_named_columns_that_are_not_there(
    tmp_path: Path, row: dict[str, Any], prompt_column: Any, completion_column: Any, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises((ConfigError, ProblemFileError)) as caught:
        labelled_from_rows(path, prompt_column=prompt_column, completion_column=completion_column)
    assert message in str(caught.value)


PRECEDENCE = [
    ("messages", ["prompt", "prompt_id", "messages"]),
    ("alpaca", ["instruction", "input", "output", "text"]),
    ("prompt", ["prompt", "question", "answer"]),
    ("question_answer", ["question", "answer", "text"]),
    ("verl", ["data_source", "prompt", "reward_model"]),
    ("unpaired", ["prompt", "completion", "label"]),
    ("preference", ["prompt", "chosen", "rejected"]),
    ("prompt_completion", ["prompt", "completion", "text"]),
]


@pytest.mark.parametrize(("name", "columns"), PRECEDENCE)
def test_the_richest_format_is_meant(name: str, columns: list[str]) -> None:
    assert shape_of([Row("a line 1", 1, dict.fromkeys(columns))], "auto", None, None).name == name


def test_columns_that_fit_several_formats_or_none(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError) as caught:
        problems_from_rows(write(tmp_path / "a.jsonl", {"messages": [], "chosen": "a", "rejected": "b"}))
    assert str(caught.value) == (
        f"{tmp_path / 'a.jsonl'} line 1: its columns (messages, chosen, rejected) fit several formats: "
        "messages, preference. Name one with data.format."
    )
    with pytest.raises(ProblemFileError) as caught:
        problems_from_rows(write(tmp_path / "a.jsonl", {"promt": "p", "n": 1}))
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path / 'a.jsonl'} line 1: its columns (promt, n) fit no format. Name them with data.prompt_column and "
        "data.completion_column, or rename them. Formats need: text: text; messages: messages; prompt: prompt; "
    )
    assert all(name in message for name in FORMATS)


def test_later_rows_must_be_of_the_first_one_s_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"}, {"prompt": "p", "completion": "c"})
    with pytest.raises(ProblemFileError, match=r'a\.jsonl line 2, column "question": missing'):
        labelled_from_rows(path)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("text", {"text": 3}, 'column "text": expected text, found number 3. Put quotes around it, or name'),
    ("text", {"text": " "}, 'column "text": expected text, found empty text. Fill it in or remove the row'),
    ("messages", {"messages": "hi"}, 'expected a list of messages, found text "hi". CSV holds text alone: use JSONL'),
    ("messages", {"messages": {"role": "user"}}, "expected a list of messages, found an object. Write it as a list"),
    ("messages", {"messages": said("a: hi")}, "begins with the assistant's message. Add the user's before it"),
    ("messages", {"messages": said("u: hi")}, "no message is the assistant's, so there is nothing to learn. Add one."),
    ("messages", {"messages": said("u: hi", "a: 1", "u: 2")}, 'end with the assistant\'s, found role "user" last'),
    ("messages", {"messages": said("u: hi", "a: 1"), "tools": ["f"]}, 'column "tools": would be ignored. Describe the'),
    ("sharegpt", {"conversations": told([("hooman", "x")])}, 'message 1: unknown role "hooman". Did you mean "human"?'),
    ("sharegpt", {"conversations": [{"value": "x"}]}, 'message 1: expected text under "from", found no such key'),
    ("sharegpt", {"conversations": ["x"]}, 'message 1: expected {"from": …, "value": …}, found text "x"'),
    (
        "sharegpt",
        {"conversations": told([("system", "s"), ("human", "q"), ("gpt", "a")]), "system": "t"},
        'column "system": the conversation has a system message already. Remove one of the two.',
    ),
    ("preference", {"chosen": "same", "rejected": "same"}, 'column "chosen": it and "rejected" are the same, or one'),
    ("preference", {"chosen": "ab", "rejected": "abc"}, 'column "chosen": it and "rejected" are the same, or one'),
    ("preference", {"chosen": "x", "rejected": "y"}, "have no beginning in common to be the prompt. Add a column"),
    ("preference", {"chosen": "x", "rejected": said("u: y")}, "is text, the other messages. Write both alike."),
    ("preference", {"prompt": "p", "chosen": "x"}, 'column "rejected": missing'),
    (
        "unpaired",
        {"prompt": "p", "completion": "c", "label": 1},
        'column "label": expected true or false, found number 1. Write one of these, or set data.format: prompt_com',
    ),
    ("alpaca", {"instruction": " ", "output": "o"}, 'column "instruction": expected text, found empty text. Fill'),
    ("alpaca", {"instruction": 3, "output": "o"}, 'column "instruction": expected text, found number 3. Put quotes'),
    ("alpaca", {"instruction": "i", "input": ["x"], "output": "o"}, 'column "input": expected text, found a list'),
    ("alpaca", {"instruction": "i", "output": ""}, 'column "output": expected text, found empty text. Fill'),
    (
        "alpaca",
        {"instruction": "i", "output": "o", "history": [["q"]]},
        'column "history": expected a list of pairs of text, found a list. Write each earlier turn as [quest',
    ),
    ("verl", {"prompt": "p", "reward_model": "rule"}, 'column "reward_model": expected an object with "ground_truth"'),
    ("verl", {"prompt": "p", "reward_model": {}}, 'column "reward_model": expected an object with "ground_truth"'),
    ("question_answer", {"question": "q", "answer": None}, 'column "answer": expected text or a list of messages'),
]


@pytest.mark.parametrize(("format", "row", "message"), BAD)
def test_bad_rows_name_their_column(tmp_path: Path, format: Any, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(ProblemFileError) as caught:
        labelled_from_rows(path, format=format)
    assert str(caught.value).startswith(f'{path} line 1, column "')
    assert message in str(caught.value)


def test_texts_are_known_by_their_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"}, {"text": " one "})
    first, second, again = problems_from_rows(path)
    assert problem_key(first) == problem_key(again) != problem_key(second)
    assert len({first.id, second.id, again.id}) == 3
