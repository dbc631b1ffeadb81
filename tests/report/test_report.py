"""The page: whole or not at all, escaped, in time, in size, whatever the run was like."""

import html.parser
import math
import re
import time
from pathlib import Path

import pytest
from tests.report.finished_runs import IMPROVE, Recorder, figures, scores, summarise

from loopwise.errors import ConfigError
from loopwise.report import page, write_report

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Outline(html.parser.HTMLParser):
    """Checks that elements nest, and collects their names and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def outline(path: Path) -> Outline:
    parsed = Outline()
    parsed.feed(path.read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def test_a_whole_report(improved):
    path = write_report(improved.out, improved.summary)
    assert path == improved.out / "report.html"
    text = outline(path).text
    assert "The model taught itself: from 10.0% to 90.0% right on 100 sums it had never seen" in text
    for heading in (
        "What happened",
        "Round by round",
        "The same prompts",
        "What it learned from",
        "rolled back",
        "Be careful",
    ):
        assert heading in text
    assert "nan" not in re.sub(r"[a-z_]*nan[a-z]+|[a-z]+nan", "", text.lower())


def test_nothing_is_fetched_and_no_script_runs(improved):
    path = write_report(improved.out, improved.summary)
    source = path.read_text(encoding="utf-8")
    assert not {"script", "link", "img", "iframe"} & outline(path).seen
    assert "default-src 'none'" in source
    assert not re.search(r"url\((?!#)|@import", source)
    links = re.findall(r'(?:href|src)="([^"]*)"', source)
    assert links
    assert all(link.startswith("#") for link in links)


def test_colours_follow_the_page(improved):
    drawing = (
        write_report(improved.out, improved.summary).read_text(encoding="utf-8").split("<svg", 1)[1].split("</svg>")[0]
    )
    assert "var(--improved)" in drawing
    assert not re.search(r"#[0-9a-f]{6}", drawing)


def test_the_same_content_gives_the_same_page(improved):
    first = write_report(improved.out, improved.summary).read_bytes()
    assert write_report(improved.out, improved.summary).read_bytes() == first


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7001 }}"


def test_text_from_outside_is_escaped(journal, tmp_path):
    chat = ({"role": f"user{EVIL}", "content": EVIL}, {"role": "assistant", "content": "中文回答\n" * 40})
    config = {**IMPROVE, "note": EVIL}
    run = Recorder(journal, "improve", config, prompts=(EVIL, chat), texts=lambda number, index: EVIL, parts=(EVIL,))
    run.start(dev=scores(0.1))
    run.round(1, scores(0.9), **{f"rewards/{EVIL}/mean": 0.5})
    journal.add_event("improve", 1, "warning", EVIL)
    stages = {"base": {"dev": figures(scores(0.1))}, "improved": {"dev": figures(scores(0.9))}}
    path = write_report(tmp_path, summarise("improve", stages, task=EVIL))
    parsed = outline(path)
    assert not {"script", "img"} & parsed.seen
    assert EVIL in parsed.text
    assert "49007" not in parsed.text
    assert "中文回答" in parsed.text


def stage_figures(base, result):
    return {"base": {"dev": figures(base)}, "improved": {"dev": figures(result)}}


class TestDegenerate:
    def test_one_round(self, journal, tmp_path):
        run = Recorder(journal, "improve", IMPROVE)
        run.start(dev=scores(0.1))
        run.round(1, scores(0.2))
        assert "1 of 1 round was accepted" in self.page(tmp_path, stage_figures(scores(0.1), scores(0.2)))

    def test_nothing_accepted(self, journal, tmp_path):
        run = Recorder(journal, "improve", IMPROVE)
        run.start(dev=scores(0.5))
        for number in (1, 2):
            run.round(number, scores(0.1))
        text = self.page(tmp_path, stage_figures(scores(0.5), scores(0.5)))
        assert "Nothing gained: no round beat the model it started from" in text
        assert "0 of 2 rounds were accepted" in text

    def test_no_round_at_all(self, journal, tmp_path):
        Recorder(journal, "improve", IMPROVE).start(dev=scores(0.5))
        assert "No round was decided on" in self.page(tmp_path, stage_figures(scores(0.5), scores(0.5)))

    def test_nothing_held_out(self, journal, tmp_path):
        run = Recorder(journal, "improve", {**IMPROVE, "data": {"train": "rows.jsonl"}})
        run.start()
        run.round(1, None)
        text = self.page(tmp_path, {"base": {}, "improved": {}}, task="rows.jsonl")
        assert "No verdict: nothing was held out" in text
        assert "There was no dev split" in text

    def test_figures_that_are_not_there(self, journal, tmp_path):
        run = Recorder(journal, "improve", IMPROVE)
        unjudged = [math.nan] * 5
        run.start(dev=scores(0.5, 5))
        run.round(1, scores(0.5, 5), reward=None, entropy=math.nan, distinct=math.inf, pass_at_k=None)
        stages = {"base": {"dev": figures(unjudged)}, "improved": {"dev": figures(unjudged)}}
        assert "No verdict" in self.page(tmp_path, stages)

    def test_mean_rewards_and_several_parts(self, journal, tmp_path):
        config = {**IMPROVE, "rewards": [{"use": "mine.correct"}, {"use": "mine.brief"}]}
        run = Recorder(journal, "improve", config, parts=("correct", "brief"))
        before, after = [0.1, 0.2, 0.4, 0.3] * 10, [0.6, 1.4, 1.7, 0.5] * 10
        run.start(dev=before)
        run.round(1, after, **{"rewards/correct/mean": 0.4, "rewards/brief/mean": -0.2})
        text = self.page(tmp_path, stage_figures(before, after), task="rows.jsonl")
        assert "from a mean reward of 0.250 to 1.05 on 40 problems" in text
        assert "Reward: brief" in text

    def test_all_controls(self, journal, tmp_path, improved):
        for name, share in (("unfiltered", 0.1), ("gold", 0.95)):
            run = Recorder(journal, f"control-{name}", IMPROVE)
            run.start(dev=scores(0.1), test=scores(0.1))
            run.round(1, scores(share))
            run.evaluate(1, "test", scores(share), "control")
            improved.summary["stages"][f"control_{name}"] = {"test": figures(scores(share))}
        text = self.page(tmp_path, improved.summary["stages"])
        assert "training on the true answers, the ceiling" in text
        assert "Control, unfiltered" in text

    def test_tuning(self, journal, tmp_path):
        run = Recorder(journal, "tune", {"update": {"steps": 10}, "gate": {"metric": "likelihood"}, "rewards": []})
        run.start("tune", dev=[-2.5, -2.0, -3.0] * 10)
        run.round(1, [-0.5, -1.0, -0.7] * 10, drawn=False, **{"update/loss": 0.4})
        stages = {"base": {"dev": figures([-2.5, -2.0, -3.0] * 10)}, "tuned": {"dev": figures([-0.5, -1.0, -0.7] * 10)}}
        text = self.page(tmp_path, stages, run_id="tune", task="rows.jsonl")
        assert "Nearer to zero is better" in text
        assert "The same prompts" not in text

    def page(self, out, stages, task="addition", run_id="improve"):
        return outline(write_report(out, summarise(run_id, stages, task))).text


def test_a_long_run_with_long_texts_stays_small_and_quick(journal, tmp_path):
    run = Recorder(journal, "improve", IMPROVE, texts=lambda number, index: f"{index} 很长的回答 <&> " * 800)
    run.start(dev=scores(0.1))
    for number in range(1, 61):
        run.round(number, scores(0.1 + 0.01 * number), drawn=number % 15 == 1)
    began = time.perf_counter()
    path = write_report(tmp_path, summarise("improve", stage_figures(scores(0.1), scores(0.7))))
    # Four seconds are promised on two idle cores; here others may be working too.
    assert time.perf_counter() - began < 12
    assert path.stat().st_size < 3_000_000


def test_whole_or_not_at_all(improved, monkeypatch):
    path = improved.out / "report.html"
    path.write_text("the report before")

    def fails(content):
        raise RuntimeError("no picture")

    monkeypatch.setattr(page, "render", fails)
    with pytest.raises(RuntimeError):
        write_report(improved.out, improved.summary)
    assert path.read_text() == "the report before"
    monkeypatch.setattr(page, "render", lambda content: "half a pair: \ud800")
    assert write_report(improved.out, improved.summary).read_text() == "half a pair: \\ud800"
    assert {file.name for file in improved.out.iterdir() if "report" in file.name} == {"report.html"}


def test_a_missing_journal_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"journal\.db: no such journal"):
        write_report(tmp_path, summarise("improve", {}))
