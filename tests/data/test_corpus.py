"""Plain text in: every kind of source, what is held out, what is dropped."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopwise.config.blocks import CorpusConfig, SourceConfig
from loopwise.data.corpus import Corpus, open_corpus
from loopwise.data.dedup import normalised
from loopwise.data.sources import read_source
from loopwise.errors import ConfigError, DataError, OverlapError, ProblemFileError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_real_text = pytest.mark.skipif(not REAL.is_dir(), reason="the folder shared/data beside the repository is absent")

TEXTS = ["It was a dark night.", "詩\n二行", 'Quotes " and, commas']


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the path's extension; none is a datasets folder."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def lines(path: Path, *texts: str) -> str:
    """A JSONL file of texts; its path."""
    return str(write_rows(path.with_suffix(".jsonl"), [{"text": text} for text in texts]))


def corpus(seed: int = 0, **config: Any) -> Corpus:
    return open_corpus(CorpusConfig.model_validate(config), seed)


def held(found: Corpus, name: str) -> list[str]:
    return [document.text for document in found.held_out[name]]


def train(found: Corpus) -> list[str]:
    return [document.text for source in found.sources for document in source.documents]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows"])
def test_rows_of_every_kind(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)])
    assert [document.text for document in read_source(SourceConfig(path=str(path))).documents] == TEXTS


def test_a_text_file_is_one_document_with_plain_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "play.TXT"
    path.write_bytes("\ufeffEnter Hamlet.\r\n  To be.\r\n".encode())
    [document] = read_source(SourceConfig(path=str(path))).documents
    assert (document.text, document.place) == ("Enter Hamlet.\n  To be.\n", str(path))
    assert document.bytes == 23


def test_split_on_cuts_a_text_file_and_tells_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "plays.txt"
    path.write_text("one\ntwo\n\n\nthree\n\n \n\nfour\n", encoding="utf-8")
    source = read_source(SourceConfig(path=str(path), split_on="\n\n"))
    assert [document.text for document in source.documents] == ["one\ntwo", "\nthree", "four\n"]
    assert [document.place.rpartition(" ")[2] for document in source.documents] == ["1", "5", "9"]
    assert source.empty == 1


def test_a_list_of_texts_is_joined_and_missing_values_are_empty(tmp_path: Path) -> None:
    rows = [{"lines": ["one", "two"]}, {"lines": None}, {"lines": []}, {"lines": "three"}]
    path = write_rows(tmp_path / "poems.jsonl", rows)
    source = read_source(SourceConfig(path=str(path), text_column="lines"))
    assert [document.text for document in source.documents] == ["one\ntwo", "three"]
    assert source.empty == 2


def test_several_columns_make_one_document(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "pairs.jsonl", [{"question": "2+2?", "answer": "4"}, {"question": "who?", "answer": None}]
    )
    source = read_source(SourceConfig(path=str(path), text_column=("question", "answer")))
    assert [document.text for document in source.documents] == ["2+2?\n4", "who?\n"]


def test_a_folder_is_read_in_order_and_names_what_it_passed_over(tmp_path: Path) -> None:
    (tmp_path / "b" / ".cache").mkdir(parents=True)
    write_rows(tmp_path / "b" / "saved", [{"text": "saved"}])
    (tmp_path / "b" / "z.md").write_text("z", encoding="utf-8")
    (tmp_path / "c.txt").write_text("c", encoding="utf-8")
    lines(tmp_path / "a", "a")
    for name in ("picture.png", ".hidden.txt", "b/.cache/d.txt"):
        (tmp_path / name).write_text("no", encoding="utf-8")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    source = read_source(SourceConfig(path=str(tmp_path)))
    assert [document.text for document in source.documents] == ["a", "saved", "z", "c"]
    assert [str(Path(file).relative_to(tmp_path)) for file in source.skipped] == [
        ".hidden.txt",
        "b/.cache",
        "linked",
        "picture.png",
    ]


def bad_sources() -> list[Any]:
    def row(content: str) -> Callable[[Path], Path]:
        return lambda folder: _write(folder / "rows.jsonl", content.encode())

    def text(name: str, content: bytes) -> Callable[[Path], Path]:
        return lambda folder: _write(folder / name, content)

    conversation = '{"messages": [{"role": "user", "content": "hi"}]}'
    return [
        (text("a.txt", b"one\nbad \xff"), {}, "a.txt line 2, byte 5: not UTF-8 (found 0xff). Save the file as UTF-8."),
        (text("a.txt", b" \n"), {}, "a.txt: no text in it (1 empty documents in 1 files). Known: .md, .txt"),
        (text("a.tex", b"x"), {}, 'a.tex: unknown extension, so its format is not known. Did you mean ".txt"?'),
        (lambda folder: folder / "none.txt", {}, "none.txt: no such file. Check the path."),
        (lambda folder: folder / "none.jsonl", {}, "none.jsonl: no such file. Check the path."),
        (
            lambda folder: _write(folder / "in" / "a.bin", b"x").parent,
            {},
            "in: no text in it (no file of a known kind, passed over: ",
        ),
        (
            row('{"text": "a"}\n{"txt": "b"}'),
            {},
            'rows.jsonl line 2, column "text": missing. Did you mean "txt"? Add it, or name another column with '
            "text_column.",
        ),
        (
            row('{"text": 3}'),
            {},
            'rows.jsonl line 1, column "text": expected text or a list of texts, found number 3. '
            "Put quotes around it, or name another column with text_column.",
        ),
        (
            row('{"text": ["a", null]}'),
            {},
            'rows.jsonl line 1, column "text", entry 2: expected text, found null. '
            "Put quotes around it, or name another column with text_column.",
        ),
        *(
            (
                row(conversation),
                options,
                'rows.jsonl line 1, column "messages": a conversation, not plain text. Train on it with '
                "`loopwise tune`, or name a column of text with text_column.",
            )
            for options in ({}, {"text_column": "messages"})
        ),
    ]


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("make", "options", "message"), bad_sources())
def test_a_source_that_cannot_be_read(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, str], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_source(SourceConfig(path=str(path), **options))
    assert str(caught.value).startswith(f"{path.parent}/{message}")


def test_a_saved_dataset_of_several_splits_names_them(tmp_path: Path) -> None:
    import datasets

    split = datasets.Dataset.from_list([{"text": "a"}])
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ProblemFileError, match=r"train.*validation"):
        read_source(SourceConfig(path=str(tmp_path / "saved")))
    assert read_source(SourceConfig(path=str(tmp_path / "saved" / "train"))).documents[0].text == "a"


def test_settings_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    rows, text = lines(tmp_path / "rows", "a"), _write(tmp_path / "a.txt", b"a")
    with pytest.raises(ConfigError, match=r'"split_on" cuts text files, and there is none\. Leave it out\.'):
        corpus(train={"path": rows, "split_on": "\n"})
    with pytest.raises(ConfigError, match=r'"text_column" is for row files, and there is none\. Leave it out\.'):
        corpus(train={"path": str(text), "text_column": "body"})


def test_one_document_is_cut_in_the_order_of_the_text(tmp_path: Path) -> None:
    text = "".join(chr(ord("a") + place % 26) for place in range(100))
    path = _write(tmp_path / "play.txt", text.encode())
    found = corpus(train=str(path), dev=0.1, test=0.2)
    [[beginning]] = [source.documents for source in found.sources]
    [[dev], [test]] = found.held_out.values()
    assert [beginning.text, dev.text, test.text] == [text[:70], text[70:80], text[80:]]
    assert (beginning.opens, beginning.closes) == (True, False)
    assert {dev.opens, dev.closes, test.opens, test.closes} == {False}
    assert (dev.place, test.place) == (f"{path}, dev", f"{path}, test")


def test_whole_documents_are_held_out_by_content_and_seed(tmp_path: Path) -> None:
    texts = [f"document {number} " + "x" * (number % 7) for number in range(200)]
    found = corpus(train=lines(tmp_path / "a", *texts), dev=0.1, test=0.05)
    total, half = sum(map(len, texts)), max(map(len, texts)) / 2
    for name, share in (("dev", 0.1), ("test", 0.05)):
        assert abs(found.counts[f"{name}/characters"] - share * total) <= half
        assert held(found, name) == [text for text in texts if text in set(held(found, name))], "in the text's order"
    assert sorted(train(found) + held(found, "dev") + held(found, "test")) == sorted(texts)
    assert all(document.opens and document.closes for document in found.held_out["dev"])
    reordered = corpus(train=lines(tmp_path / "b", *reversed(texts)), dev=0.1, test=0.05)
    assert set(held(reordered, "dev")) == set(held(found, "dev"))
    other = corpus(seed=1, train=lines(tmp_path / "a", *texts), dev=0.1, test=0.05)
    assert set(held(other, "dev")) != set(held(found, "dev"))


def test_a_share_that_short_documents_cannot_fill_is_refused(tmp_path: Path) -> None:
    books = tmp_path / "books"
    for number in range(10):
        _write(books / f"book{number}.txt", f"{number}".encode() * 990)
    _write(books / "README.md", b"These are ten books.")
    with pytest.raises(DataError, match=r"dev = 0\.05 of its text is 496 characters, and .* are no longer have 20 in"):
        corpus(train=str(books), dev=0.05)
    assert corpus(train=str(books), dev=0.1).counts["dev/characters"] >= 990


def test_short_documents_are_not_favoured(tmp_path: Path) -> None:
    rows = lines(tmp_path / "a", *(f"{number:03d}" + "x" * (97 if number % 2 else 7) for number in range(200)))
    found = [held(corpus(seed, train=rows, dev=0.03), "dev") for seed in range(60)]
    documents = [document for part in found for document in part]
    long = sum(len(document) == 100 for document in documents)
    assert 0.4 < long / len(documents) < 0.6


def test_a_share_is_held_out_of_each_source(tmp_path: Path) -> None:
    play = _write(tmp_path / "play.txt", b"abcdefghij" * 10)
    poems = lines(tmp_path / "poems", *(f"poem {number:02d}" for number in range(40)))
    found = corpus(train=[{"path": str(play), "weight": 3}, poems])
    assert [(source.name, source.weight) for source in found.sources] == [("play.txt", 3.0), ("poems.jsonl", 1.0)]
    assert len(held(found, "dev")[0]) == 10
    assert len(held(found, "dev")) == 1 + 4


def test_no_text_is_held_out_where_none_is_wanted(tmp_path: Path) -> None:
    found = corpus(train=lines(tmp_path / "a", "one", "two"), dev=0)
    assert dict(found.held_out) == {"dev": (), "test": ()}
    assert train(found) == ["one", "two"]


def test_exact_duplicates_go_the_first_stays(tmp_path: Path) -> None:
    first, second = lines(tmp_path / "a", "one", "two", " one "), lines(tmp_path / "b", "ｏｎｅ", "three")
    found = corpus(train=[first, second], dev=0)
    assert train(found) == ["one", "two", "three"]
    assert found.counts["dropped/exact"] == 2
    assert train(corpus(train=[first, second], dev=0, deduplicate="none")) == ["one", "two", " one ", "ｏｎｅ", "three"]


def test_equal_documents_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    texts = [f"document {number % 40}" for number in range(120)]
    found = corpus(train=lines(tmp_path / "a", *texts), dev=0.2, deduplicate="none")
    assert found.counts["train/documents"] + found.counts["dev/documents"] == 120
    assert not set(train(found)) & set(held(found, "dev"))


def test_a_training_document_equal_to_held_out_text_goes(tmp_path: Path) -> None:
    play = _write(tmp_path / "play.txt", b"a" * 45 + b"the end")
    other = lines(tmp_path / "other", *(f"poem {number:02d}" for number in range(20)), "The end", "he  end")
    found = corpus(train=[str(play), other], dev=0.1, deduplicate="none")
    assert held(found, "dev")[0] == "he end"
    assert "The end" in train(found)
    assert "he  end" not in train(found)
    assert found.counts["dropped/exact"] == 1


def test_near_duplicates_of_held_out_and_earlier_documents_go(tmp_path: Path) -> None:
    sentences = [f"{word} stands at the beginning of sentence number {word * 3}" for word in ("one", "two", "three")]
    dev = lines(tmp_path / "dev", sentences[0])
    rows = lines(tmp_path / "a", sentences[0] + "!", sentences[1], sentences[2], "A " + sentences[1])
    found = corpus(train=rows, dev=dev, deduplicate="near")
    assert train(found) == sentences[1:]
    assert (found.counts["dropped/near"], found.counts["dropped/exact"]) == (2, 0)
    assert len(train(corpus(train=rows, dev=dev, deduplicate="near", near_threshold=1.0))) == 4


def test_a_held_out_file_that_overlaps_is_an_error(tmp_path: Path) -> None:
    rows, dev = lines(tmp_path / "a", "one", "two", "three"), lines(tmp_path / "dev", "four", " two", "two")
    with pytest.raises(OverlapError) as caught:
        corpus(train=rows, dev=dev)
    assert str(caught.value) == (
        f"dev: 1 of 2 different documents are also in train, for example {dev} line 2 = {rows} line 2. "
        "Remove them from train or from dev."
    )
    with pytest.raises(OverlapError, match="test: 2 of 2 different documents are also in dev"):
        corpus(train=lines(tmp_path / "b", "five"), dev=dev, test=dev)


def test_a_held_out_file_is_read_as_the_first_source_is(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [{"body": "one"}])
    dev = write_rows(tmp_path / "dev.jsonl", [{"body": "two"}, {"body": "two"}])
    found = corpus(train={"path": str(rows), "text_column": "body"}, dev=str(dev))
    assert held(found, "dev") == ["two", "two"]
    assert found.counts["dev/documents"] == 2


def test_a_file_is_no_two_sources(tmp_path: Path) -> None:
    folder = tmp_path / "plays"
    text = "\n\n".join(f"scene {number} of a play" for number in range(40)).encode()
    play, copy = _write(folder / "a.txt", text), _write(tmp_path / "copy.txt", text)
    (tmp_path / "link.txt").symlink_to(play)
    for other in (tmp_path / "link.txt", copy, folder):
        with pytest.raises(ConfigError, match=f'key "data": {play} and {other} hold the same file'):
            corpus(train=[str(play), {"path": str(other), "split_on": "\n\n"}])
    with pytest.raises(ConfigError, match="hold the same file"):
        corpus(train=[lines(tmp_path / "b", "one", "two"), {"path": str(play), "split_on": "\n\n"}], dev=str(copy))
    other = tmp_path / "poems"
    for number in range(20):
        _write(other / f"{number}.txt", b"poem %02d" % number)
        _write(folder / f"{number}.txt", b"act %02d" % number)
    for home in (folder, other):
        _write(home / "licence.txt", b"free")
    assert corpus(train=[str(folder), str(other)], dev=0).counts["dropped/exact"] == 1


def test_what_leaves_too_little(tmp_path: Path) -> None:
    rows = lines(tmp_path / "a", "a long document", "one as long as it")
    with pytest.raises(DataError) as caught:
        corpus(train=rows, dev=0.1)
    assert str(caught.value).startswith(
        f"{rows}: data.dev = 0.1 of its text is 3 characters, and those of its documents that are no longer have 0 in "
        "all. Cut the text into shorter documents with split_on, "
    )
    with pytest.raises(DataError, match=r"too short a text \(1 characters\) to hold parts of it out"):
        corpus(train=lines(tmp_path / "b", "a"), dev=0.1)
    with pytest.raises(DataError, match=r"again\.jsonl: nothing left to train on; every document is held out or"):
        corpus(train=[rows, lines(tmp_path / "again", "a long document")], dev=0)
    with pytest.raises(ConfigError, match="dev and test leave nothing to train on"):
        corpus(train=rows, dev=0.5, test=0.5)


def test_counts_and_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "poems"
    folder.mkdir()
    first, second = _write(folder / "a.txt", "詩".encode()), _write(folder / "b.txt", b"poem")
    _write(folder / "c.doc", b"?")
    dev = lines(tmp_path / "dev", "held out", "")
    found = corpus(train=str(folder), dev=dev)
    assert dict(found.counts) == {
        "train/documents": 2,
        "train/characters": 5,
        "train/bytes": 7,
        "dev/documents": 1,
        "dev/characters": 8,
        "dev/bytes": 8,
        "test/documents": 0,
        "test/characters": 0,
        "test/bytes": 0,
        "dropped/exact": 0,
        "dropped/near": 0,
        "dropped/empty": 1,
        "skipped": 1,
    }
    assert found.skipped == (str(folder / "c.doc"),)
    assert set(found.fingerprint) == {str(first), str(second), str(folder), dev}
    second.write_text("other", encoding="utf-8")
    changed = corpus(train=str(folder), dev=dev).fingerprint
    assert {name for name in changed if changed[name] != found.fingerprint[name]} == {str(second)}
    second.unlink()
    assert corpus(train=str(folder), dev=dev).fingerprint[str(folder)] != found.fingerprint[str(folder)]


@needs_real_text
def test_tinyshakespeare_is_cut_as_nanogpt_does() -> None:
    text = (REAL / "tinyshakespeare.txt").read_text(encoding="utf-8")
    found = corpus(train=str(REAL / "tinyshakespeare.txt"))
    assert train(found) == [text[: int(len(text) * 0.9)]]
    assert held(found, "dev") == [text[int(len(text) * 0.9) :]]
    assert found.counts["dev/characters"] == 111540


@needs_real_text
def test_real_rows_of_several_kinds_make_one_mixture() -> None:
    found = corpus(
        train=[
            {"path": str(REAL / "tang300.json"), "text_column": "paragraphs"},
            {"path": str(REAL / "banking77_train.csv")},
            {"path": str(REAL / "gsm8k_train.jsonl"), "text_column": "question"},
        ],
        dev=0.05,
    )
    assert found.sources[0].documents[0].text.startswith("西陸蟬聲唱，南冠客思侵。\n那堪玄鬢影")
    assert found.counts["dropped/exact"] == 16
    assert found.counts["dropped/empty"] == found.counts["skipped"] == 0
    poems = len(json.loads((REAL / "tang300.json").read_text(encoding="utf-8")))
    assert len(train(found)) + len(held(found, "dev")) + 16 == poems + 10_003 + 7_473
    keys = {normalised(text) for text in held(found, "dev")}
    assert not keys & {normalised(text) for text in train(found)}
