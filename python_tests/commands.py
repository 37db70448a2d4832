"""What tests of commands share."""

from __future__ import annotations

import pytest

from solid_ext.cli import main


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a failing command prints."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1, sentence
    return sentence
