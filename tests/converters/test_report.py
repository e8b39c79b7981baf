"""The report: what it says about each variant, and that each figure is there and small."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from converters.claims import NOT_MEASURED, ONNX, TORCH, TORCH_GPU, Claim, Ratio, claims
from converters.provenance import COMMIT_VARIABLE, NO_COMMIT, Provenance, commit, provenance
from serve_app.errors import ArtifactError, ConversionError
from serve_app.manifest import File, GridCell, Manifest, TaskScore

pytest.importorskip("matplotlib", reason="matplotlib is not installed: no figures")

from converters.findings import Built, Findings
from converters.report import NUMBERS_NAME, write
from tests.browser import seen_by_a_browser

LONG_REASON = "fidelity 0.9588 misses the gate; vectors move with their batch-mates by 9.9e-02 " * 2
PNG_LIMIT_BYTES = 200_000
SPEED = {"fake-fp32": 0.30, "fake-bf16": 0.16, "fake-fp16": 0.9, "fake-int8": 0.1, "fake-slow": 0.2}
P1 = {
    "fake-fp32": 1.0,
    "fake-bf16": 0.99997,
    "fake-fp16": 1.0,
    "fake-int8": 0.99,
    "fake-slow": 0.98,
}


def _grid(scale: float, lengths: tuple[int, ...] = (8, 32, 128)) -> tuple[GridCell, ...]:
    return tuple(GridCell(texts=1, tokens=n, median_ms=1 + scale * n) for n in lengths)


@pytest.fixture
def findings(tmp_path: Path, write_artifact) -> Findings:
    """Five variants: three on the ladder, one without its GPU, one beaten on both counts."""
    manifests = []
    for name, cost_ms in SPEED.items():
        manifest = write_artifact(tmp_path / "artifacts" / name, p1=P1[name], cost_ms=cost_ms)
        profile = replace(manifest.profile, base_ms=1.0, grid=_grid(cost_ms))
        manifests.append(replace(manifest, profile=profile))
    ladder = ["fake-fp32", "fake-bf16", "fake-int8"]
    return Findings(
        provenance=Provenance(
            machine="a test machine, 2 cores",
            tools={"onnxruntime": "1.2.3"},
            commit="abc123",
            command="python -m converters report",
            made_at="2026-01-01T00:00:00+00:00",
        ),
        model="tiny <model>",
        manifests=tuple(manifests),
        off={"fake-fp16": "needs a GPU, and this cluster has none", "fake-slow": "beaten"},
        cross={a: {b: 1.0 if a == b else 0.951 for b in ladder} for a in ladder},
        tasks={"fake-int8": {"nDCG@10": TaskScore(points=79.5, fp32_points=79.8)}},
        yardsticks={TORCH: _grid(0.3), "fake-fp32": _grid(0.2)},
        claims=(Claim(claim="INT8 is small", variant="v", measured="3.9×", verdict="holds"),),
    )


def test_the_page_stands_alone_and_says_where_it_was_made(
    findings: Findings, tmp_path: Path
) -> None:
    """One HTML file with its figures inside, nothing fetched, names escaped, provenance on it."""
    page = write(findings, tmp_path / "report").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "tiny &lt;model&gt;" in page
    assert "<model>" not in page
    for part in ("a test machine, 2 cores", "onnxruntime 1.2.3", "abc123", "converters report"):
        assert part in page
    assert f"{', '.join(SPEED)}: a test; threads: 1; 2026-01-01, commit a test" in page
    assert "$" not in re.sub(r'src="[^"]*"', "", page)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_whole_page(findings: Findings, tmp_path: Path, width: int) -> None:
    """On a desk and on a phone nothing but tables and figures scrolls sideways; images load, no errors."""
    long = replace(
        findings,
        model="organisation/a-model-with-a-name-that-is-longer-than-a-telephone-is-wide",
        off=dict.fromkeys(findings.off, LONG_REASON),
        provenance=replace(findings.provenance, command=f"--out {'/folder' * 30}"),
    )
    page = write(long, tmp_path / "report")
    seen = seen_by_a_browser(page, width=width, profile=tmp_path)
    assert seen.inner == width
    assert seen.scroll <= width
    assert len(seen.images) == 4
    assert min(seen.images) > 0
    assert seen.console == []


def test_a_beaten_variant_is_named_with_its_winner(findings: Findings, tmp_path: Path) -> None:
    """The page says which variant of the ladder beats one that stays off it, and only then."""
    by_name = {m.variant: m for m in findings.manifests}
    assert findings.beaten_by(by_name["fake-slow"]) == "fake-bf16"
    assert findings.beaten_by(by_name["fake-int8"]) is None
    page = write(findings, tmp_path / "report").read_text(encoding="utf-8")
    assert "beaten by fake-bf16" in page


def test_each_figure_is_a_small_png(findings: Findings, tmp_path: Path) -> None:
    """Four PNGs, none of 200 kB."""
    write(findings, tmp_path / "report")
    files = sorted((tmp_path / "report").glob("*.png"))
    assert [f.stem for f in files] == ["cross", "fidelity", "latency", "size"]
    for file in files:
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < PNG_LIMIT_BYTES


def test_the_numbers_lie_beside_the_page(findings: Findings, tmp_path: Path) -> None:
    """The JSON has the cross-variant table, the claims and every manifest."""
    write(findings, tmp_path / "report")
    numbers = json.loads((tmp_path / "report" / NUMBERS_NAME).read_text(encoding="utf-8"))
    assert numbers["cross"]["fake-fp32"]["fake-int8"] == 0.951
    assert numbers["claims"][0]["measured"] == "3.9×"
    assert {m["variant"] for m in numbers["manifests"]} == set(SPEED)
    assert numbers["tasks"]["fake-int8"]["nDCG@10"] == {"points": 79.5, "fp32_points": 79.8}


def test_one_variant_is_enough(findings: Findings, tmp_path: Path) -> None:
    """A report about a single variant is drawn like any other."""
    only = findings.manifests[0]
    alone = replace(findings, manifests=(only,), off={}, cross={only.variant: {only.variant: 1.0}})
    assert write(alone, tmp_path / "report").exists()


def test_a_folder_that_cannot_be_written_is_one_line(findings: Findings, tmp_path: Path) -> None:
    """A report aimed at a file is refused by its path."""
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(ConversionError, match="taken: cannot be written"):
        write(findings, tmp_path / "taken")


def test_nothing_built_is_nothing_to_report(tmp_path: Path) -> None:
    """An empty artifacts folder is refused with the command that fills it."""
    with pytest.raises(ArtifactError, match="converters build"):
        Built.read(tmp_path)


def _named(manifest: Manifest, variant: str, precision: str, size_bytes: int) -> Manifest:
    files = {"model.onnx": File(sha256="0" * 64, size_bytes=size_bytes)}
    return replace(manifest, variant=variant, precision=precision, files=files)


def test_claims_compare_with_the_interleaved_run(findings: Findings) -> None:
    """Ratios come from the yardstick run: 3 times faster holds, 1.5 times smaller falls short."""
    any_one = findings.manifests[0]
    manifests = [
        _named(any_one, ONNX, "fp32", 90),
        _named(any_one, "onnx-int8", "int8", 60),
        _named(any_one, "torch-fp16", "fp16", 45),
    ]
    unit = _grid(0.0)
    times = {TORCH: 4.0, ONNX: 3.0, "onnx-int8": 1.0}
    grids = {n: tuple(replace(c, median_ms=ms) for c in unit) for n, ms in times.items()}
    smaller, faster, latency, half = claims(
        manifests, grids, weights={"onnx-int8": "float32 48 MB"}, gpu=False
    )
    assert (smaller.measured, smaller.verdict) == ("1.50× (float32 48 MB)", "falls short")
    assert faster.measured.startswith("3.00×")
    assert faster.verdict == "holds"
    assert latency.measured.startswith("25% lower")
    assert latency.verdict == "holds"
    assert (half.measured, half.verdict) == ("no GPU here", NOT_MEASURED)
    on_gpu = grids | {TORCH_GPU: grids[TORCH], "torch-fp16": grids["onnx-int8"]}
    halved = grids | {"onnx-int8": tuple(replace(c, median_ms=0.5) for c in unit)}
    assert claims(manifests, halved, weights={}, gpu=False)[1].verdict == "exceeds"
    assert claims(manifests, on_gpu, weights={}, gpu=True)[-1].verdict == "holds"


def test_a_claim_without_its_yardstick_is_not_measured(findings: Findings) -> None:
    """Where the variant to compare with was not run, a claim says so instead of a number."""
    int8 = _named(findings.manifests[0], "onnx-int8", "int8", 60)
    found = claims([int8], {}, weights={}, gpu=False)
    assert {c.verdict for c in found} == {NOT_MEASURED}
    assert all("%" not in c.measured and "×" not in c.measured for c in found)


def test_a_ratio_takes_the_shared_batches_only() -> None:
    """Cells that one of two engines did not run leave the ratio alone."""
    slow, fast = _grid(0.0, (8, 32)), _grid(0.0, (8, 64))
    assert Ratio.of(slow, fast) == Ratio(1.0, 1.0, 1.0)


def test_the_commit_is_known_or_said_to_be_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a checkout the commit is not invented, and may be told by the environment."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    assert commit(tmp_path) == NO_COMMIT
    monkeypatch.setenv(COMMIT_VARIABLE, "0123abc")
    assert commit(tmp_path) == "0123abc"
    monkeypatch.delenv(COMMIT_VARIABLE)
    here = provenance()
    assert here.commit == NO_COMMIT or re.match(r"[0-9a-f]{12}", here.commit)
    assert "cores" in here.machine
    assert "numpy" in here.tools
