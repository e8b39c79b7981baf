"""The load report: what it says of a run whose numbers are known, and that a browser shows it."""

import csv
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: no figures")

from loadtests.compare import compare
from loadtests.errors import BadFile
from loadtests.report import write
from tests.browser import seen_by_a_browser
from tests.loadtests.synthetic import PLAN, VARIANTS, write_run

PNG_LIMIT_BYTES = 200_000
FIGURES = ["budgets", "memory", "mix", "over_time", "replicas", "routed", "saturation"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run with a knee at 100 requests/s."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, slos=("within_budget>=0.5", "throughput>=1000"))
    write(folder)
    return folder


def test_the_page_stands_alone_and_names_the_knee(run: Path) -> None:
    """One HTML file, figures inside, nothing fetched, names escaped; knee, objectives, provenance on it."""
    page = (run / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "&lt;host&gt;" in page
    assert "<host>" not in page
    numbers = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert numbers["knee"]["load_per_s"] == pytest.approx(100, rel=0.2)
    assert f"the knee is at {numbers['knee']['load_per_s']:.0f} requests/s" in page
    assert [o["met"] for o in numbers["objectives"]] == [True, False]
    assert "MISSED" in page
    assert "feasible: tight 72% (up to 96 tokens), interactive 100%, relaxed 100%.</p>" in page
    for part in ("a test machine, 2 cores", "locust 1.2.3", "abc123", "python -m loadtests run"):
        assert part in page
    assert "$" not in re.sub(r'src="[^"]*"', "", page)
    assert 'class="warning"' not in page


def test_each_figure_is_a_small_png(run: Path) -> None:
    """Seven PNGs, none of 200 kB."""
    files = sorted(run.glob("*.png"))
    assert [f.stem for f in files] == FIGURES
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    assert max(f.stat().st_size for f in files) < PNG_LIMIT_BYTES


def test_the_tables_lie_beside_the_page(run: Path) -> None:
    """Phases, the saturation curve and the timeline are CSV with a row for each."""
    tables = {
        name: list(csv.DictReader((run / f"{name}.csv").open(encoding="utf-8")))
        for name in ("phases", "saturation", "over_time")
    }
    assert [row["phase"] for row in tables["phases"]] == list(PLAN)
    assert len(tables["saturation"]) == pytest.approx(PLAN["ramp"][0], abs=1)
    answers = sum(float(row["fake-int8_per_s"]) for row in tables["over_time"])
    assert answers > 0


def test_routed_stands_beside_each_pinned_variant(run: Path) -> None:
    """The page compares routed with all-one-variant at both loads, and says what routing bought."""
    page = (run / "index.html").read_text(encoding="utf-8")
    for variant in VARIANTS:
        assert page.count(f"<td class=name>all {variant}</td>") == 2
    assert "Always the cheapest (fake-int8)" in page
    assert "Always the best (fake-fp32)" in page


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_whole_page(run: Path, tmp_path: Path, width: int) -> None:
    """On a desk and on a phone nothing but tables and figures scrolls sideways; images load, no errors."""
    seen = seen_by_a_browser(run / "index.html", width=width, profile=tmp_path)
    assert seen.inner == width
    assert seen.scroll <= width
    assert len(seen.images) == len(FIGURES)
    assert min(seen.images) > 0
    assert seen.console == []


@pytest.mark.parametrize("phases", range(1, len(PLAN) + 1, 3))
def test_a_run_that_ended_early_is_reported(tmp_path: Path, phases: int) -> None:
    """Whatever ran before Ctrl-C is on the page; what did not is not missed."""
    write_run(tmp_path, phases=phases)
    findings = write(tmp_path)
    assert list(findings.measures) == list(PLAN)[:phases]
    assert (findings.knee is not None) == (phases > 1)


def test_a_busy_client_is_a_warning(tmp_path: Path) -> None:
    """A client above 80 % of a core may be the bottleneck, and the page begins with it."""
    write_run(tmp_path, phases=3, client=0.93)
    (warning,) = write(tmp_path).warnings
    assert "more than 80% of a core in warm-up 93%, ramp 93%" in warning
    assert warning in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_memory_growth_is_told(run: Path) -> None:
    """The median of the last quarter against the first, after the warm-up, of the soak."""
    growth = json.loads((run / "report.json").read_text(encoding="utf-8"))["memory_growth"]
    assert growth == pytest.approx(1e5 * 30 / 1.9e9, rel=0.2)


def test_two_runs_are_compared_phase_by_phase(run: Path, tmp_path: Path) -> None:
    """The table has both values and the change; a phase that only one has is there too."""
    write_run(tmp_path, phases=4)
    table = compare(run, tmp_path)
    (within,) = re.findall(r"^routed-70 +offered/s +(\S+) +(\S+) +(\S+)$", table, re.MULTILINE)
    assert within[0] == within[1]
    assert within[2] == "+0.0"
    assert re.search(r"^bursty +offered/s +[\d.]+ +–$", table, re.MULTILINE)


def test_no_run_is_one_line(tmp_path: Path) -> None:
    """A folder without a run, one of another form or version, and one without a request are refused by name."""
    with pytest.raises(BadFile, match=f"{tmp_path}: no run is there"):
        write(tmp_path)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadFile, match=r"run\.json is of another form"):
        compare(tmp_path, tmp_path)
    write_run(tmp_path / "old", phases=1)
    told = json.loads((tmp_path / "old" / "run.json").read_text(encoding="utf-8"))
    del told["token_limits"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(BadFile, match=r"run\.json is of another form: it has no token_limits$"):
        write(tmp_path / "old")
    write_run(tmp_path / "empty", phases=0)
    with pytest.raises(BadFile, match="no request was made"):
        write(tmp_path / "empty")
