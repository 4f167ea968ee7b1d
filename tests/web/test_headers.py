"""What servers say about waiting and about their limits, read without ever raising."""

from __future__ import annotations

import datetime
import email.utils
import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from unwait.flow.rates import Quota
from unwait.web.headers import LONGEST, http_date, quotas, retry_after

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
NAMES = st.sampled_from(
    [
        "Retry-After",
        "retry-after-ms",
        "Date",
        "RateLimit",
        "RateLimit-Policy",
        "RateLimit-Limit",
        "RateLimit-Remaining",
        "RateLimit-Reset",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ]
)
# The first text of a process takes its tables a second to build.
property_test = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
ALMOST = st.text(alphabet='0123456789.-+:;,="= rtqhmsdµnTZGMTunovday', max_size=60)


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        " sun, 06 nov 1994 08:49:37 gmt ",
    ],
)
def test_the_three_formats_of_http_dates_name_the_same_moment(text: str) -> None:
    assert http_date(text, NOW) == 784111777


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "Sun, 32 Nov 1994 08:49:37 GMT",
        "Sun, 29 Feb 2023 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:49:37 GMT",
        "Sun, 06 Now 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 CET",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 0٦ Nov 1994 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
    ],
)
def test_what_is_no_http_date_is_none(text: str) -> None:
    assert http_date(text, NOW) is None


@pytest.mark.parametrize(
    ("year", "means"), [(0, 2000), (23, 2023), (73, 2073), (74, 1974), (75, 1975), (99, 1999)]
)
def test_a_year_of_two_digits_is_at_most_fifty_years_ahead(year: int, means: int) -> None:
    moment = datetime.datetime(means, 5, 6, 8, 49, 37, tzinfo=datetime.UTC).timestamp()
    assert http_date(f"Saturday, 06-May-{year:02} 08:49:37 GMT", NOW) == moment


def test_a_leap_second_is_the_second_after_it() -> None:
    assert http_date("Sat, 31 Dec 2016 23:59:60 GMT") == http_date("Sun, 01 Jan 2017 00:00:00 GMT")


@property_test
@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_every_moment_written_as_an_http_date_is_read_back(moment: int) -> None:
    assert http_date(email.utils.formatdate(moment, usegmt=True)) == moment
    assert http_date(time.asctime(time.gmtime(moment))) == moment


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("007", 7.0),
        ("-5", 0.0),
        ("99999999999", LONGEST),
        ("9" * 400, LONGEST),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0.0),
        ("Tue, 14 Nov 2043 22:13:10 GMT", LONGEST),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_bounds(text: str, seconds: float) -> None:
    assert retry_after({"Retry-After": text}, NOW) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "nan", "inf", "1e3", "0x10", "1,5", "5 minutes", "٣", "1" * 3000]
)
def test_a_retry_after_that_makes_no_sense_is_none(text: str) -> None:
    assert retry_after({"Retry-After": text}, NOW) is None


def test_without_the_header_there_is_no_delay() -> None:
    assert retry_after({"Content-Type": "text/plain", "Date": "Tue, 14 Nov 2023 22:13:20 GMT"}, NOW) is None


@pytest.mark.parametrize("skew", [-86400.0, -7.5, 0.0, 7.5, 86400.0])
def test_a_date_counts_from_the_server_s_own_clock(skew: float) -> None:
    headers = {"Retry-After": "Tue, 14 Nov 2023 22:14:00 GMT", "Date": "Tue, 14 Nov 2023 22:13:20 GMT"}
    assert retry_after(headers, NOW + skew) == 40.0


def test_a_date_that_cannot_be_read_leaves_the_wall_clock() -> None:
    headers = {"Retry-After": "Tue, 14 Nov 2023 22:14:00 GMT", "Date": "today"}
    assert retry_after(headers, NOW) == 40.0


def test_now_is_the_wall_clock_unless_it_is_given() -> None:
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    delay = retry_after({"Retry-After": later})
    assert delay is not None
    assert 50 < delay <= 60


def test_milliseconds_win_over_seconds_where_they_can_be_read() -> None:
    assert retry_after({"Retry-After": "2", "retry-after-ms": "1234"}, NOW) == 1.234
    assert retry_after({"Retry-After": "2", "x-ms-retry-after-ms": "10"}, NOW) == 0.01
    assert retry_after({"Retry-After": "2", "retry-after-ms": "oops"}, NOW) == 2.0


def test_names_of_headers_match_in_any_case_and_the_first_of_several_counts() -> None:
    headers = CIMultiDict([("RETRY-AFTER", "3"), ("Retry-After", "9")])
    assert retry_after(headers, NOW) == 3.0
    assert retry_after({"reTry-aFter": "3"}, NOW) == 3.0


