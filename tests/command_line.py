"""Running commands in this process, for the tests of the command line."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from loopwise.cli import app

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}a{% endif %}"
)


def loopwise(*arguments: object, input: str | bytes | None = None) -> Result:
    """A command that must succeed."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "150"}, input=input)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


def refused(*arguments: object, input: str | bytes | None = None) -> str:
    """The message of a command that must end with exit code 2 and say nothing else."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, input=input)
    assert result.exit_code == 2, f"{result.output}\n{result.exception!r}"
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def strict(text: str) -> Any:
    """Parse JSON as other languages do: without NaN."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder. SQLite leaves its side files at will."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.name.endswith(("-shm", "-wal"))
    }


def save_chat_model(folder: Path, model: Path) -> str:
    """A model of ``save_model`` with a chat template over its own digits."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return str(folder)
