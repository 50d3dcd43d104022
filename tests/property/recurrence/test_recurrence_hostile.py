"""Hostile input: one kind of error, in bounded time, and never a guess."""

import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tickmesh.scheduler.core.recurrence import (
    CronError,
    Fold,
    Gap,
    Spec,
    describe,
    next_fire,
    parse_cron,
    preview,
    validate,
)
from tickmesh.scheduler.core.recurrence.limits import CRON_CHARACTERS_MAX

# The characters of the grammar, some that look like them, and some that break printers.
nearly_cron = st.text(
    st.sampled_from(list("0123456789*/-,#LWH()?@ \tMONJAEVRYDAILS=٣²５\0\n\ud800é"))
)
words = st.text(st.sampled_from(list("0123456789*/-,#LWH()?MON")), max_size=8)
fields = st.lists(words, min_size=4, max_size=8).map(" ".join)
texts = st.one_of(st.text(max_size=300), nearly_cron, fields)


@settings(max_examples=1_500, deadline=None)
@given(texts)
@example("0" * 10_000_000)
@example("1," * 127 + "1 * * * *")
@example("*/0 * * * *")
@example("0-59/1," * 30 + "0 * * * *")
@example("² * * * *")
@example("H(0-59)/59 H H H H H")
@example("99999999999999999999999999999999999999 * * * *")
def test_the_parser_answers_or_raises_its_own_error(text: str) -> None:
    error = refusal(text)
    if error is None:
        template = parse_cron(text)
        assert template.fields.minutes or template.hashes
    else:
        assert str(error)
        assert 1 <= error.column <= max(1, len(text))
        assert len(str(error)) < 2 * CRON_CHARACTERS_MAX + 200


def refusal(text: str) -> CronError | None:
    try:
        parse_cron(text)
    except CronError as error:
        return error
    return None


def test_the_most_expensive_text_is_cheap() -> None:
    heavy = ",".join(["0-59"] * 45) + " * * * *"
    assert len(heavy) <= CRON_CHARACTERS_MAX
    before = time.process_time()
    for _ in range(100):
        parse_cron.cache_clear()
        parse_cron(heavy)
    assert time.process_time() - before < 1.0  # 100 times some 0.4 ms


wild = st.one_of(st.integers(-(2**63), 2**64 - 1), st.integers(-10, 10**13))
pairs = st.lists(st.tuples(wild, wild), max_size=3).map(tuple)
wild_specs = st.builds(
    Spec,
    crons=st.lists(st.one_of(texts, st.just("0 3 * * *")), max_size=3).map(tuple),
    every=pairs,
    at_ms=st.lists(wild, max_size=3).map(tuple),
    zone=st.one_of(
        st.text(max_size=10), st.sampled_from(["UTC", "Europe/Berlin", "../UTC", "zones"])
    ),
    gap=st.sampled_from(list(Gap)),
    fold=st.sampled_from(list(Fold)),
    start_ms=st.none() | wild,
    end_ms=st.none() | wild,
    max_fires=st.none() | wild,
    jitter_ms=wild | st.just(0),
    excluded_dates=st.lists(st.one_of(st.text(max_size=12), st.just("02-30")), max_size=3).map(
        tuple
    ),
    excluded_windows=pairs,
)


@settings(max_examples=300, deadline=None)
@given(wild_specs, wild, wild)
def test_a_spec_is_either_refused_or_works_for_every_instant(
    spec: Spec, now: int, other: int
) -> None:
    problems = validate(spec, after_ms=now)
    assert all(problem.field and problem.message for problem in problems)
    if not problems:
        assert describe(spec)
        assert next_fire(spec, now) is not None
        next_fire(spec, other)
        preview(spec, now, 3)


simple = st.builds(
    Spec,
    crons=st.sampled_from([("0 3 * * *",), ("*/5 * * * * *", "H H * * *"), ("30 2 L * *",)]),
    every=st.sampled_from([(), ((60_000, -5),)]),
    zone=st.sampled_from(["UTC", "Asia/Tokyo", "Africa/Monrovia", "America/Adak"]),
    jitter_ms=st.sampled_from([0, 1_000]),
)


@settings(max_examples=200, deadline=None)
@given(simple, st.one_of(wild, st.integers(-5, 10**6), st.integers(10**13, 10**13 + 5 * 10**11)))
def test_a_valid_spec_answers_at_every_instant(spec: Spec, after: int) -> None:
    fire = next_fire(spec, after)
    assert fire is None or fire > after
    preview(spec, after, 2)


@pytest.mark.parametrize(
    "spec",
    [
        Spec(crons=("* * * * * *",), excluded_dates=tuple(
            f"{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 29))),
        Spec(crons=("30 2 * 3 7L",), zone="Europe/Berlin", gap=Gap.SKIP),
        Spec(crons=("0 0 29 2 */6", "0 0 31 2,4,6,9,11 *")),
        Spec(every=((1_000, 0),), excluded_windows=((0, 10_413_792_000_000),)),
        Spec(crons=("0 0 25 12 *",), excluded_dates=("12-25",)),
    ],
    ids=str,
)  # fmt: skip
def test_a_search_for_little_or_nothing_is_bounded(spec: Spec) -> None:
    before = time.process_time()
    next_fire(spec, 1_767_225_600_000)
    latest = time.process_time() - before
    assert latest < 1.0  # measured: 30 ms and less


def test_nothing_recurses_or_grows_with_the_text() -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(CronError):
        parse_cron("(" * (limit * 10))
