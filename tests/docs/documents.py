"""Reading the repository's pages: their code blocks, and the files that stand in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = (*READMES, *(path for path in sorted(ROOT.glob("docs/**/*.md"))))

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block; ``file`` is the name its first line gives it in a comment, where it does."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        match = _FILE.match(self.text)
        return match[1] if match else None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block without their comments."""
        return [line for text in self.text.splitlines() if (line := text.partition("#")[0].strip())]


def code_blocks(page: Path, language: str | None = None) -> list[CodeBlock]:
    """The fenced blocks of a page, or those in one language."""
    text = page.read_text(encoding="utf-8")
    found = [CodeBlock(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in _BLOCK.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def named_files(page: Path) -> dict[str, str]:
    """The text of each file that a page shows, by its name."""
    return {block.file: block.text for block in code_blocks(page) if block.file}


def tour(page: Path) -> dict[str, list[str]]:
    """The folder tour of a README: each path with its words. A folder without entries of its own ends in a slash."""
    text = page.read_text(encoding="utf-8").partition("<!-- tour -->\n```\n")[2].partition("\n```")[0]
    entries: dict[str, list[str]] = {}
    parents: list[str] = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name, *words = line.split()
        path = "".join([*parents[:depth], name])
        parents = [*parents[:depth], name]
        entries[path] = words
    return entries
