"""A whole run: survey the idle server, find the knee, put every phase on it, write the report."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from converters.provenance import provenance
from loadtests.errors import BadFile, BadOption, LoadTestError
from loadtests.feasibility import NAME as FEASIBILITY
from loadtests.knee import Knee, collapsed, curve, find_knee
from loadtests.local_server import Wanted, serving
from loadtests.measures import measure
from loadtests.phase_runner import Driver
from loadtests.phases import (
    PROFILES,
    TRACE_FILE,
    WARM_PER_S,
    Phase,
    Profile,
    after_the_ramp,
    first_ramp,
    next_ramp,
    warm_up,
)
from loadtests.progress_line import ProgressLine, left, numbers
from loadtests.records import Columns, read_columns, to_columns
from loadtests.run_folder import REQUESTS, SAMPLES, About, Ran, new_folder
from loadtests.sampling import Sampler, server_process
from loadtests.served import Server
from loadtests.slo import Slo
from loadtests.survey import ramp_top, survey
from loadtests.workload import Texts, Workload, parse_mix

SETTLE_S = 10.0
TOOLS = ("locust", "ray", "onnxruntime", "openvino", "torch", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    host: str
    profile: str
    out: Path
    slos: tuple[Slo, ...] = ()
    mix: str = ""
    texts: Path | None = None
    trace: Path | None = None
    seed: int = 0
    serve: Path | None = None  # artifacts to serve where no server runs
    variants: str | None = None  # of those, by name; None: the ladder


def run(options: Options) -> About:
    """Run all phases of a profile; Ctrl-C ends it early, and what ran is kept.

    Returns:
        What was done; it is in the folder too.

    Raises:
        LoadTestError: an option cannot be taken, or there is no server.
        KeyboardInterrupt: before any phase had begun.
    """
    server, line = Server(options.host), ProgressLine()
    workload = _workload(options)
    if options.trace is not None and not options.trace.is_file():
        raise BadFile(f"--trace={options.trace}: no such file")
    if options.variants is not None and options.serve is None:
        raise BadOption(
            "--variants", options.variants, "what is served is chosen with --serve only"
        )
    folder = new_folder(options.out)
    wanted = Wanted(options.serve, variants=options.variants) if options.serve else None
    with serving(server, wanted=wanted, folder=folder, say=line.done):
        about = _begin(options, server, workload, line)
        with Sampler(server, folder / SAMPLES, root=server_process(server.host)) as sampler:
            matrix = Matrix(options, server, sampler, about, line)
            try:
                matrix.run()
            except KeyboardInterrupt:
                if not matrix.about.phases and not (folder / REQUESTS).exists():
                    raise
                matrix.about = replace(matrix.about, interrupted=True)
                line.done("interrupted: reporting what ran")
            except LoadTestError as error:
                if not matrix.about.phases:
                    raise
                matrix.about = replace(matrix.about, stopped_by=str(error))
                line.done(f"stopped: {error}")
            matrix.about.write(folder)
    return matrix.about


def _workload(options: Options) -> Workload:
    texts = Texts.built_in() if options.texts is None else Texts.from_file(options.texts)
    return Workload(parse_mix(options.mix), texts)


def _begin(options: Options, server: Server, workload: Workload, line: ProgressLine) -> About:
    served = server.variants()
    cheapest = min(served, key=lambda v: v.cost_ms).variant
    pinned = workload.pinned({"bulk": cheapest})
    found = survey(server, pinned, now=line.now)
    found.write(options.out)
    about = About(
        provenance=provenance(packages=TOOLS),
        host=options.host,
        profile=options.profile,
        main_phase=PROFILES[options.profile].main_phase,
        seed=options.seed,
        mix=", ".join(f"{c.name} {c.weight:g}" for c in workload.classes),
        served=tuple(served),
        tokens_per_request=found.tokens_per_request(pinned),
        feasible=found.shares(pinned.texts),
        token_limits=dict(found.token_limits),
        estimated_texts=found.estimated_texts,
        slos=tuple(map(str, options.slos)),
    )
    about.write(options.out)
    return about


class Matrix:
    """The phases of one run, one after the other."""

    def __init__(
        self, options: Options, server: Server, sampler: Sampler, about: About, line: ProgressLine
    ) -> None:
        self._options = options
        self._server = server
        self._sampler = sampler
        self._line = line
        self._profile = PROFILES[options.profile]
        self._driver = Driver(
            host=options.host, folder=options.out, seed=options.seed, options=_flags(options)
        )
        self.about = about

    def run(self) -> None:
        """Warm up, find the knee, and go through all that is scaled to it."""
        self._phase(warm_up(self._profile))
        knee = self._find_knee(self._profile)
        self._line.done(f"knee: {knee}")
        per_s = max(knee.load_per_s, WARM_PER_S)
        variants = [v.variant for v in self.about.served]
        for phase in after_the_ramp(
            self._profile, knee_per_s=per_s, variants=variants, trace=_trace(self._options)
        ):
            self._phase(phase)

    def _find_knee(self, profile: Profile) -> Knee:
        top = ramp_top(self.about.served, self.about.tokens_per_request)
        phase: Phase | None = first_ramp(profile, to_per_s=top)
        attempt = 1
        while phase is not None:
            ran = self._phase(phase, may_collapse=True)
            found = curve(_rows_of(self._options.out, ran.name))
            if found is None:
                raise LoadTestError(f"phase {ran.name} was too short to find a knee in")
            knee = find_knee(found)
            attempt += 1
            phase = next_ramp(profile, knee, attempt=attempt)
        return knee

    def _phase(self, phase: Phase, *, may_collapse: bool = False) -> Ran:
        self._settle()
        title = f"{len(self.about.phases) + 1:>2} {phase.name}"

        def look(recent: Columns, passed_s: float) -> bool:
            # Only this phase's rows; those still under way are no misses yet.
            rest = left(phase.duration_s - passed_s)
            now = measure(_of(recent, phase.name))
            self._line.now(f"{title}, {rest} left: {numbers(now)}")
            return may_collapse and collapsed(_of(recent, phase.name), now_s=time.time())

        started_s = time.time()
        try:
            ran = self._driver.run(phase, watch=self._sampler.watch_client, look=look)
        except KeyboardInterrupt:
            self._keep(phase, started_s)
            raise
        self.about = self.about.with_phase(ran)
        self.about.write(self._options.out)
        whole = measure(_rows_of(self._options.out, phase.name))
        self._line.done(f"{title}: {numbers(whole)}")
        return ran

    def _keep(self, phase: Phase, started_s: float) -> None:
        """A phase that was cut short is reported as far as it came."""
        if len(_rows_of(self._options.out, phase.name)):
            self.about = self.about.with_phase(self._driver.ran(phase, started_s=started_s))

    def _settle(self) -> None:
        """Let the server finish what the last phase left, for some seconds at most."""
        latest_s = time.monotonic() + SETTLE_S
        while time.monotonic() < latest_s:
            with suppress(LoadTestError):
                if not any(v.queued_tokens or v.inflight_tokens for v in self._server.variants()):
                    return
            time.sleep(0.2)


def _flags(options: Options) -> tuple[str, ...]:
    mix = ("--mix", options.mix) if options.mix else ()
    texts = ("--texts", str(options.texts)) if options.texts else ()
    return (*mix, *texts, "--feasibility", str(options.out / FEASIBILITY))


def _trace(options: Options) -> Path | None:
    if options.trace is not None:
        return options.trace
    return TRACE_FILE if TRACE_FILE.is_file() else None


def _rows_of(folder: Path, phase: str) -> Columns:
    file = folder / REQUESTS
    return _of(read_columns(file), phase) if file.exists() else to_columns([])


def _of(rows: Columns, phase: str) -> Columns:
    return rows.where(rows.phase == phase) if len(rows) else rows
