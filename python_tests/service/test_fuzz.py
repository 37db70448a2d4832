"""The service against its own schema: whatever is asked, there is an answer of that shape, and never a 500."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from solid_ext.service import Follower, create_app

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    *("POST /recommend", "POST /observe", "GET /similar", "GET /items", "GET /health", "GET /metrics"),
    *("GET /device/static", "GET /device/items", "POST /device/personal"),
]
EXAMPLES = 20


@pytest.fixture(scope="module")
def schema(folder: Path) -> Any:
    """Of an application of its own, which schemathesis starts and ends with every request."""
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(Follower(folder)))


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_is_asked_is_answered_as_the_schema_says(schema: Any, operation: str, mode: GenerationMode) -> None:
    method, path = operation.split()
    asked = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (asked.body or asked.query):
        pytest.skip("nothing can be wrong about a request without values")
    statuses = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=asked.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        statuses.add(answer.status_code)
        if answer.status_code >= 400:
            assert list(answer.json()) == ["detail"]

    ask()
    assert statuses <= {200, 400, 404, 405, 422}


def test_every_operation_of_the_schema_is_asked(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == {
        *OPERATIONS,
        "GET /examples",
    }
