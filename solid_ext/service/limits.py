"""What a request may cost, and what is kept between requests."""

from __future__ import annotations

from dataclasses import dataclass

# Of the schema, which `/openapi.json` states.
MOST_HISTORY = 1_000  # events of a history; a model reads the last few, the others are left out of the answer
MOST_RULES = 10_000  # ids of a blacklist or whitelist
MOST_K = 100
ID_LENGTH = 256
QUERY_LENGTH = 200


@dataclass(frozen=True)
class Limits:
    """What a request may cost, and what is kept between requests.

    Attributes:
        body_bytes: of a request.
        head_bytes: of a request's first line and headers.
        seconds: until a body has to be there, and until an answer has to be.
        batch: histories that are answered together, at most.
        waiting: requests that may wait for the model; others are told to come again.
        sessions: that are kept; the one that was used the longest ago makes room.
        session_seconds: without use, after which a session ends.
        poll_seconds: between two looks at whether the run was replaced.
    """

    body_bytes: int = 1 << 20
    head_bytes: int = 1 << 15
    seconds: float = 10.0
    batch: int = 64
    waiting: int = 1024
    sessions: int = 10_000
    session_seconds: float = 3600.0
    poll_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"serve: expected {name} above 0, got {value!r}")
