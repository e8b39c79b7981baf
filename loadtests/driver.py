"""What each of Locust's processes does for the load: sends its share, counts it, records it.

Locust's own classes come in as arguments, so that this file needs no Locust: an environment, its
runner, and a function that gives Locust its users.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gevent

from loadtests import server
from loadtests.errors import BadOption, LoadTestError, NoServer
from loadtests.open_loop import Dispatcher
from loadtests.records import ClientCost, Row, RowWriter
from loadtests.sending import Sender
from loadtests.settings import Settings
from loadtests.tally import beside, line
from loadtests.workload import Request, Workload

logger = logging.getLogger(__name__)

FLUSH_S = 0.5
WATCH_S = 0.2
TABLES_S = 1.5  # Locust writes the tables of --csv once a second, and not once more at the end
SPAWN_RATE = 100.0  # users a second; Locust warns of more


class RequestFailed(Exception):
    """What Locust's table of errors shows: status and message."""


def prepare(environment: Any) -> Settings:
    """Read the settings where a test is begun; raises LoadTestError when it cannot be run."""
    options = environment.parsed_options
    settings = Settings.parse(vars(options))
    if options.num_users is not None and options.num_users < 1:
        raise BadOption("--users", options.num_users, "at least one user is needed")
    if options.headless or options.autostart:
        if not environment.host:
            raise NoServer("--host is missing: the URL of the server to put load on")
        server.check(environment.host, settings.api_key)
    if settings.record is not None:
        RowWriter(settings.record).close()  # better refused now than when the load is on
    if settings.arrivals is not None:
        options.num_users = max(getattr(options, "expect_workers", 1) or 1, 1)
        options.spawn_rate = SPAWN_RATE
    return settings


class Load:
    """This process's share of the load, from a test's start to its stop."""

    def __init__(self, environment: Any, *, arrange: Callable[[Any, Settings], None]) -> None:
        self._environment = environment
        self._arrange = arrange
        # Locust overwrites a worker's options by its master's; what it was given itself holds.
        self._own_record = environment.parsed_options.record
        self._is_worker = type(environment.runner).__name__ == "WorkerRunner"
        self._is_master = type(environment.runner).__name__ == "MasterRunner"
        self._settings: Settings
        self._workload: Workload
        self._writer: RowWriter | None = None
        self._flusher: gevent.Greenlet | None = None
        self._dispatcher: Dispatcher | None = None
        self._dispatching: gevent.Greenlet | None = None
        self._users = 0
        self._in_flight = 0
        self._began_s = (0.0, 0.0)

    def start(self, **_: object) -> None:
        """Locust begins a test."""
        if self._is_master:
            return
        try:
            self._start()
        except LoadTestError as error:
            if not (self._is_worker or self._environment.parsed_options.headless):
                logger.error("%s", error)  # noqa: TRY400  # told to a person, who can mend it
                gevent.spawn(self._environment.runner.stop)
                return
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)

    def _start(self) -> None:
        options = vars(self._environment.parsed_options)
        if self._own_record:
            options["record"] = self._own_record
        self._settings = settings = Settings.parse(options)
        host = self._environment.host
        if not host:
            raise NoServer("--host is missing: the URL of the server to put load on")
        if self._is_worker:
            self._arrange(self._environment, settings)
        self._workload = settings.workload.pinned(self._pins(host))
        if settings.record is not None:
            self._writer = RowWriter(settings.record)
            self._flusher = gevent.spawn(self._flush_on)
        self._users = self._in_flight = 0
        self._began_s = (time.process_time(), time.perf_counter())
        if not self._is_worker:
            self._dispatch(0, 1)

    def _pins(self, host: str) -> dict[str, str]:
        settings = self._settings
        if all(hint_class.name != "bulk" for hint_class in settings.workload.classes):
            return {}
        variant = settings.bulk_variant or server.cheapest(server.variants(host, settings.api_key))
        return {"bulk": variant} if variant else {}

    def begin(self, *, msg: Any, **_: object) -> None:
        """The master tells a worker its share of the arrivals."""
        self._dispatch(msg.data["share"], msg.data["shares"])

    def _dispatch(self, share: int, shares: int) -> None:
        if self._settings.arrivals is None:
            return
        sender = self._sender()
        requests = self._workload.requests(self._settings.seed, share=share, shares=shares)

        def send(request: Request, intended_s: float) -> None:
            self._report(*sender.send(request, phase=self._settings.phase, intended_s=intended_s))

        self._dispatcher = Dispatcher(self._settings.arrivals[share::shares], requests, send)
        self._dispatching = gevent.spawn(self._dispatch_all, self._dispatcher)

    def _dispatch_all(self, dispatcher: Dispatcher) -> None:
        dispatcher.run()
        if self._is_worker:
            self._environment.runner.send_message("arrivals_done")
        else:
            gevent.spawn(finish, self._environment)

    def closed_loop(self, name: str) -> Callable[[], None]:
        """Make what a user of a class does again and again: one request over its own connection."""
        of_class = [c for c in self._workload.classes if c.name == name]
        self._users += 1
        seed = f"{self._settings.seed} {self._environment.runner.worker_index} {self._users}"
        requests = replace(self._workload, classes=tuple(of_class)).requests(seed)
        sender = self._sender(at_once=1)

        def send() -> None:
            self._in_flight += 1
            self._report(*sender.send(next(requests), phase=self._settings.phase))
            self._in_flight -= 1  # not reached when Locust ends the user first: the row is missing

        return send

    def _sender(self, **more: int) -> Sender:
        settings = self._settings
        return Sender(
            self._environment.host, api_key=settings.api_key, timeout_s=settings.timeout_s, **more
        )

    def _report(self, row: Row, size_bytes: int) -> None:
        if self._writer is not None:
            self._writer.write(row)
        told = f"{row.status}: {row.error}" if row.status else row.error
        self._environment.events.request.fire(
            request_type="POST",
            name=line(row),
            response_time=row.latency_ms,
            response_length=size_bytes,
            exception=RequestFailed(told) if row.failed else None,
            context={},
        )
        beside(self._environment.stats, row)

    def _flush_on(self) -> None:
        while self._writer is not None:
            self._writer.flush()
            gevent.sleep(FLUSH_S)

    def stop(self, **_: object) -> None:
        """Locust ends a test, or Ctrl-C does."""
        dropped = self._in_flight
        if self._dispatching is not None and self._dispatcher is not None:
            self._dispatching.kill()
            dropped += self._dispatcher.cut_off(grace_s=self._environment.stop_timeout)
            self._dispatching = self._dispatcher = None
        writer, self._writer = self._writer, None
        if writer is None or self._settings.record is None:
            return
        writer.close()
        cost = ClientCost(
            cpu_s=round(time.process_time() - self._began_s[0], 3),
            wall_s=round(time.perf_counter() - self._began_s[1], 3),
            dropped=dropped,
        )
        worker = self._environment.runner.worker_index if self._is_worker else None
        cost.write(self._settings.record, worker=worker)


