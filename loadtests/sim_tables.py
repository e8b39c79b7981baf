"""The simulator's tables, in Markdown: means over seeds with half their 95 % confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from loadtests.sim_results import Mean, Result
from loadtests.sim_runs import BOUND, ROUTED, Done
from loadtests.simulate import ABLATIONS, METASTABLE, PROFILE_ERROR, SPIKE_S, Scenario, Simulated

HEADS = (
    "policy", "attainment %", "of bound", "normalised fidelity", "of bound", "rejected %", "late %",
    "worst 10 s %", "variants on time %",
)  # fmt: skip
MISTOLD = f"profile {PROFILE_ERROR:g}× wrong"


def tables(simulated: Simulated) -> str:
    """All of them, each under its title."""
    parts = [_capacity(simulated)]
    for scenario in simulated.scenarios:
        parts += _scenario(simulated, scenario)
    parts += _calibration(simulated)
    parts += _metastability(simulated)
    return "\n\n".join(parts) + "\n"


def of(simulated: Simulated, scenario: str, name: str) -> list[Done]:
    """One row's runs, a seed each."""
    return [d for d in simulated.done if (d.run.scenario, d.run.name) == (scenario, name)]


def names(simulated: Simulated, scenario: str) -> list[str]:
    """What was run of a scenario, in order."""
    return list(dict.fromkeys(d.run.name for d in simulated.done if d.run.scenario == scenario))


def policies(simulated: Simulated, scenario: str) -> list[str]:
    """The policies among them, without the ablations of ours."""
    return [name for name in names(simulated, scenario) if name not in ABLATIONS]


def _capacity(simulated: Simulated) -> str:
    capacity, machine = simulated.capacity, simulated.measured.machine
    rows = [
        (
            v.variant,
            f"{v.fidelity:.6f}",
            f"{v.profile.base_ms:.2f}",
            f"{1000 * v.profile.per_token_ms:.1f}",
            f"{v.profile.spread:.2f}",
            str(v.profile.batch_tokens),
            f"{capacity.by_variant[v.variant]:.0f}",
        )
        for v in machine.variants
    ]
    heads = (
        "variant", "fidelity", "batch ms", "ms per 1000 tokens", "spread", "batch tokens",
        "alone sustains /s",
    )  # fmt: skip
    about = (
        f"{simulated.measured.about} {machine.cores:g} cores; router {machine.router_ms:g} ms a "
        f"request ({machine.unread_ms:g} turned away unread) and {machine.call_ms:g} ms a call, replica {machine.replica_call_ms:g} ms a call, "
        f"hop {machine.hop_ms:g} ms. C_best {capacity.best:.0f}/s, C_cheap {capacity.cheap:.0f}/s. "
        f"Seeds {', '.join(map(str, simulated.options.seeds))}."
    )
    return f"## The machine\n\n{about}\n\n{markdown(heads, rows)}"


def _scenario(simulated: Simulated, scenario: Scenario) -> Iterator[str]:
    rate, lasts_s = scenario.rate(simulated.capacity), simulated.options.lasts(scenario)
    yield f"## {scenario.title} ({rate:.0f}/s, {lasts_s:.0f} s)"
    yield markdown(HEADS, _rows(simulated, scenario.name, policies(simulated, scenario.name)))
    ablated = [name for name in names(simulated, scenario.name) if name in ABLATIONS]
    if ablated:
        yield "Without one part of it each, or under harder terms:"
        yield markdown(HEADS, _rows(simulated, scenario.name, [ROUTED, *ablated]))


def _rows(simulated: Simulated, scenario: str, chosen: Sequence[str]) -> Iterator[tuple[str, ...]]:
    bound = of(simulated, scenario, BOUND)
    for name in chosen:
        done = of(simulated, scenario, name)
        yield (
            name,
            _percent([d.attainment for d in done]),
            _ratio(done, bound, lambda d: d.attainment),
            mean([d.fidelity for d in done], 3),
            _ratio(done, bound, lambda d: d.fidelity),
            *_of_results([d.result for d in done if d.result is not None]),
        )


