"""Numbers as a person reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgc_distiller import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8600.4, "8,600"),
        (305.14, "305.1"),
        (69.244, "69.24"),
        (0.04123, "0.0412"),
        (0.0, "0.0000"),
        (-0.00012, "-1.2e-04"),
        (None, "not a number"),
    ],
)
def test_measured_values_have_about_four_digits(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.75, "75 %"),
        (0.7485, "74.85 %"),
        (1, "100 %"),
        (1e-6, "under 0.01 %"),
        (0.999999, "over 99.99 %"),
    ],
)
def test_shares_are_percent(share, text):
    assert wording.percent(share) == text


@given(st.floats(0, 1))
def test_only_all_and_nothing_are_written_as_such(share):
    assert (wording.percent(share) == "100 %") == (share == 1)
    assert (wording.percent(share) == "0 %") == (share == 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (272, "4 min 32 s"), (3599.7, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_times_have_two_units(seconds, text):
    assert wording.duration(seconds) == text


def test_ratios_are_given_only_where_they_say_something():
    def metric(value, name="FID[a]", low=None):
        return {"name": name, "value": value, "low": low}

    assert wording.ratio(metric(92.61), metric(69.24)) == "× 1.34"
    assert wording.ratio(metric(8600.0), metric(69.24)) == "× 124"
    assert wording.ratio(metric(2.0), metric(1.0, "FID[b]")) == ""
    assert wording.ratio(metric(2.0), metric(1.0, low=-0.1)) == ""
    assert wording.ratio(metric(2.0), metric(0.0)) == ""
    assert wording.ratio(metric(None), metric(1.0)) == ""
    assert wording.ratio(None, metric(1.0)) == ""


def test_names_without_their_protocol():
    assert wording.short_name({"name": "FID[digits; 200 images]"}) == "FID"
    assert wording.short_name({"name": "PSNR"}) == "PSNR"
