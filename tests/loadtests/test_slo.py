"""Objectives: what is understood, what is refused, and what is met."""

from dataclasses import replace

import pytest

from loadtests.errors import BadOption
from loadtests.measures import Measures, measure
from loadtests.records import to_columns
from loadtests.slo import METRICS, check, parse_slo
from tests.loadtests.synthetic import rows


def _measured(**options: object) -> Measures:
    found = measure(
        to_columns(rows("x", offered=lambda _: 50.0, **options)),  # type: ignore[arg-type]
    )
    assert found is not None
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_measured(metric: str) -> None:
    """Each metric that an objective may name is a number of a phase."""
    (verdict,) = check([parse_slo(f"x:{metric}>=0")], {"x": _measured()}, main_phase="x")
    assert verdict.met
    assert verdict.value is not None


def test_an_objective_is_of_the_main_phase_or_of_the_one_it_names() -> None:
    """Without a phase the main one counts; errors count over all."""
    bad = _measured(missed=lambda _s, rng: rng.random() < 0.5)
    phases = {"routed-70": _measured(), "ramp": bad}
    main, named = check(
        [parse_slo("within_budget >= 0.99"), parse_slo("ramp:within_budget>=0.99")],
        phases,
        main_phase="routed-70",
    )
    assert (main.met, main.phase) == (True, "routed-70")
    assert (named.met, named.phase) == (False, "ramp")
    assert "MISSED: ramp:within_budget>=0.99 in ramp: 0.5" in str(named)
    (errors,) = check([parse_slo("errors<=0")], phases, main_phase="routed-70")
    assert (errors.met, errors.value) == (True, 0)
    phases["ramp"] = replace(bad, errors=3)
    (errors,) = check([parse_slo("errors<=0")], phases, main_phase="routed-70")
    assert (errors.met, errors.value) == (False, 3)


def test_what_was_not_measured_is_not_met() -> None:
    """A phase that did not run keeps no promise."""
    (verdict,) = check([parse_slo("soak:p95_ms<=50")], {}, main_phase="soak")
    assert not verdict.met
    assert "not measured" in str(verdict)
    assert not check([parse_slo("errors<=0")], {}, main_phase="soak")[0].met


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("within_budget", "must be METRIC>=VALUE"),
        ("within_budget=0.99", "must be METRIC>=VALUE"),
        ("speed>=1", "no metric speed; there are within_budget"),
        ("p95_ms<=fast", "fast is no number"),
        ("p95_ms<=nan", "nan is no number"),
        ("", "must be METRIC>=VALUE"),
    ],
)
def test_a_wrong_objective_is_refused_by_its_text(text: str, why: str) -> None:
    """The line names the option, the value and what is wrong with it."""
    with pytest.raises(BadOption, match=f"^--slo={text}: .*{why}"):
        parse_slo(text)
