"""The service: what Python answers, over HTTP, and one sentence for what cannot be answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from starlette.testclient import TestClient

from python_tests.service.conftest import ITEMS, TITLES
from solid_ext import SOLID
from solid_ext.device import DeviceModel
from solid_ext.service import Follower, Limits, create_app


def scored(entries: list[dict[str, Any]]) -> list[tuple[Any, str, Any]]:
    return [(entry["item"], entry["title"], pytest.approx(entry["score"], abs=1e-4)) for entry in entries]


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 3}, {"exclude_history": False}, {"exclude": [30, "40"]}, {"include": [0, 10, 590], "k": 2}],
)
def test_recommendations_are_those_of_python(client: TestClient, solid: SOLID, options: dict[str, Any]) -> None:
    history = [50, "100", 150]
    answer = client.post("/recommend", json={"history": history, **options})
    assert answer.status_code == 200
    assert scored(answer.json()["items"]) == [tuple(entry) for entry in solid.recommend([history], **options)[0]]


def test_a_newcomer_gets_what_is_popular(client: TestClient) -> None:
    popular = [entry["item"] for entry in client.get("/items", params={"limit": 5}).json()["items"]]
    for body in ({}, {"history": []}, {"history": ["none"], "unknown": "ignore"}):
        answer = client.post("/recommend", json={**body, "k": 5}).json()
        assert [entry["item"] for entry in answer["items"]] == popular


def test_a_session_is_the_history_of_its_events(client: TestClient, solid: SOLID) -> None:
    begun = client.post("/observe", json={"item": 10}).json()
    assert begun["events"] == 1
    assert client.post("/observe", json={"item": "20", "session": begun["session"]}).json() == {**begun, "events": 2}
    answer = client.post("/recommend", json={"session": begun["session"], "k": 4}).json()
    assert scored(answer["items"]) == [tuple(entry) for entry in solid.recommend([[10, 20]], 4)[0]]
    refused = client.post("/observe", json={"item": 5, "session": begun["session"]})
    assert refused.status_code == 422
    assert client.post("/recommend", json={"session": begun["session"], "k": 4}).json() == answer


def test_reasons_name_items_of_the_history_and_the_history_its_semantics(client: TestClient, solid: SOLID) -> None:
    history = [number * 10 for number in range(1, 9)]
    answer = client.post("/recommend", json={"history": history, "reasons": True}).json()
    plain = client.post("/recommend", json={"history": history}).json()
    assert [{**entry, "reason": None} for entry in answer["items"]] == [{**e, "reason": None} for e in plain["items"]]
    assert solid.model is not None
    for entry in answer["items"]:
        assert entry["reason"]["text"]
        assert sum(entry["reason"]["parts"].values()) == pytest.approx(entry["score"], abs=1e-3)
        assert {near["item"] for near in entry["reason"]["similar"]} <= set(history)
        assert entry["reason"]["semantic"] == solid.model.semantics[entry["item"] // 10 + 1]
    assert [entry["item"] for entry in answer["history"]] == history
    assert [entry["read"] for entry in answer["history"]] == [False] * 2 + [True] * 6
    assert all(set(entry["semantic"]["typical"]) <= set(TITLES) for entry in answer["history"])


def test_titles_are_searched_without_case_those_that_begin_with_it_first(client: TestClient) -> None:
    found = client.get("/items", params={"query": "THE 1", "limit": 100}).json()["items"]
    assert {entry["title"] for entry in found} == {title for title in TITLES if title.startswith("The 1")}
    assert client.get("/items", params={"query": "the 7th <B>"}).json()["items"][0]["title"] == "The 7th <b>title</b>"
    assert client.get("/items", params={"query": ".*"}).json()["items"] == []


def test_similar_items_are_those_of_python(client: TestClient, solid: SOLID) -> None:
    answer = client.get("/similar", params={"item": "70", "k": 3})
    assert answer.status_code == 200
    assert [entry["item"] for entry in answer.json()["items"]] == [
        entry.item for entry in solid.similar_items([70], 3)[0]
    ]


def test_examples_are_made_of_items_and_of_nobody(client: TestClient) -> None:
    examples = client.get("/examples").json()["examples"]
    assert len(examples) == 6
    for example in examples:
        ids = [entry["item"] for entry in example["history"]]
        assert client.post("/recommend", json={"history": ids}).status_code == 200


@pytest.mark.parametrize("body", [{"history": [5]}, {"k": 0}, {"k": 1.5}, {"exclude": [10, 5]}, {"include": ["x"]}])
def test_what_python_refuses_is_refused_with_the_same_sentence(
    client: TestClient, solid: SOLID, body: dict[str, Any]
) -> None:
    asked = {"history": [10], **body}
    with pytest.raises((ValueError, TypeError)) as refused:
        solid.recommend([asked.pop("history")], **asked)
    answer = client.post("/recommend", json={"history": [10], **body})
    assert (answer.status_code, answer.json()) == (422, {"detail": str(refused.value)})


@pytest.mark.parametrize(
    ("path", "content", "status", "sentence"),
    [
        ("/recommend", b'{"k": 101}', 422, "recommend: expected k of at most 100, got 101"),
        ("/recommend", b'{"k": true}', 422, "recommend: expected k as an integer, got True"),
        ("/recommend", b'{"history": "10"}', 422, "recommend: expected history as a list of item ids, got '10'"),
        ("/recommend", b'{"history": [10, {}]}', 422, "recommend: expected history[1] as an item id, text or a number"),
        ("/recommend", b'{"history": [NaN]}', 422, "recommend: expected history[0] as an item id, text or a number"),
        ("/recommend", b'{"history": [true]}', 422, "recommend: expected history[0] as an item id, text or a number"),
        ("/recommend", b'{"history": [1%s]}' % (b"0" * 5000), 400, "recommend: expected a body of JSON"),
        ("/recommend", b'{"history": [%s]}' % b",".join([b"1"] * 1001), 422, "of at most 1,000 ids, got 1,001"),
        ("/recommend", b'{"history": [], "session": "a"}', 422, "recommend: expected a history or a session, got both"),
        ("/recommend", b'{"session": "a"}', 404, "recommend: expected a session that goes on, got 'a'"),
        ("/recommend", b'{"session": 4}', 422, "recommend: expected session as text, got 4"),
        ("/recommend", b'{"unknown": "no"}', 422, "recommend: expected unknown 'error' or 'ignore', got 'no'"),
        ("/recommend", b'{"K": 3}', 422, "recommend: expected fields of its own, got 'K'"),
        ("/recommend", b"{", 422, "recommend: expected a body of JSON, got text that is none"),
        ("/recommend", b"[" * 100_000, 400, "recommend: expected a body of JSON, got one that cannot be read"),
        ("/recommend", b"[]", 422, "recommend: expected an object of JSON, got []"),
        ("/recommend", b"", 422, "recommend: expected a body, got none"),
        ("/observe", b"{}", 422, "observe: expected item, got none"),
        ("/observe", b'{"item": "none"}', 422, "observe: expected items of the catalogue, got 'none'"),
        ("/nowhere", b"{}", 404, "expected one of /device/items, /device/personal, "),
        ("/items", b"{}", 405, "expected another method for '/items', got 'POST'"),
    ],
)
def test_bad_input_gets_one_sentence(client: TestClient, path: str, content: bytes, status: int, sentence: str) -> None:
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/items?limit=0", "items: expected limit of at least 1, got '0'"),
        ("/items?limit=some", "items: expected limit as an integer, got 'some'"),
        (f"/items?query={'x' * 201}", "items: expected query of at most 200 characters, got 201"),
        ("/similar", "similar: expected item, got none"),
        (
            "/similar?item=none",
            "similar_items: expected items of the catalogue in items, got 'none', which is not in it",
        ),
        ("/similar?item=10&k=1000", "similar: expected k of at most 100, got '1000'"),
    ],
)
def test_bad_queries_get_one_sentence(client: TestClient, address: str, sentence: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(sentence)


def test_health_names_the_model_and_metrics_count(client: TestClient) -> None:
    health = client.get("/health").json()
    assert health == {"status": "ok", "model": health["model"], "items": ITEMS, "reload_failed": False}
    before = client.get("/metrics").text
    client.get("/health")
    client.get("/anything/else")
    after = client.get("/metrics")
    assert after.headers["content-type"].startswith("text/plain; version=0.0.4")

    def count(text: str, line: str) -> float:
        return float(next((row.split()[-1] for row in text.splitlines() if row.startswith(line)), 0))

    for line in (
        'solid_requests_total{path="/health",status="200"}',
        'solid_requests_total{path="other",status="404"}',
    ):
        assert count(after.text, line) == count(before, line) + 1
    assert f'solid_model_items{{model="{health["model"]}"}} {ITEMS}.0' in after.text


def test_a_token_is_asked_for_everywhere_but_at_the_page_and_health(folder: Path) -> None:
    with TestClient(create_app(Follower(folder), token="secret")) as client:
        for path in ("/", "/page.js", "/device.js", "/page.css", "/docs", "/docs.js", "/openapi.json", "/health"):
            assert client.get(path).status_code == 200
        for given in (None, "Bearer other", "Bearer ", "Basic secret", "secret", "Bearer secr\u00e9t"):
            headers = {} if given is None else {"authorization": given.encode()}
            for path in ("/items", "/metrics", "/nowhere"):
                answer = client.get(path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert "secret" not in answer.text
        assert client.get("/items", headers={"authorization": "bearer secret"}).status_code == 200


def test_a_service_for_this_machine_takes_no_other_host_name(folder: Path) -> None:
    with TestClient(create_app(Follower(folder), hosts={"localhost", "[::1]"})) as client:
        for host, status in {"localhost:8000": 200, "LOCALHOST": 200, "[::1]:8000": 200, "evil.example": 421}.items():
            assert client.get("/health", headers={"host": host}).status_code == status


def test_a_body_that_is_too_large_is_not_read_whole(folder: Path) -> None:
    with TestClient(create_app(Follower(folder), Limits(body_bytes=100))) as client:
        assert client.post("/recommend", json={"history": [10]}).status_code == 200
        stated = client.post("/recommend", json={"history": [10] * 100})
        read = 0

        def parts() -> Any:
            nonlocal read
            for _ in range(50):
                read += 1
                yield b" " * 10

        streamed = client.post("/recommend", content=parts())
        for answer in (stated, streamed):
            assert answer.status_code == 413
            assert answer.json()["detail"] == "expected a body of at most 100 bytes, got more"


def test_every_answer_keeps_other_sites_out_of_the_page(client: TestClient) -> None:
    for answer in (client.get("/"), client.get("/health"), client.get("/nowhere")):
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_asks_no_outside_host(client: TestClient) -> None:
    for path in ("/", "/page.css", "/page.js", "/docs", "/docs.js"):
        text = client.get(path).text
        assert "//" not in text.replace("// ", "")
        assert "innerHTML" not in text


@pytest.mark.parametrize("field", ["body_bytes", "seconds", "session_seconds"])
def test_a_limit_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"serve: expected {field} above 0, got 0"):
        Limits(**{field: 0})


def test_an_event_that_cannot_be_is_refused_without_the_hint_at_a_field_that_is_none(client: TestClient) -> None:
    answer = client.post("/observe", json={"item": "none"})
    assert answer.json()["detail"] == "observe: expected items of the catalogue, got 'none', which is not in it"


def test_a_body_of_json_that_says_it_is_another_thing_is_refused_by_its_header(client: TestClient) -> None:
    sentence = "recommend: expected the header Content-Type: application/json, got "
    for given, got in (("application/x-www-form-urlencoded", "'application/x-www-form-urlencoded'"), (None, "none")):
        headers = {} if given is None else {"content-type": given}
        answer = client.post("/recommend", content=b'{"history": [10]}', headers=headers)
        assert answer.status_code == 422
        assert answer.json()["detail"] == sentence + got


@pytest.mark.parametrize(
    "address", ["/similar?item=10&kk=1", "/items?kk=1", "/examples?kk=1", "/recommend?kk=1", "/observe?kk=1"]
)
def test_a_field_that_is_misspelt_in_the_address_is_refused(client: TestClient, address: str) -> None:
    posted = address.startswith(("/recommend", "/observe"))
    answer = client.post(address, json={"item": 10} if "observe" in address else {}) if posted else client.get(address)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{address[1:].partition('?')[0]}: expected fields of its own, got 'kk'"


@pytest.mark.parametrize(
    ("address", "name"), [("/similar?item=10&item=20&k=1", "item"), ("/items?limit=1&limit=1", "limit")]
)
def test_a_field_that_stands_twice_in_the_address_is_refused(client: TestClient, address: str, name: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"{address[1:].partition('?')[0]}: expected {name} once, got it 2 times"


def test_a_head_that_is_too_large_is_refused(client: TestClient) -> None:
    for headers, query in (({"x-large": "x" * 33_000}, ""), ({f"x-{n}": "x" * 500 for n in range(70)}, ""), ({}, "x")):
        answer = client.get("/items", params={"query": query * 33_000}, headers=headers)
        assert answer.status_code == 431
        assert answer.json()["detail"] == "expected a request's head of at most 32,768 bytes, got more"
    assert client.get("/items", headers={"x-large": "x" * 32_000}).status_code == 200


def test_a_device_gets_its_static_part_and_a_persons_layers(client: TestClient, solid: SOLID, tmp_path: Path) -> None:
    solid.export_device(tmp_path / "device")
    assert client.get("/device/items").content == (tmp_path / "device" / "items.json").read_bytes()
    static, written = client.get("/device/static").content, (tmp_path / "device" / "static.safetensors").read_bytes()
    for (name, array), (other, same) in zip(sorted(load(static).items()), sorted(load(written).items()), strict=True):
        assert name == other
        np.testing.assert_array_equal(array, same)
    answer = client.post("/device/personal", json={"history": [50, "100"]})
    assert answer.headers["content-type"] == "application/octet-stream"
    found = DeviceModel(tmp_path / "device").load(answer.content).recommend(10)
    expected = [(entry.item, pytest.approx(entry.score, abs=1e-5)) for entry in solid.recommend([[50, 100]])[0]]
    assert [(entry.item, entry.score) for entry in found] == expected
    refused = client.post("/device/personal", json={"history": ["none"]})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("personalize: expected items of the catalogue in history, got 'none'")
    assert client.post("/device/personal", json={}).status_code == 422
