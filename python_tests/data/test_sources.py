"""Datasets that come with a package: found without importing it, read with titles and genres."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from solid_ext.data import MOVIELENS_100K_LICENCE, movielens_100k

RATINGS = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "10\t3\t4\t881250949\n2\t1\t3\t891717742\n10\t1\t5\t881250900\n10\t2\t1\t881250949\n2\t5\t1\t891717743\n"
)
FILMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    "2\tThe Great Giving (1995)\tV\tAnimation\n"
    "3\tunkonwn\tunkonwn\tunknown\n"
    "4\tNever rated\t1990\t\n"
    "5\tTwice (1995)\t1995\tDrama\n"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package recbole that carries two tiny files and must not be imported."""
    for name in list(sys.modules):
        if name.split(".")[0] == "recbole":
            monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    folder.mkdir(parents=True)
    (tmp_path / "recbole" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "ml-100k.inter").write_text(RATINGS)
    (folder / "ml-100k.item").write_text(FILMS)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_movielens_from_the_package(package: Path) -> None:
    dataset = movielens_100k()
    assert "recbole" not in sys.modules
    assert dataset.name == "movielens-100k"
    assert dataset.user_ids.to_list() == [2, 10]
    assert dataset.items.tolist() == [1, 4, 1, 3, 2]
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == [891717742, 891717743, 881250900, 881250949, 881250949]
    assert dataset.titles([1, 2, 3, 4]) == [
        "Toy Story (1995)",
        "The Great Giving (1995)",
        "unkonwn",
        "Twice (1995)",
    ]
    assert dataset.item_table["categories"].to_list() == [
        "Animation|Children's|Comedy",
        "Animation",
        "unknown",
        "Drama",
    ]
    assert dataset.report["metadata_never_interacted"] == 1
    assert dataset.report["licence"] == MOVIELENS_100K_LICENCE
    assert not any("--" in note for note in dataset.notes)  # no flag changes what is built in
    assert movielens_100k(package).fingerprint == dataset.fingerprint


def test_years_may_all_be_numbers(package: Path) -> None:
    (package / "ml-100k.item").write_text(FILMS.split("\n")[0] + "\n1\t1984\t1956\tDrama\n")
    assert movielens_100k().titles([1, 2]) == ["1984 (1956)", "2"]


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "recbole", raising=False)
    with pytest.raises(ValueError, match="movielens-100k") as caught:
        movielens_100k()
    assert str(caught.value) == (
        "movielens-100k: expected the package recbole 1.2.1 (pip install --no-deps recbole==1.2.1), found none"
    )


def test_missing_files(package: Path, tmp_path: Path) -> None:
    (package / "ml-100k.item").unlink()
    with pytest.raises(ValueError, match=r"expected ml-100k\.inter and ml-100k\.item in .*, got no ml-100k\.item"):
        movielens_100k()
