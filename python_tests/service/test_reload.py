"""A run that takes the folder's place: old or new, never half, and no request is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from starlette.testclient import TestClient

from python_tests.service.conftest import ITEMS, TITLES
from python_tests.untrained import untrained
from solid_ext import SOLID
from solid_ext.service import Follower, Limits, create_app

OLD, NEW = (untrained(ITEMS, TITLES, seed) for seed in (1, 2))
HISTORY = [10, 20, 30]


def best(solid: SOLID) -> list[int]:
    return [entry.item for entry in solid.recommend([HISTORY])[0]]


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_new_run_takes_over_without_a_lost_request(tmp_path: Path) -> None:
    folder = OLD.save(tmp_path / "model")
    wanted, found = {tuple(best(OLD)), tuple(best(NEW))}, []
    assert len(wanted) == 2
    with TestClient(create_app(Follower(folder), Limits(poll_seconds=0.02))) as client:
        begun = client.post("/observe", json={"item": 10}).json()["session"]
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                answer = client.post("/recommend", json={"history": HISTORY})
                found.append((answer.status_code, tuple(entry["item"] for entry in answer.json()["items"])))

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        try:
            eventually(lambda: len(found) > 10)
            NEW.save(folder, overwrite=True)
            eventually(lambda: found[-1][1] == tuple(best(NEW)))
        finally:
            done.set()
            for thread in asking:
                thread.join()
        assert {status for status, _ in found} == {200}
        assert {items for _, items in found} == wanted
        assert client.post("/observe", json={"item": 20, "session": begun}).json()["events"] == 2
        assert 'solid_reloads_total{outcome="loaded"} 1.0' in client.get("/metrics").text


def test_a_run_that_is_torn_changes_nothing_until_it_is_whole(tmp_path: Path) -> None:
    folder = OLD.save(tmp_path / "model")
    with TestClient(create_app(Follower(folder), Limits(poll_seconds=0.02))) as client:
        NEW.save(tmp_path / "new")
        (folder / "manifest.json").write_bytes((tmp_path / "new" / "manifest.json").read_bytes())
        eventually(lambda: client.get("/health").json()["reload_failed"])
        answer = client.post("/recommend", json={"history": HISTORY}).json()
        assert [entry["item"] for entry in answer["items"]] == best(OLD)
        NEW.save(folder, overwrite=True)
        eventually(lambda: not client.get("/health").json()["reload_failed"])
        answer = client.post("/recommend", json={"history": HISTORY}).json()
        assert [entry["item"] for entry in answer["items"]] == best(NEW)


def test_a_folder_that_is_gone_is_served_from_memory(tmp_path: Path) -> None:
    folder = OLD.save(tmp_path / "model")
    with TestClient(create_app(Follower(folder), Limits(poll_seconds=0.02))) as client:
        folder.rename(tmp_path / "elsewhere")
        eventually(lambda: client.get("/health").json()["reload_failed"])
        assert client.post("/recommend", json={"history": HISTORY}).status_code == 200
        (tmp_path / "elsewhere").rename(folder)
        eventually(lambda: not client.get("/health").json()["reload_failed"])
