"""solid-ext export --for device, and what train prints of a device."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from python_tests.untrained import untrained
from solid_ext.cli import main
from solid_ext.cli.train import show_device
from solid_ext.device import DeviceModel


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_runs_static_part_is_written_and_its_size_and_loss_said(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solid = untrained(60, low_rank=False)
    run, out = str(solid.save(tmp_path / "model")), tmp_path / "device"
    main(["export", "--run", run, "--for", "device", "--out", str(out), "--dtype", dtype])
    said, size = " ".join(capsys.readouterr().out.split()), (out / "static.safetensors").stat().st_size
    assert f"{size:,} bytes of {dtype}" in said
    assert ("rounding moves a score by" in said) == (dtype == "int8")
    found = DeviceModel(out).load(solid.personalize([30, 40])).recommend(5)
    assert len(found) == 5
    with pytest.raises(SystemExit):
        main(["export", "--run", run, "--for", "device", "--out", str(out)])
    assert "export: expected a folder that does not exist yet" in capsys.readouterr().err


def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(untrained(60).save(tmp_path / "model")), tmp_path / "device"
    rows = pl.DataFrame({"user_id": [1, 1, 1, 2, 2, 2], "item_id": [1, 2, 3] * 2, "timestamp": [1, 2, 3] * 2})
    rows.write_csv(tmp_path / "other.csv")
    with pytest.raises(SystemExit):
        main([
            *("export", "--run", run, "--for", "device", "--out", str(out), "--dataset", str(tmp_path / "other.csv"))
        ])  # fmt: skip
    assert "evaluate: expected" in capsys.readouterr().err
    assert not out.exists()


def test_train_says_accuracy_beside_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    full = {"full": {"ndcg@10": 0.0394}}
    show_device({"device": {"static": 72292, "person": 736}, "models": {"popularity": full, "SOLID": full}})
    said = " ".join(capsys.readouterr().out.split())
    assert "SOLID: full ndcg@10 0.0394, 72,292 bytes on the device, 736 bytes a person" in said
    show_device({"device": None, "models": {"finetune": full}})
    assert capsys.readouterr().out == ""
