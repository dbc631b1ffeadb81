"""``loopwise generate``: a prompt, a file of prompts, a conversation; and what a terminal is spared."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bad_inputs import lines, save_model
from tests.command_line import CHAT_TEMPLATE, contents, loopwise, refused, save_chat_model, strict
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.console import plain_json, visible, writer
from loopwise.data.rows import problems_from_rows
from loopwise.models.policy import Policy
from loopwise.runtime import Runtime
from loopwise.stages.generation import Conversation, Speaker
from loopwise.types import PromptState, Sampling

SUMS = ["1+1=", "22+3=", "4+555="]


@pytest.fixture
def workshop(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model and rows."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "rows.jsonl").write_text(lines(*({"prompt": prompt, "sum": prompt} for prompt in SUMS)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def chatty(
    make_policy: Callable[..., Policy], tokenizer: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> Speaker:
    """A model with a chat template whose answers have four tokens, for a context of 48."""
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_TEMPLATE)
    return Speaker(make_policy("llama"), runtime, Sampling(), max_tokens=4)


def test_a_prompt(workshop: Path) -> None:
    first = loopwise("generate", "model", "--prompt", "1+1=", "--max-tokens", 12)
    assert first.stderr == ""
    assert len(first.stdout.removesuffix("\n")) > 3
    assert loopwise("generate", "model", "--prompt", "1+1=", "--max-tokens", 12).stdout == first.stdout
    assert loopwise("generate", "model", "--prompt", "1+1=", "--max-tokens", 12, "--seed", 1).stdout != first.stdout
    assert loopwise("generate", "model", "--max-tokens", 12, input="1+1=\n").stdout == first.stdout
    told = strict(loopwise("generate", "model", "--prompt", "1+1=", "--max-tokens", 12, "--json").stdout)
    assert told["prompt"] == "1+1="
    assert told["completion"] == first.stdout.removesuffix("\n")
    assert set(told) == {"prompt", "completion", "finish_reason", "tokens"}


def test_several_samples_are_the_first_of_more(workshop: Path) -> None:
    flags = ["--prompt", "1+1=", "--max-tokens", 5, "--json"]
    three = loopwise("generate", "model", *flags, "-n", 3).stdout.splitlines()
    assert len(set(three)) == 3
    assert loopwise("generate", "model", *flags, "-n", 2).stdout.splitlines() == three[:2]
    shown = loopwise("generate", "model", *flags[:-1], "-n", 3).stdout
    assert "--- 2 of 3" in shown
    assert strict(three[2])["completion"] in shown


def test_the_context_bounds_what_nobody_bounded(workshop: Path) -> None:
    told = strict(loopwise("generate", "model", "--prompt", "1" * 25, "--temperature", 0, "--json").stdout)
    assert told["tokens"] <= 32 - 25
    assert told["finish_reason"] == "length"


def test_stop_strings_and_greedy(workshop: Path) -> None:
    flags = ["--prompt", "1+1=", "--max-tokens", 20]
    whole = loopwise("generate", "model", *flags).stdout
    stop = whole[4]
    assert loopwise("generate", "model", *flags, "--stop", stop).stdout == whole[: whole.index(stop)] + "\n"
    greedy = [loopwise("generate", "model", *flags, "--temperature", 0, "--seed", seed).stdout for seed in (0, 1)]
    assert greedy[0] == greedy[1]
    assert loopwise("generate", "model", *flags, "--top-k", 1).stdout == greedy[0]


def test_a_file(workshop: Path) -> None:
    result = loopwise("generate", "model", "--data", "rows.jsonl", "--out", "out.jsonl", "-n", 2, "--max-tokens", 5)
    assert "out.jsonl: 6 of 6 completions." in result.stderr
    assert result.stdout == ""
    rows = [strict(line) for line in (workshop / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt for prompt in SUMS for _ in range(2)]
    assert all(row["tokens"] <= 5 for row in rows)
    again = loopwise("generate", "model", "--data", "rows.jsonl", "--json", "-n", 2, "--max-tokens", 5)
    assert again.stdout == (workshop / "out.jsonl").read_text()
    other = loopwise(
        "generate", "model", "--data", "rows.jsonl", "--prompt-column", "sum", "--json", "-n", 2, "--max-tokens", 5
    )
    assert other.stdout == again.stdout
    assert [problem.prompt for problem in problems_from_rows("out.jsonl")] == [row["prompt"] for row in rows]


def test_the_format_of_a_file_is_told_by_its_columns(workshop: Path) -> None:
    flags = ["--json", "--max-tokens", 5]
    (workshop / "qa.jsonl").write_text(lines(*({"question": prompt, "answer": "1"} for prompt in SUMS)))
    (workshop / "alpaca.jsonl").write_text(lines(*({"instruction": prompt, "output": "1"} for prompt in SUMS)))
    expected = loopwise("generate", "model", "--data", "rows.jsonl", *flags).stdout
    for file in ("qa.jsonl", "alpaca.jsonl"):
        assert loopwise("generate", "model", "--data", file, *flags).stdout == expected


def test_what_is_finished_stays_when_the_rest_fails(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loopwise.generate.local import LocalGenerator

    generate, calls = LocalGenerator.generate, []

    async def twice(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return await generate(self, *arguments)

    monkeypatch.setattr(LocalGenerator, "generate", twice)
    monkeypatch.setattr("loopwise.stages.generation.UNIT", 1)
    result = CliRunner().invoke(app, ["generate", "model", "--data", "rows.jsonl", "--out", "out.jsonl"])
    assert result.exit_code == 130
    assert "out.jsonl: 2 of 3 completions." in result.stderr
    assert len((workshop / "out.jsonl").read_text().splitlines()) == 2


def test_a_run_is_its_model(workshop: Path) -> None:
    (workshop / "run").mkdir()
    (workshop / "run/journal.db").touch()
    assert "run: a run without a model yet" in refused("generate", "run", "--prompt", "1")
    (workshop / "run/model").symlink_to(workshop / "model")
    shown = loopwise("generate", "run", "--prompt", "1+1=", "--max-tokens", 5).stdout
    assert shown == loopwise("generate", "model", "--prompt", "1+1=", "--max-tokens", 5).stdout


def test_a_system_prompt_comes_first(workshop: Path, runtime: Runtime, chatty: Speaker) -> None:
    flags = ["--max-tokens", 5, "--json"]
    with_system = strict(loopwise("generate", "model", "--system", "22", "--prompt", "1+1=", *flags).stdout)
    by_hand = strict(loopwise("generate", "model", "--prompt", "22\n\n1+1=", *flags).stdout)
    assert with_system["completion"] == by_hand["completion"]


def test_a_message_to_a_model_with_a_template(workshop: Path, model: Path) -> None:
    chat = save_chat_model(workshop / "chat", model)
    plain = loopwise("generate", chat, "--prompt", "1+1=", "--max-tokens", 5)
    assert "note: this model has a chat template; --chat" in plain.stderr
    told = strict(loopwise("generate", chat, "--chat", "--prompt", "1+1=", "--max-tokens", 5, "--json").stdout)
    assert told["prompt"] == [{"role": "user", "content": "1+1="}]
    spoken = loopwise("generate", chat, "--chat", "--prompt", "1+1=", "--max-tokens", 5)
    assert spoken.stdout == told["completion"] + "\n"
    assert spoken.stderr == ""


def test_a_conversation_from_a_pipe(workshop: Path, model: Path) -> None:
    chat = save_chat_model(workshop / "chat", model)
    said = "1+1=\n\n2+2=\n/reset \n/rest\n1+1=\n/exit\n3+3=\n"
    result = loopwise("generate", chat, "--chat", "--max-tokens", 3, input=said)
    first, second, third = result.stdout.splitlines()
    assert first == third
    assert second != first
    assert "[forgotten]" in result.stderr
    assert "[unknown command /rest. /reset forgets" in result.stderr
    assert loopwise("generate", chat, "--chat", "--max-tokens", 3, input=said).stdout == result.stdout


def test_a_conversation_without_a_template(workshop: Path) -> None:
    result = loopwise("generate", "model", "--chat", "--max-tokens", 3, input="1+1=\n1+1=\n")
    assert len(result.stdout.splitlines()) == 2
    assert "no chat template: it goes on from each line by itself" in result.stderr


def test_a_line_too_long_is_refused_and_the_conversation_goes_on(workshop: Path) -> None:
    result = loopwise("generate", "model", "--chat", "--max-tokens", 3, input="1" * 40 + "\n1+1=\n")
    assert len(result.stdout.splitlines()) == 1
    assert "it has 40 tokens, and 3 more are over the model's context of 32" in result.stderr


def test_history_is_remembered(chatty: Speaker) -> None:
    conversation, alone = Conversation(chatty), Conversation(chatty)
    first = conversation.ask("1+1=", ignore, ignore)
    second = conversation.ask("2+2=", ignore, ignore)
    assert first is not None
    assert second is not None
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in conversation.messages] == ["1+1=", first.text, "2+2=", second.text]
    told = f"u1+1= a{first.text} u2+2= a"
    assert chatty.policy.tokenizer(told)["input_ids"] == list(second.prompt_ids)
    alone.ask("2+2=", ignore, ignore)
    conversation.reset()
    again = conversation.ask("1+1=", ignore, ignore)
    assert again is not None
    assert again.token_ids == first.token_ids


def test_the_oldest_turns_leave_a_full_context(chatty: Speaker) -> None:
    notes: list[str] = []
    conversation = Conversation(chatty)
    for turn in range(6):
        sample = conversation.ask(f"{turn}+{turn}=", ignore, notes.append)
        assert sample is not None
        assert len(sample.prompt_ids) + 4 <= 48
    assert notes[0] == "the context is full: the oldest turn is forgotten"
    assert conversation.messages[-2]["content"] == "5+5="
    assert conversation.messages[0]["content"] not in ("0+0=", "1+1=")


def test_the_system_prompt_does_not_leave(chatty: Speaker, make_policy: Callable[..., Policy]) -> None:
    policy = replace(chatty.policy, prompt_state=PromptState(system="add"))
    conversation = Conversation(replace(chatty, policy=policy))
    for turn in range(5):
        sample = conversation.ask(f"{turn}+{turn}=", ignore, ignore)
        assert sample is not None
        assert policy.tokenizer.decode(sample.prompt_ids).startswith("sadd u")


def test_ctrl_c_stops_the_answer_and_what_was_heard_is_remembered(chatty: Speaker) -> None:
    conversation = Conversation(replace(chatty, max_tokens=30))
    heard: list[str] = []

    def interrupted(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            signal.raise_signal(signal.SIGINT)

    assert conversation.ask("1+1=", interrupted, ignore) is None
    assert len(heard) == 3
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(heard)}
    assert conversation.ask("2+2=", ignore, ignore) is not None


def test_an_empty_answer_is_remembered(chatty: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Speaker.stream
    monkeypatch.setattr(Speaker, "stream", lambda self, problem, write: replace(stream(self, problem, ignore), text=""))
    conversation = Conversation(chatty)
    conversation.ask("1+1=", ignore, ignore)
    asked, answered = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": ""}
    assert conversation.messages == (asked, answered)
    conversation.ask("2+2=", ignore, ignore)
    assert len(conversation.messages) == 4


def test_a_terminal_is_spared_control_characters() -> None:
    evil = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202ereversed\x00 fine\n\tπ 中文 👋"
    shown = visible(evil)
    assert shown == "\\x1b]0;title\\x07\\x1b[2J\\r\\x9b31m\\u202ereversed\\x00 fine\n\tπ 中文 👋"
    told = plain_json({"text": evil})
    assert json.loads(told) == {"text": evil}
    assert visible(told) == told

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    writer(terminal)(evil)
    writer(pipe)(evil)
    assert terminal.getvalue() == shown
    assert pipe.getvalue() == evil


BAD = [
    (["nowhere", "--prompt", "1"], ("nowhere: no such folder here, so taken for a hub name", "Check the name")),
    (["./nowhere", "--prompt", "1"], ("./nowhere: no such model folder", "Name a folder")),
    (["rows.jsonl", "--prompt", "1"], ("rows.jsonl: no such model folder",)),
    (["model", "--prompt", "1" * 40], ("it has 40 tokens", "context of 32", "shorten the prompt")),
    (["model", "--prompt", "1", "--max-tokens", "40"], ("40 more", "context of 32", "Lower --max-tokens")),
    (["model", "--prompt", "1", "--max-tokens", "0"], ("Invalid value for '--max-tokens'",)),
    (["model", "--prompt", "1", "--top-p", "0"], ('key "top_p": expected more than 0', "found 0")),
    (["model", "--prompt", "1", "--top-p", "1.5"], ('key "top_p": expected at most 1',)),
    (["model", "--prompt", "1", "--temperature", "-1"], ('key "temperature": expected at least 0',)),
    (["model", "--prompt", "1", "--temperature", "nan"], ('key "temperature": expected a finite number',)),
    (["model", "--prompt", "1", "--top-k", "-1"], ('key "top_k": expected at least 0',)),
    (["model", "--prompt", "1", "--stop", ""], ('key "stop.0": expected text that is not empty',)),
    (["model", "--prompt", "1", "--data", "rows.jsonl"], ("--data and --prompt are two kinds of prompts", "Leave one")),
    (["model", "--chat", "--data", "rows.jsonl"], ("--data and --chat are two kinds", "Leave one")),
    (["model", "--data", "rows.jsonl"], ("--data wants a place", "--out samples.jsonl")),
    (["model", "--prompt", "1", "--prompt-column", "x"], ("--prompt-column is a column of --data",)),
    (["model", "--chat", "--json"], ("not for a conversation", "add --prompt")),
    (["model", "--prompt", "1", "--out", "rows.jsonl"], ("rows.jsonl: exists already", "Choose another --out")),
    (["model", "--prompt", "1", "--out", "no/where.jsonl"], ("there is no folder no", "Make it first")),
    (["model", "--data", "nowhere.jsonl", "--json"], ("nowhere.jsonl: no such file", "Check the path")),
    (["model", "--data", "rows.jsonl", "--prompt-column", "promt", "--json"], ('column "promt": missing', '"prompt"')),
    (["model", "--data", "odd.jsonl", "--json"], ("fit no format", "--prompt-column")),
    (["model", "--data", "long.jsonl", "--json"], ("it has 40 tokens", "context of 32")),
    (["model", "--data", "chat.jsonl", "--json"], ("no chat template",)),
    (["model", "--chat", "--prompt", "1"], ("no chat template",)),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda part: " ".join(part)[:60])
def test_bad_input(arguments: list[str], says: tuple[str, ...], workshop: Path) -> None:
    (workshop / "long.jsonl").write_text(lines({"prompt": "1"}, {"prompt": "1" * 40}))
    (workshop / "chat.jsonl").write_text(lines({"prompt": [{"role": "user", "content": "1"}]}))
    (workshop / "odd.jsonl").write_text(lines({"one": "1", "two": "2"}))
    before = contents(workshop)
    message = refused("generate", *arguments)
    for words in says:
        assert words in message
    assert contents(workshop) == before


def test_input_that_is_no_text(workshop: Path) -> None:
    assert "standard input: not UTF-8 text" in refused("generate", "model", input=b"\xff\xfe")
    result = CliRunner().invoke(app, ["generate", "model", "--chat", "--max-tokens", "3"], input=b"1+1=\n\xff\n")
    assert result.exit_code == 2
    assert "line of the conversation: not UTF-8 text" in result.stderr


@pytest.mark.parametrize("flag", ["--prompt", "--system", "--stop"])
def test_flags_that_are_no_text(flag: str, workshop: Path) -> None:
    """What a shell hands over as bytes arrives as lone surrogates."""
    prompt = [] if flag == "--prompt" else ["--prompt", "1"]
    message = refused("generate", "model", *prompt, flag, "1\udcff")
    assert f"{flag}: not UTF-8 text, found byte 0xff. Give it in UTF-8." in message


def test_input_that_is_no_text_where_python_lets_it_pass(workshop: Path) -> None:
    """As where the locale is C.UTF-8."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    for more, where in (([], "standard input"), (["--chat"], "line of the conversation")):
        command = [sys.executable, "-m", "loopwise", "generate", "model", "--max-tokens", "3", *more]
        done = subprocess.run(command, input=b"1+1=\xff\n", capture_output=True, env=environment, timeout=120)
        assert done.returncode == 2
        assert f"{where}: not UTF-8 text, found byte 0xff".encode() in done.stderr
        assert b"Traceback" not in done.stderr