def _of_results(results: Sequence[Result]) -> tuple[str, str, str, str]:
    if not results:
        return "", "", "", ""
    worst = [r.worst_window for r in results if r.worst_window is not None]
    shares = " / ".join(
        f"{100 * sum(r.variants[v] for r in results) / len(results):.0f}"
        for v in results[0].variants
    )
    return (
        _percent([r.rejected for r in results]),
        _percent([r.late + r.hung_up for r in results]),
        f"{100 * min(worst):.1f}" if worst else "",
        shares,
    )


def _ratio(done: Sequence[Done], bound: Sequence[Done], of_one: Callable[[Done], float]) -> str:
    """Of the bound on the same seeds' requests."""
    by_seed = {d.run.seed: of_one(d) for d in bound}
    shares = [of_one(d) / by_seed[d.run.seed] for d in done if by_seed.get(d.run.seed)]
    return f"{sum(shares) / len(shares):.3f}" if shares else ""


def calibrated(done: Sequence[Done]) -> dict[str, tuple[int, int]]:
    """By variant, over all bins and seeds: how many p95 forecasts held, and of how many."""
    found: dict[str, tuple[int, int]] = {}
    for cell in (c for d in done if d.result for c in d.result.calibration):
        within, count = found.get(cell.variant, (0, 0))
        found[cell.variant] = (within + cell.within, count + cell.of)
    return found


def _calibration(simulated: Simulated) -> Iterator[str]:
    yield "## Calibration: P(actual ≤ p95 forecast), of requests not let in at risk"
    variants = [v.variant for v in simulated.measured.machine.variants]
    rows = []
    for scenario in simulated.scenarios:
        for name in (ROUTED, MISTOLD):
            found = calibrated(of(simulated, scenario.name, name))
            if found:
                cells = [_held(found.get(v)) for v in variants]
                rows.append((f"{scenario.name}, {name}", *cells))
    yield markdown(("run", *variants), rows)


def _held(counts: tuple[int, int] | None) -> str:
    return f"{counts[0] / counts[1]:.3f} ({counts[1]})" if counts else ""


def _metastability(simulated: Simulated) -> Iterator[str]:
    chosen = names(simulated, METASTABLE)
    if not chosen:
        return
    yield (
        f"## Metastability: half of C_cheap, from {SPIKE_S[0]:.0f} to {SPIKE_S[1]:.0f} s twice of it, "
        "clients ask again up to 3 times"
    )
    rows = []
    for name in chosen:
        done = of(simulated, METASTABLE, name)
        results = [d.result for d in done if d.result is not None]
        rows.append(
            (
                name,
                " / ".join("never" if d.recovered_s is None else str(d.recovered_s) for d in done),
                _percent([r.attainment for r in results]),
                " / ".join(str(r.retries) for r in results),
                " / ".join(str(r.retries_on_time) for r in results),
            )
        )
    heads = ("policy", "s until ≥ 99 % stays, by seed", "attainment %", "asked again", "in time")
    yield markdown(heads, rows)
    yield "In time, %, of first attempts, mean of the seeds: before, within, and in each second after:"
    shares = [
        (name, *_around([d.around_spike for d in of(simulated, METASTABLE, name)]))
        for name in chosen
    ]
    after = [str(second) for second in range(1, max(map(len, shares)) - 2)]
    yield markdown(("policy", "before", "within", *after), shares)


def _around(seeds: Sequence[tuple[float, ...]]) -> Iterator[str]:
    for values in zip(*seeds, strict=True):
        yield f"{100 * sum(values) / len(values):.0f}"


def mean(values: Sequence[float], places: int) -> str:
    """`0.912 ± 0.004`."""
    found = Mean.of(values)
    half = "" if found.half is None else f" ± {found.half:.{places}f}"
    return f"{found.value:.{places}f}{half}"


def _percent(values: Sequence[float]) -> str:
    return mean([100 * value for value in values], 2)


def markdown(heads: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
