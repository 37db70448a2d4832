"""What the service counts, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("solid_requests", "Requests.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "solid_request_seconds", "Time of an answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "solid_batch_histories", "Histories answered together.", buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )  # fmt: skip
        self.reloads = Counter("solid_reloads", "Runs that took the place.", ["outcome"], registry=self.registry)
        self.sessions = Gauge("solid_sessions", "Sessions that are kept.", registry=self.registry)
        self.model = Gauge("solid_model_items", "Items of the model that answers.", ["model"], registry=self.registry)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
