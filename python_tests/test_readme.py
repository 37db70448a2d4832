"""The README's Python runs as it stands, and what it promises is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from solid_ext import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def in_a_folder_with_interactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},i{(user * 7 + step) % 150},{step}" for user in range(200) for step in range(6)]
    (tmp_path / "interactions.csv").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.usefixtures("in_a_folder_with_interactions")
def test_the_code_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_the_first_block_is_ten_lines() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 10


def test_commands_and_files_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in re.findall(r"^solid-ext (\w+)", README, flags=re.MULTILINE):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets
    for name in re.findall(r"`(bench/results/[\w./-]+)`|\]\(([\w./-]+)\)", README):
        assert (ROOT / (name[0] or name[1])).exists(), name
