"""Rows become problems; every bad row names file, line, column and mend."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tests.encoded import labelled_from_rows

from loopwise.data.formats import Row, fingerprint, read_rows
from loopwise.data.rows import problems_from_rows
from loopwise.errors import ProblemFileError

REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TABLES = st.lists(TEXT, min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, TEXT)), min_size=1, max_size=6)
)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, write_page_checksum=True, compression="none")


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
@given(rows=TABLES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_survive_every_format(tmp_path: Path, kind: str, rows: list[dict[str, str]]) -> None:
    path = tmp_path / f"rows{kind}"
    WRITERS[kind](path, rows)
    assert [row.columns for row in read_rows(path)] == rows


def test_rows_know_their_lines(tmp_path: Path) -> None:
    contents = {
        "a.jsonl": '\ufeff{"prompt": "one"}\r\n\n  \n{"prompt": "two\u2028three"}\n',
        "a.json": '\n[{"prompt":\n"one"}\n\n, {"prompt": "two\u2028three"}]',
        "a.csv": '\ufeffprompt,n\n\n"one\n",1\n\ntwo\u2028three,2\n',
    }
    lines = {}
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        rows = read_rows(tmp_path / name)
        lines[name] = [row.line for row in rows]
        assert [row.columns["prompt"].strip() for row in rows] == ["one", "two\u2028three"]
        assert [row.place for row in rows] == [f"{tmp_path / name} line {row.line}" for row in rows]
    assert lines == {"a.jsonl": [1, 4], "a.json": [2, 5], "a.csv": [3, 6]}
    write_parquet(tmp_path / "a.parquet", [{"prompt": "one"}])
    assert read_rows(tmp_path / "a.parquet") == [Row(f"{tmp_path / 'a.parquet'} row 1", 1, {"prompt": "one"})]


def test_long_csv_field_and_upper_case_extension(tmp_path: Path) -> None:
    path = tmp_path / "long.CSV"
    write_csv(path, [{"prompt": "x" * 200_000}])
    assert len(problems_from_rows(path, prompt_column="prompt")[0].prompt) == 200_000


MESSAGES = [{"role": "system", "content": ""}, {"role": "user", "content": "2 + 2"}]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_messages_become_tuples_of_plain_dicts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"chat{kind}"
    named = [{**MESSAGES[0], "name": None}, MESSAGES[1]]
    WRITERS[kind](path, [{"prompt": named, "answer": "4", "level": 1}])
    (problem,) = problems_from_rows(path, prompt_column="prompt", reference_columns=("answer",))
    assert problem.prompt == tuple(MESSAGES)
    assert problem.columns == {"answer": "4", "level": 1}


def test_ids_depend_on_the_prompt_and_its_ordinal_alone(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "n": n} for n, prompt in enumerate(["a", "b", "a", "c"])]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_csv(tmp_path / "b.csv", [rows[1], rows[0], rows[2]])
    ids = [problem.id for problem in problems_from_rows(tmp_path / "a.jsonl", prompt_column="prompt")]
    assert len(set(ids)) == 4
    assert all(len(identity) == 16 and int(identity, 16) >= 0 for identity in ids)
    again = [problem.id for problem in problems_from_rows(tmp_path / "b.csv", prompt_column="prompt")]
    assert again == [ids[1], ids[0], ids[2]]


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("2 + 2", "4"),
        ("2 + 2", [{"role": "assistant", "content": "4"}]),
        ("2 + 2", [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]),
        (MESSAGES, [*MESSAGES, {"role": "assistant", "content": "4"}]),
    ],
)
def test_labelled(tmp_path: Path, prompt: Any, completion: Any) -> None:
    path = tmp_path / "labelled.jsonl"
    write_jsonl(path, [{"prompt": prompt, "completion": completion, "level": 1}])
    (labelled,) = labelled_from_rows(path, prompt_column="prompt", completion_column="completion")
    assert labelled.completion == "4"
    assert labelled.problem.columns == {"completion": "4", "level": 1}
    (problem,) = problems_from_rows(path, prompt_column="prompt")
    assert (labelled.problem.id, labelled.problem.prompt) == (problem.id, problem.prompt)


GOOD = '{"prompt": "p"}\n'
OTHER = "name another column with data.prompt_column."
BAD_FILES = [
    ("a.jsonl", "", ": no rows in it. Write at least one, or name another file."),
    ("a.jsonl", " \n\n", ": no rows in it. Write at least one, or name another file."),
    ("a.json", "", ": no rows in it. Write at least one, or name another file."),
    ("a.json", "[]", ": no rows in it. Write at least one, or name another file."),
    ("a.csv", "prompt\n", ": no rows in it. Write at least one, or name another file."),
    (
        "a.jsonl",
        GOOD + '{"prompt": "p"\n',
        " line 2: not JSON (Expecting ',' delimiter at character 15). Mend or remove the line.",
    ),
    ("a.jsonl", GOOD + '{"n": ' + "[" * 100_000, " line 2: not readable JSON (nested too deeply). Mend or remove it."),
    (
        "a.jsonl",
        GOOD + '{"n": ' + "1" * 5000 + "}",
        " line 2: not readable JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 "
        "digits). Mend or remove it.",
    ),
    (
        "a.jsonl",
        '[{"prompt": "p"}]',
        ' line 1: expected an object such as {"prompt": …}, found a list. '
        "Write one object a line; name a file that is one list .json.",
    ),
    (
        "a.jsonl",
        GOOD + '{"prompt": "p", "tags": [{"a": "\\ud800"}]}',
        ' line 2, column "tags": holds half of a surrogate pair (a \\ud800 to \\udfff alone), which is no character. '
        "Remove it or write the whole pair.",
    ),
    ("a.json", '{"prompt": "p"}', " line 1: expected a list of objects, found an object. Put it in [ ]."),
    (
        "a.json",
        '[\n{"prompt": "p"},\n3]',
        ' line 3: expected an object such as {"prompt": …}, found number 3. Make every entry of the list an object.',
    ),
    (
        "a.json",
        GOOD + GOOD,
        " line 2: not JSON (Extra data at character 1). Mend the line, or name a file with one object a line .jsonl.",
    ),
    (
        "a.csv",
        "prompt,n\np,1\n\np,q,2\n",
        " line 4: expected 2 fields as in the header, found 3. "
        "Put quotes around a field that holds a comma, or add the missing one.",
    ),
    (
        "a.csv",
        'prompt,n\np,1\n"p"q,2\n',
        " line 3: not CSV (',' expected after '\"'). Put quotes around the field and double the quotes inside it.",
    ),
    (
        "a.csv",
        'prompt,n\np,1\n"p,2\np,3\n',
        " line 3: not CSV (unexpected end of data). Put quotes around the field and double the quotes inside it.",
    ),
    ("a.csv", "prompt,n,n\np,1,2\n", ' line 1, column "n": stands in the header twice. Rename one of the two.'),
    (
        "a.jsonl",
        GOOD + '{"promt": "p"}',
        f' line 2, column "prompt": missing. Did you mean "promt"? Add it, or {OTHER}',
    ),
    ("a.jsonl", "{}", f' line 1, column "prompt": missing. The row has no columns. Add it, or {OTHER}'),
    (
        "a.jsonl",
        GOOD + '{"prompt": 3}',
        f' line 2, column "prompt": expected text or a list of messages, found number 3. '
        f"Put quotes around it, or {OTHER}",
    ),
    (
        "a.jsonl",
        '{"prompt": false}',
        f' line 1, column "prompt": expected text or a list of messages, found false. Put quotes around it, or {OTHER}',
    ),
    (
        "a.jsonl",
        '{"prompt": null}',
        f' line 1, column "prompt": expected text or a list of messages, found null. '
        f"Fill it in or remove the row, or {OTHER}",
    ),
    (
        "a.csv",
        "prompt,n\n  ,1\n",
        f' line 2, column "prompt": expected text or a list of messages, found empty text. '
        f"Fill it in or remove the row, or {OTHER}",
    ),
    (
        "a.jsonl",
        '{"prompt": []}',
        f' line 1, column "prompt": expected text or a list of messages, found an empty list. Fill it in, or {OTHER}',
    ),
    (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": " "}]}',
        f' line 1, column "prompt": expected text or a list of messages, found messages without content. '
        f"Fill it in, or {OTHER}",
    ),
    (
        "a.jsonl",
        '{"prompt": ["p"]}',
        ' line 1, column "prompt", message 1: expected {"role": …, "content": …}, found text "p". '
        "Write it as an object.",
    ),
    (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "p"}, {"role": "user"}]}',
        ' line 1, column "prompt", message 2: expected text under "content", found no such key. Write it as text.',
    ),
    (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": null}]}',
        ' line 1, column "prompt", message 1: expected text under "content", found null. Write it as text.',
    ),
    (
        "a.jsonl",
        '{"prompt": [{"role": "usr", "content": "p"}]}',
        ' line 1, column "prompt", message 1: unknown role "usr". Did you mean "user"?',
    ),
    (
        "a.jsonl",
        '{"prompt": [{"role": "assistant", "content": "p", "tool_calls": []}]}',
        ' line 1, column "prompt", message 1: key "tool_calls" would be ignored. '
        "Remove it, or make it part of the content.",
    ),
    ("a.txt", "p", ': unknown extension ".txt", so its format is not known. Known: .csv, .json, .jsonl, .parquet.'),
    ("a.jsonll", "p", ': unknown extension ".jsonll", so its format is not known. Did you mean ".jsonl"?'),
    ("a", "p", ": no extension, so its format is not known. Known: .csv, .json, .jsonl, .parquet."),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProblemFileError) as caught:
        problems_from_rows(path, prompt_column="prompt")
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_not_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("prompt\nfran\xe7ais\n".encode("latin-1"))
    with pytest.raises(ProblemFileError) as caught:
        read_rows(path)
    assert str(caught.value) == f"{path} line 2, byte 5: not UTF-8 (found 0xe7). Save the file as UTF-8."


@pytest.mark.parametrize("read", [read_rows, fingerprint])
def test_missing_file_and_folder(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(ProblemFileError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: no such file. Check the path."
    path.mkdir()
    with pytest.raises(ProblemFileError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: a folder, not a file of rows. Name one of the files in it."


@pytest.mark.parametrize("read", [read_rows, fingerprint])
def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ProblemFileError) as caught:
        read(path)
    expected = f"{path}: cannot be read (Permission denied). Check the file and its permissions."
    assert str(caught.value) == expected


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"prompt": f"what is {n}?"} for n in range(100)])
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"what is 50?")] ^= 1
    for broken in (b"", b"PAR1", content[:-20], content[len(content) // 2 :], bytes(flipped)):
        path.write_bytes(broken)
        with pytest.raises(ProblemFileError, match=r"a\.parquet: not a readable Parquet file \(.+[^.]\)\. Write it"):
            read_rows(path)


def test_parquet_twins_and_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table([["p"], ["q"]], names=["prompt", "prompt"]), path)
    with pytest.raises(ProblemFileError) as caught:
        read_rows(path)
    assert str(caught.value) == f'{path}, column "prompt": stands in the header twice. Rename one of the two.'
    parquet.write_table(pyarrow.table({"prompt": ["p", None]}), path)
    with pytest.raises(ProblemFileError, match=r'a\.parquet row 2, column "prompt": .* found null\.'):
        problems_from_rows(path, prompt_column="prompt")


def test_missing_reference_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": "p", "answer": "a"}])
    with pytest.raises(ProblemFileError) as caught:
        problems_from_rows(path, prompt_column="prompt", reference_columns=("anwser",))
    assert str(caught.value) == (
        f'{path} line 1, column "anwser": missing. Did you mean "answer"? '
        "Add it, or name other columns with data.reference_columns."
    )


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        (
            3,
            "expected text or a list of messages, found number 3. "
            "Put quotes around it, or name another column with data.completion_column.",
        ),
        (
            [{"role": "user", "content": "q"}],
            'expected messages that end with the assistant\'s, found role "user" last. '
            "Add the answer, or name another column with data.completion_column.",
        ),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "the messages before the last are not those of the prompt. "
            "Move them into the prompt, so that the completion begins with the assistant's.",
        ),
        (
            [{"role": "user", "content": "p"}],
            "repeats the prompt and nothing more. Add the answer, or name another column with data.completion_column.",
        ),
        (
            [{"role": "user", "content": "p"}, {"role": "assistant", "content": ""}],
            "expected an answer in the last message, found empty text. Fill it in.",
        ),
    ],
)
def test_bad_completions(tmp_path: Path, completion: Any, message: str) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": "p", "completion": completion}])
    with pytest.raises(ProblemFileError) as caught:
        labelled_from_rows(path, prompt_column="prompt", completion_column="completion")
    assert str(caught.value) == f'{path} line 1, column "completion": {message}'


def save_dataset(path: Path, rows: list[dict[str, Any]]) -> None:
    """What ``datasets.Dataset.save_to_disk`` leaves, here of two files."""
    path.mkdir(parents=True)
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
    schema = pyarrow.Table.from_pylist(rows).schema
    for name, half in zip(names, halves, strict=True):
        with pyarrow.ipc.new_stream(path / name, schema) as stream:
            stream.write_table(pyarrow.Table.from_pylist(half, schema))
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_datasets_folder(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "n": 1, "tags": ["a"]}, {"prompt": "q", "n": 2, "tags": []}, {"prompt": "r"}]
    save_dataset(tmp_path / "saved", rows)
    read = read_rows(tmp_path / "saved")
    assert [row.columns for row in read] == [*rows[:2], {"prompt": "r", "n": None, "tags": None}]
    assert [row.place for row in read] == [f"{tmp_path / 'saved'} row {n}" for n in (1, 2, 3)]
    before = fingerprint(tmp_path / "saved")
    (tmp_path / "saved" / "data-00001-of-00002.arrow").write_bytes(b"")
    assert fingerprint(tmp_path / "saved") != before
    with pytest.raises(ProblemFileError, match=r"data-00001-of-00002\.arrow: not a readable Arrow file \(.+\)\. Save"):
        read_rows(tmp_path / "saved")
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ProblemFileError, match=r"has no file data-00001-of-00002\.arrow, which state.json names"):
        read_rows(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ProblemFileError, match=r"state\.json: does not name the dataset's files"):
        read_rows(tmp_path / "saved")


def test_folder_of_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / "both" / split, [{"prompt": split}])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ProblemFileError) as caught:
        read_rows(tmp_path / "both")
    folder = tmp_path / "both"
    assert str(caught.value) == f"{folder}: holds the splits test, train of a dataset. Name one, as in {folder}/test."
    assert [row.columns for row in read_rows(folder / "train")] == [{"prompt": "train"}]


@pytest.mark.filterwarnings("ignore")
def test_folders_of_the_library_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": MESSAGES, "n": n, "deep": {"a": [n]}} for n in range(5)]
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict({"train": whole.select([3, 1])}).save_to_disk(tmp_path / "parts")
    assert [row.columns for row in read_rows(tmp_path / "saved")] == rows
    assert [row.columns for row in read_rows(tmp_path / "parts" / "train")] == [rows[3], rows[1]]


def test_values_json_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    dates = [{"prompt": "p", "when": datetime.date(2020, 2, 1), "costs": [decimal.Decimal("1.50")], "id": {"n": None}}]
    write_parquet(path, dates)
    assert read_rows(path)[0].columns == {"prompt": "p", "when": "2020-02-01", "costs": ["1.50"], "id": {"n": None}}
    write_parquet(path, [{"prompt": "p", "image": {"bytes": b"x"}}])
    with pytest.raises(ProblemFileError) as caught:
        read_rows(path)
    expected = f'{path} row 1, column "image": holds bytes, which is no text. Remove the column, or write it as text.'
    assert str(caught.value) == expected


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_compressed(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": "one"}, {"prompt": "two"}]
    WRITERS[kind](tmp_path / f"plain{kind}", rows)
    path = tmp_path / f"rows{kind}.gz"
    path.write_bytes(gzip.compress((tmp_path / f"plain{kind}").read_bytes()))
    assert [row.columns for row in read_rows(path)] == rows
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ProblemFileError, match=r"not a readable gzip file \(.+[^.]\)\. Compress it again"):
        read_rows(path)


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name in ("owner/name", "owner/name/test"):
        with pytest.raises(ProblemFileError) as caught:
            read_rows(name)
        assert str(caught.value).startswith(f"{name}: no such file or folder here, so taken for a dataset on the hub; ")
        assert str(caught.value).endswith("HF_HUB_OFFLINE=1 reads a copy that was downloaded before.")
    for name in ("name", "owner/name.jsonl", "./owner/name", "/owner/name", "a/b/c/d/e"):
        with pytest.raises(ProblemFileError, match="no such file"):
            read_rows(name)


def test_hub_configs_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "p"}]
    asked = []

    def load(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name: ["main", "socratic"])
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda name, config: ["train", "test"])
    monkeypatch.setattr("datasets.load_dataset", load)
    assert [row.columns for row in read_rows("o/n/main")] == rows
    assert [row.place for row in read_rows("o/n/main/test")] == ["o/n/main/test row 1"]
    assert asked == [("o/n", "main", "train"), ("o/n", "main", "test")]
    assert len(fingerprint("o/n/main")) == 64
    with pytest.raises(ProblemFileError, match=r"it has the parts main, socratic\. Name one: o/n/main\."):
        read_rows("o/n")
    with pytest.raises(ProblemFileError, match=r'it has no split "tset"\. Did you mean "test"\?'):
        read_rows("o/n/main/tset")


def test_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"abc")
    assert fingerprint(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.skipif(not REAL_ROWS.is_dir(), reason="the folder shared/data beside the repository is absent")
def test_real_rows() -> None:
    sums = labelled_from_rows(REAL_ROWS / "gsm8k_train.jsonl", prompt_column="question", completion_column="answer")
    assert len(sums) == len({labelled.problem.id for labelled in sums}) == 7473
    assert sums[0].completion.endswith("#### 72")
    questions = problems_from_rows(
        REAL_ROWS / "banking77_train.csv", prompt_column="text", reference_columns=("category",)
    )
    assert len(questions) == 10_003
    assert len({problem.columns["category"] for problem in questions}) == 77
    with pytest.raises(ProblemFileError, match=r'line 2, column "prompt": missing\. Known: category, text\.'):
        problems_from_rows(REAL_ROWS / "banking77_train.csv", prompt_column="prompt")
    poems = read_rows(REAL_ROWS / "tang300.json")
    assert [row.columns["paragraphs"] != [] for row in poems] == [True] * len(poems)