def finish(environment: Any) -> None:
    """All arrivals are answered: end the test, and the program where nobody looks on."""
    if environment.parsed_options.headless:
        if environment.parsed_options.csv_prefix:
            gevent.sleep(TABLES_S)
        environment.runner.quit()
    else:
        environment.runner.stop()


class Master:
    """Shares the arrivals among the workers, and ends the test when all are through."""

    def __init__(self, environment: Any, settings: Settings) -> None:
        self._environment = environment
        self._settings = settings
        self._begun = False
        self._through: set[str] = set()

    def listen(self) -> None:
        """Take part in Locust's messages."""
        if self._settings.arrivals is None:
            return
        self._environment.events.test_start.add_listener(self._start)
        self._environment.events.spawning_complete.add_listener(self._share_out)
        self._environment.runner.register_message("arrivals_done", self._done)

    def _start(self, **_: object) -> None:
        self._begun = False
        self._through.clear()

    def _share_out(self, **_: object) -> None:
        if self._begun:
            return
        self._begun = True
        runner = self._environment.runner
        workers = [c.id for c in (*runner.clients.running, *runner.clients.spawning)]
        for share, worker in enumerate(workers):
            told = {"share": share, "shares": len(workers)}
            runner.send_message("arrivals_begin", told, client_id=worker)
        gevent.spawn(self._watch, set(workers))

    def _done(self, *, msg: Any, **_: object) -> None:
        self._through.add(msg.node_id)

    def _watch(self, workers: set[str]) -> None:
        """Wait for every worker that is still there."""
        runner = self._environment.runner
        while not workers <= self._through:
            gevent.sleep(WATCH_S)
            workers = {worker for worker in workers if worker in runner.clients}
        with suppress(gevent.GreenletExit):
            finish(self._environment)