def test_at_a_terminal(workshop: Path) -> None:
    """A real terminal: Ctrl-C stops an answer and not the conversation, Ctrl-D ends it."""
    endless = save_model(workshop / "endless", context=100_000)
    for name, change in (
        ("tokenizer_config.json", {"eos_token": None}),
        ("generation_config.json", {"eos_token_id": None}),
    ):
        config = json.loads((endless / name).read_text())
        (endless / name).write_text(json.dumps({**config, **change}))
    with terminal("generate", "endless", "--chat", "--max-tokens", "90000") as (type_in, wait_for):
        wait_for("> ")
        type_in("1+1=\n")
        wait_for("1+1=\r\n")
        wait_for("7")
        type_in("\x03")
        wait_for("[stopped]")
        wait_for("> ")
        type_in("\x04")


def ignore(text: str) -> None:
    """Neither read nor kept."""


class _Terminal:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.seen = ""

    def type_in(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come; seen: {self.seen[-500:]!r}"
            if select.select([self.descriptor], [], [], 0.2)[0]:
                self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]


@contextmanager
def terminal(*arguments: str) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """A command at a terminal of its own, which must end by itself in the end."""
    mine, its = pty.openpty()
    command = [sys.executable, "-m", "loopwise", *arguments]
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, start_new_session=True, preexec_fn=_controlling
    )
    os.close(its)
    screen = _Terminal(mine)
    try:
        yield screen.type_in, screen.wait_for
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def _controlling() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
