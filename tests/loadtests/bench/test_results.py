"""What tables and targets say of samples."""

import json
from pathlib import Path

import pytest

from converters.provenance import Provenance
from loadtests.bench.results import Results, cpu_s_per_1000, texts_per_s, write_results
from loadtests.bench.samples import Cell, Failed, Measured, Row, Sample, Standing
from loadtests.bench.tables import shown, standing_table, workload_table, write_tables
from loadtests.bench.targets import Target, bench_targets, stock_ratios

MADE = Provenance(machine="m", tools={}, commit="c", command="x", made_at="now")
QUERY16, QUERY1, ENGINE = Cell("query", 16), Cell("query", 1), Cell("query", 0)


def _measured(number: int, row: Row, cell: Cell, cpu_s: float, **more: object) -> Measured:
    sample = Sample(**({"texts": 1000, "wall_s": 2.0, "cpu_s": cpu_s} | more))
    return Measured(round=number, row=row, cell=cell, sample=sample)


@pytest.fixture(name="results")
def fixture_results() -> Results:
    """Two rounds, the second at half the pace."""
    found: list[Measured | Standing] = []
    for number, pace in ((0, 1.0), (1, 2.0)):
        for mode, cpu_s in (("one a call, tokenising", 2.0), ("sorted, tokenising", 1.0)):
            found.append(_measured(number, Row("engine", "v", mode), ENGINE, cpu_s * pace))
        ours, bare = Row("ours", "v"), Row("bare", "v")
        found += [
            _measured(number, ours, QUERY16, 3.0 * pace, failures={"429": 2}),
            _measured(number, bare, QUERY16, 2.0 * pace, wall_s=1.6),
            _measured(number, ours, QUERY1, 1.0, p50_ms=9.0 * pace),
            _measured(number, bare, QUERY1, 1.0, p50_ms=5.0 * pace),
            _measured(number, Row("stock", "v"), QUERY16, 15.0 * pace),
            Standing(round=number, subject="ours", ready_s=9, idle_cores=0.07, prepared_s=2),
        ]
    return Results.of(found)


def test_targets_are_ratios_of_rounds(results: Results) -> None:
    """CPU over the engine's of the same variant, throughput over the bare server's, p50 beside it."""
    cells = {t.what: t.cells[1:] for t in bench_targets(results, ["v"])}
    query = "v: CPU per text ÷ engine, {}, tokenising; query × 16"
    assert cells[query.format("one text a call")] == ("≤ 1.5", "1.5", "yes")
    assert cells[query.format("sorted batches")] == ("≤ 1.5", "3", "no")
    assert cells["v: texts/s ÷ bare uvicorn; query × 16"] == ("≥ 0.9", "0.8", "no")
    assert cells["v: p50 − bare uvicorn's; query × 1"] == ("≤ 2.5 ms", "6 ms", "no")
    assert cells["idle CPU of the whole cluster, of one core"] == ("≤ 8 %", "7 %", "yes")
    assert cells["`make serve` to ready, artifacts built"] == ("≤ 15 s", "11 s", "yes")
    mixed = "v: CPU per text ÷ engine, sorted batches, tokenising; mixed32 × 16"
    assert cells[mixed] == ("≤ 1.08", "not measured", "–")
    assert stock_ratios(results) == [("stock v, query × 16", 5.0)]


def test_a_bound_itself_is_met() -> None:
    """At most and at least include their number."""
    assert Target("", "≤", 1.5, 1.5).met
    assert Target("", "≥", 1.5, 1.5).met
    assert Target("", "≥", 1.5, 1.4).met is False


def test_medians_are_over_rounds(results: Results) -> None:
    """Texts a second and CPU seconds per 1000 texts of both rounds."""
    ours = Row("ours", "v")
    assert results.median(ours, QUERY16, cpu_s_per_1000) == 4.5
    assert results.median(ours, QUERY16, texts_per_s) == 500
    assert results.median(Row("peer"), QUERY16, texts_per_s) is None


def test_a_table_has_a_line_for_each_row_and_number_of_clients(results: Results) -> None:
    """Engines first, then by clients; failures of all rounds are added up."""
    lines = workload_table(results, "query").splitlines()[2:]
    assert len(lines) == 7
    assert lines[0].startswith("| engine v one a call, tokenising |  | 500 | 3 |")
    assert "| ours v | 16 | 500 | 4.5 | 3 |  |  |  | 4 × 429 |" in lines
    assert "| ours | 2 | 9 | 7 |" in standing_table(results).splitlines()


def test_nothing_answered_is_no_number() -> None:
    """No texts: neither a throughput of 0 nor a division by it."""
    sample = Sample(texts=0, wall_s=1, cpu_s=1)
    assert sample.texts_per_s is None
    assert sample.cpu_s_per_1000 is None


def test_files_hold_all_that_was_measured(results: Results, tmp_path: Path) -> None:
    """JSON that reads back, with commit and command, and tables that name who failed."""
    results.add(Failed("peer", "no wheel"))
    write_results(results, tmp_path, made=MADE, about={"rounds": 2})
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["provenance"]["command"] == "x"
    assert [len(found[name]) for name in ("measured", "standings", "failed")] == [14, 2, 1]
    file = write_tables(tmp_path, results, [], title="T", made=MADE, notes=("n",))
    assert "peer was not measured: no wheel" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.01234, "0.0123"), (1.5, "1.5"), (12.345, "12.3"), (1234.5, "1234")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    """Three digits that count, and none of an exponent."""
    assert shown(value) == text