REQUESTS = [
    pytest.param(
        {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4999", "X-RateLimit-Reset": "1700000060"},
        Quota(5000, 4999, 60.0),
        id="github, a moment",
    ),
    pytest.param(
        {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000060500"},
        Quota(5000, 0, 60.5),
        id="a moment in milliseconds",
    ),
    pytest.param(
        {"X-RateLimit-Limit": "5", "X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "1699999999.5"},
        Quota(5, 1, 0.0),
        id="a moment gone by",
    ),
    pytest.param(
        {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "12.5"},
        Quota(10, 3, 12.5),
        id="seconds",
    ),
    pytest.param(
        {"x-rate-limit-limit": "15", "x-rate-limit-remaining": "14", "x-rate-limit-reset": "1700000900"},
        Quota(15, 14, 900.0),
        id="with one more hyphen",
    ),
    pytest.param(
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1h2m3.5s",
        },
        Quota(60, 59, 3723.5),
        id="openai",
    ),
    pytest.param(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:52Z",
        },
        Quota(50, 49, 32.0),
        id="anthropic",
    ),
    pytest.param(
        {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "7", "RateLimit-Reset": "30"},
        Quota(100, 7, 30.0),
        id="three fields of the drafts",
    ),
    pytest.param(
        {"RateLimit": "limit=100, remaining=50, reset=5"}, Quota(100, 50, 5.0), id="one field, early draft"
    ),
    pytest.param({"RateLimit": '"default";r=50;t=30'}, Quota(None, 50, 30.0), id="one field, late draft"),
    pytest.param(
        {"RateLimit": '"default"; r=50; t=30', "RateLimit-Policy": '"default";q=100;w=60'},
        Quota(100, 50, 30.0),
        id="with its policy",
    ),
    pytest.param(
        {
            "RateLimit": '"day";r=900;t=40000, "a, \\"b\\";r=1";r=3;t=10;pk=:Zm9v:',
            "RateLimit-Policy": '"a, \\"b\\";r=1";q=5;w=10, "day";q=1000;w=86400',
        },
        Quota(5, 3, 10.0),
        id="several policies: the one with least left",
    ),
    pytest.param({"RateLimit": "a;r=3;t=1, b;r=9;t=2"}, Quota(None, 3, 1.0), id="in any order"),
    pytest.param({"x-ratelimit-remaining": "5"}, Quota(None, 5, None), id="what is not said is None"),
    pytest.param(
        {"RateLimit": "nonsense", "x-ratelimit-remaining": "5", "x-ratelimit-reset": "soon"},
        Quota(None, 5, None),
        id="what cannot be read is not said",
    ),
]


@pytest.mark.parametrize(("headers", "quota"), REQUESTS)
def test_the_quota_of_requests_is_read(headers: dict[str, str], quota: Quota) -> None:
    assert quotas(headers, NOW) == (quota, None)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("6m0s", 360.0),
        ("1s", 1.0),
        ("120ms", 0.12),
        ("1.5s", 1.5),
        ("17µs", 17e-6),
        ("2d", LONGEST),
        ("0s", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("2023-11-14T23:13:50+01:00", 30.0),
        ("2023-11-14T16:43:50.123-05:30", 30.0),
        ("2023-11-14 22:13:50Z", 30.0),
        ("1s and a bit", None),
        ("s", None),
        ("2023-13-14T22:13:50Z", None),
        ("", None),
    ],
)
def test_resets_are_durations_dates_and_numbers(reset: str, seconds: float | None) -> None:
    headers = {"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": reset}
    assert quotas(headers, NOW) == (None, Quota(None, 1, pytest.approx(seconds) if seconds else seconds))


def test_requests_and_tokens_are_read_side_by_side() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert quotas(headers, NOW) == (Quota(60, 59, 1.0), Quota(150000, 149984, 360.0))
    headers = {
        "anthropic-ratelimit-tokens-remaining": "80",
        "anthropic-ratelimit-input-tokens-remaining": "8",
    }
    assert quotas(headers, NOW) == (None, Quota(None, 80, None))


@pytest.mark.parametrize("skew", [-86400.0, 0.0, 86400.0])
def test_a_reset_that_is_a_moment_counts_from_the_server_s_clock(skew: float) -> None:
    headers = {
        "Date": "Tue, 14 Nov 2023 22:13:20 GMT",
        "X-RateLimit-Remaining": "1",
        "X-RateLimit-Reset": "1700000060",
    }
    assert quotas(headers, NOW + skew)[0] == Quota(None, 1, 60.0)


@pytest.mark.parametrize("remaining", ["-1", "", "many", "nan", "1" * 30, "٣", "5 of 10"])
def test_a_remainder_that_makes_no_sense_is_no_quota(remaining: str) -> None:
    headers = {"x-ratelimit-limit": "5", "x-ratelimit-remaining": remaining, "x-ratelimit-reset": "1"}
    assert quotas(headers, NOW) == (None, None)


def test_ordinary_headers_hold_no_quota() -> None:
    headers = {
        "Date": "Tue, 14 Nov 2023 22:13:20 GMT",
        "Content-Type": "text/plain",
        "x-request-limited": "no",
    }
    assert quotas(headers, NOW) == (None, None)


@property_test
@given(st.dictionaries(NAMES, ALMOST | st.text()), st.floats(min_value=0, max_value=4e9))
def test_no_text_raises_and_all_numbers_are_within_bounds(headers: dict[str, str], now: float) -> None:
    delay = retry_after(headers, now)
    assert delay is None or 0 <= delay <= LONGEST
    for quota in quotas(headers, now):
        if quota is not None:
            assert quota.remaining is not None
            assert 0 <= quota.remaining < math.inf
            assert quota.limit is None or 0 <= quota.limit < math.inf
            assert quota.reset is None or 0 <= quota.reset <= LONGEST


@pytest.mark.parametrize("unit", ["9", "1.", '"', ",", ";r=", "1h", "\\", " ", 'a="'])
def test_a_long_hostile_value_takes_no_time(unit: str) -> None:
    value = (unit * 2000)[:2000]
    started = time.process_time()
    for name in (
        "RateLimit",
        "RateLimit-Policy",
        "x-ratelimit-reset",
        "x-ratelimit-remaining",
        "Retry-After",
    ):
        quotas({"x-ratelimit-remaining": "1", name: value}, NOW)
        retry_after({name: value}, NOW)
    assert time.process_time() - started < 0.5
