"""What the service counts, for Prometheus. One registry per app, so that two apps in one process do not share numbers.

With several workers every worker counts for itself, and /metrics answers for the one that took the request.
Nothing here says what is on an image: no label, no project, no address.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

WEBHOOK_ACTIONS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "START_TRAINING",
        "PROJECT_CREATED",
        "PROJECT_UPDATED",
        "PROJECT_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
    }
)
"""The actions with a time series of their own; others count as "other", since anyone could make up thousands."""

LATENCY_BUCKETS_S = (0.005, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0, 10.0, 30.0, 80.0, 100.0)
"""Label Studio's own limits are among them: 1 s for /health and /webhook, 3 s for /setup, 100 s for /predict."""


class Metrics:
    """The counters of one app. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("forelabel_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "forelabel_request_seconds",
            "Time to answer a request",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._tasks = Counter("forelabel_tasks", "Tasks asked for, by outcome", ["outcome"], registry=self.registry)
        self._unreadable = Counter(
            "forelabel_images_unreadable", "Images that could not be fetched or decoded", registry=self.registry
        )
        self._cache = Counter(
            "forelabel_cache_lookups", "Embeddings looked up in the store", ["outcome"], registry=self.registry
        )
        self._webhooks = Counter("forelabel_webhooks", "Webhook events", ["action"], registry=self.registry)
        self._suggestions = Counter(
            "forelabel_suggestions",
            "Answers of annotators, by whether they are what was suggested",
            ["outcome"],
            registry=self.registry,
        )
        self._ready = Gauge("forelabel_model_ready", "1 once the model is loaded", registry=self.registry)
        self._store = Gauge("forelabel_store_available", "1 while the embedding store answers", registry=self.registry)
        for outcome in ("predicted", "empty"):
            self._tasks.labels(outcome)
        for outcome in ("hit", "miss"):
            self._cache.labels(outcome)
        for outcome in ("taken", "changed"):
            self._suggestions.labels(outcome)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def tasks(self, predicted: int, empty: int) -> None:
        """Tasks that got a prediction, and tasks that got none (unreadable image, no image, out of time)."""
        self._tasks.labels("predicted").inc(predicted)
        self._tasks.labels("empty").inc(empty)

    def images_unreadable(self, count: int) -> None:
        self._unreadable.inc(count)

    def cache(self, hits: int, misses: int) -> None:
        self._cache.labels("hit").inc(hits)
        self._cache.labels("miss").inc(misses)

    def webhook(self, action: str) -> None:
        self._webhooks.labels(action if action in WEBHOOK_ACTIONS else "other").inc()

    def suggestion(self, taken: bool) -> None:
        """An annotator's first answer to a question that had a suggestion."""
        self._suggestions.labels("taken" if taken else "changed").inc()

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """`ready` is asked on every scrape."""
        self._ready.set_function(lambda: float(ready()))

    def watch_store(self, available: Callable[[], bool]) -> None:
        """`available` is asked on every scrape; it must answer from memory, without a round trip."""
        self._store.set_function(lambda: float(available()))

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
