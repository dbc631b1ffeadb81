"""The benchmark of sandboxes at its smallest."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.harness import BenchmarkError, Settings

from benchmarks import sandbox


@pytest.mark.parametrize("side", [sandbox.ours, sandbox.bare])
def test_both_sides_have_every_figure(sandboxes: None, side: object) -> None:
    assert callable(side)
    found = side({"starts": 1, "programs": 2, "threads": 1})
    assert set(found) == {figure.key for figure in sandbox.FIGURES}
    assert all(value > 0 for value in found.values())


def test_without_bubblewrap_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="apt install bubblewrap"):
        sandbox.run(Settings(Path(), repeats=1, threads=1, quick=True))
