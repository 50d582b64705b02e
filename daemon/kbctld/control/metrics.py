"""GET /metrics: the daemon's figures as Prometheus reads them.

What must stay true: names and labels are a closed set, so that no agent can grow the answer; nothing is
kept in a registry of the process; a figure that can't be read now is left out, never zero.
"""

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from kbctld import __version__
from kbctld.control.routes import Ask, Reply, Route
from kbctld.core.money import NANO_PER_USD
from kbctld.core.tally import BOUNDS_US, Tally
from kbctld.store import queries
from kbctld.store.journal import JournalError
from kbctld.vault import Vault


@dataclass(frozen=True, slots=True)
class Metrics:
    """What is measured, and where.

    Attributes:
        in_flight: calls that vendors are working on now.
    """

    vault: Vault
    tally: Tally
    in_flight: Callable[[], int]

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [Route("GET", "/metrics", self._show, "read", "Figures, as Prometheus text", gives=str)]

    async def _show(self, _ask: Ask) -> Reply:
        reader = self.vault.journal.database.reader
        unknown, active = None, None
        try:
            await self.vault.journal.barrier()
            unknown = await queries.unknown_totals(reader)
            active = await self.vault.count_running()
        except (sqlite3.Error, JournalError):
            pass  # the journal's own state tells
        text = generate_latest(_Scrape(list(self._families(active, unknown)))).decode()
        return Reply(text, kind=CONTENT_TYPE_PLAIN_0_0_4.encode())

    def _families(self, active: int | None, unknown: tuple[int, int] | None) -> Iterable[Metric]:
        info = GaugeMetricFamily("kbctl_info", "Which kbctl this is.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        calls = CounterMetricFamily(
            "kbctl_calls", "Calls that ended since the start.", labels=["vendor", "result", "outcome"]
        )
        for names, count in list(self.tally.calls.items()):
            calls.add_metric(list(names), count)
        yield calls
        yield self._added()
        yield _gauge("kbctl_in_flight_calls", "Calls that vendors are working on now.", self.in_flight())
        if active is not None:
            yield _gauge("kbctl_keys_active", "Vault keys that may be used.", active)
        held = sum(hold.nano for hold in self.vault.ledger.open)
        yield _gauge("kbctl_held_usd", "US dollars set aside for calls without a final outcome.", _usd(held))
        spent = CounterMetricFamily("kbctl_spent_usd", "US dollars spent since the start.")
        spent.add_metric([], _usd(self.vault.spent_nano))
        yield spent
        if unknown is not None:
            yield _gauge("kbctl_unknown_calls", "Calls whose outcome nobody knows yet.", unknown[0])
            yield _gauge("kbctl_unknown_usd", "US dollars held for those.", _usd(unknown[1]))
        journal = self.vault.journal
        yield _gauge("kbctl_journal_up", "Whether calls can be recorded.", int(journal.stopped is None))
        batches = CounterMetricFamily("kbctl_journal_batches", "Group commits since the start.")
        batches.add_metric([], journal.batches)
        yield batches

    def _added(self) -> Metric:
        buckets, sum_so_far = [], 0
        for bound, count in zip([*BOUNDS_US, None], self.tally.added, strict=True):
            sum_so_far += count
            buckets.append(("+Inf" if bound is None else str(bound / 1e6), float(sum_so_far)))
        return HistogramMetricFamily(
            "kbctl_added_seconds",
            "What kbctl itself added to forwarded calls.",
            buckets=buckets,
            sum_value=self.tally.added_us / 1e6,
        )


@dataclass(frozen=True, slots=True)
class _Scrape(Collector):
    """What one answer tells."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _usd(nano: int) -> float:
    return nano / NANO_PER_USD
