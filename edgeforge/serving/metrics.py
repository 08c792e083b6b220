"""What a Prometheus server is told at /metrics."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from edgeforge.serving.admission import FairQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BETWEEN_TOKENS_S = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
WHOLE_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """A registry of its own, so that several servers in one process do not mix."""

    def __init__(self, queue: "FairQueue") -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "edgeforge_requests", "Requests, by path and HTTP status.", ("path", "status"), registry=registry
        )
        self.answers = Counter(
            "edgeforge_answers", "Answers, by why they ended.", ("finish_reason",), registry=registry
        )
        self.prompt_tokens = Counter("edgeforge_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter(
            "edgeforge_prompt_cached_tokens",
            "Tokens of prompts whose keys and values were known before.",
            registry=registry,
        )
        self.completion_tokens = Counter("edgeforge_completion_tokens", "Tokens of answers.", registry=registry)
        self.request_s = Histogram(
            "edgeforge_request_seconds", "From request to the end of the response.", buckets=WHOLE_S, registry=registry
        )
        self.queue_s = Histogram(
            "edgeforge_queue_seconds", "How long an answer waited for a slot.", buckets=FIRST_TOKEN_S, registry=registry
        )
        self.first_token_s = Histogram(
            "edgeforge_time_to_first_token_seconds",
            "From request to the first token, waiting included.",
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self.between_tokens_s = Histogram(
            "edgeforge_inter_token_seconds",
            "From one token of an answer to its next.",
            buckets=BETWEEN_TOKENS_S,
            registry=registry,
        )
        self._gauge("edgeforge_answers_running", "Answers that are computed now.", lambda: queue.running)
        self._gauge("edgeforge_answers_waiting", "Answers that wait for a slot.", lambda: queue.waiting)
        self._gauge("edgeforge_slots", "Answers that may run at once.", lambda: queue.slots)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        Gauge(name, what, registry=self._registry).set_function(read)
