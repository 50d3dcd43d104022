"""Laws that every spec obeys: the questions agree with one another, and memory changes nothing."""

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from recurrence_oracle import crons

from tickmesh.scheduler.core.recurrence import (
    Fold,
    Gap,
    Spec,
    due_ms,
    latest_fire,
    next_fire,
    preview,
    validate,
)
from tickmesh.scheduler.core.recurrence.cron import parse
from tickmesh.scheduler.core.recurrence.limits import COUNT_MAX
from tickmesh.scheduler.core.recurrence.program import Program
from tickmesh.scheduler.core.recurrence.walker import _walker

ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Apia")
instants = st.integers(1_300_000_000_000, 1_900_000_000_000)
"""2011 to 2030."""


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    texts = draw(st.lists(crons(any_day=True).map(lambda cron: cron.text), max_size=2))
    if draw(st.booleans()):
        texts.append(draw(crons()).text)
    if draw(st.booleans()):
        texts.append(draw(st.sampled_from(["H H * * *", "H/20 2 * * *", "0 H(0-3) * * H"])))
    periods = st.tuples(st.integers(60_000, 10**8), st.integers(-(10**9), 10**13))
    at = draw(st.lists(instants, max_size=3))
    start = draw(st.none() | instants)
    month = 30 * 86_400_000
    windows = draw(st.lists(st.tuples(instants, st.integers(1, 60 * month)), max_size=2))
    return Spec(
        crons=tuple(texts),
        every=tuple(draw(st.lists(periods, max_size=1))),
        at_ms=tuple(at),
        zone=draw(st.sampled_from(ZONES)),
        gap=draw(st.sampled_from(list(Gap))),
        fold=draw(st.sampled_from(list(Fold))),
        start_ms=start,
        end_ms=draw(st.none() | st.integers((start or 0) + 1, 2 * 10**12)),
        jitter_ms=draw(st.sampled_from([0, 1, 1_000, 3_600_000])),
        excluded_dates=tuple(draw(st.lists(
            st.dates().map(lambda day: day.strftime("%m-%d")), max_size=5))),
        excluded_windows=tuple((first, first + length) for first, length in windows),
    )  # fmt: skip


def forget_everything() -> None:
    parse.cache_clear()
    _walker.cache_clear()


@settings(max_examples=150, deadline=None)
@given(specs(), instants, st.text(max_size=5))
def test_next_latest_and_preview_agree(spec: Spec, after: int, hash_key: str) -> None:
    fires: list[int] = []
    last = after
    for _ in range(40):
        fire = next_fire(spec, last, hash_key=hash_key)
        if fire is None:
            break
        assert fire > last
        fires.append(fire)
        last = fire
    shown = preview(spec, after, 40, hash_key=hash_key)
    assert [fire.nominal_ms for fire in shown if not fire.skipped] == fires
    assert not {fire.nominal_ms for fire in shown if fire.skipped} & set(fires)
    assert [fire.nominal_ms for fire in shown] == sorted(fire.nominal_ms for fire in shown)
    for at, fire in enumerate(fires):
        assert latest_fire(spec, after, fire, hash_key=hash_key) == (fire, at + 1)
        before = fires[at - 1] if at else None
        assert latest_fire(spec, after, fire - 1, hash_key=hash_key) == (before, at)


@settings(max_examples=60, deadline=None)
@given(specs(), instants, st.integers(0, 10**10))
def test_the_latest_fire_is_the_last_however_many_there_are(
    spec: Spec, after: int, length: int
) -> None:
    latest, count = latest_fire(spec, after, after + length)
    if latest is None:
        assert count == 0
        following = next_fire(spec, after)
    else:
        assert after < latest <= after + length
        assert 1 <= count <= COUNT_MAX
        assert next_fire(spec, latest - 1) == latest
        following = next_fire(spec, latest)
    assert following is None or following > after + length


@settings(max_examples=80, deadline=None)
@given(specs(), instants, st.randoms(use_true_random=False))
def test_no_memory_ever_changes_an_answer(spec: Spec, after: int, shuffle: st.DataObject) -> None:
    questions = [after]
    for _ in range(10):
        fire = next_fire(spec, questions[-1])
        if fire is None:
            break
        questions += [fire - 1, fire]
    questions += [after - 10**9, after + 10**9, after + 1]
    fresh = {}
    for question in questions:
        forget_everything()
        fresh[question] = Program(spec, "").next_ms(question)
    asked = questions * 2
    shuffle.shuffle(asked)  # type: ignore[attr-defined]
    remembering = Program(spec, "")
    for question in asked:
        assert remembering.next_ms(question) == fresh[question]
        assert (next_fire(spec, question) or remembering.next_ms(question)) == fresh[question]


@settings(max_examples=80, deadline=None)
@given(specs(), instants, st.text(max_size=5))
def test_jitter_stays_in_its_bounds_and_in_order(spec: Spec, after: int, hash_key: str) -> None:
    fire = next_fire(spec, after, hash_key=hash_key)
    assume(fire is not None)
    assert fire is not None
    due = due_ms(spec, fire, hash_key=hash_key)
    assert fire <= due <= fire + spec.jitter_ms
    assert due == due_ms(spec, fire, hash_key=hash_key)
    following = next_fire(spec, fire, hash_key=hash_key)
    assert following is None or due < following


@settings(max_examples=80, deadline=None)
@given(specs(), instants)
def test_what_does_not_fire_is_never_in_a_bound_or_exclusion(spec: Spec, after: int) -> None:
    for fire in preview(spec, after, 20):
        if not fire.skipped:
            assert spec.start_ms is None or fire.nominal_ms >= spec.start_ms
            assert spec.end_ms is None or fire.nominal_ms < spec.end_ms
            assert fire.local[5:10] not in spec.excluded_dates
            assert not any(low <= fire.nominal_ms < high for low, high in spec.excluded_windows)


@settings(max_examples=80, deadline=None)
@given(specs(), instants)
def test_a_valid_spec_fires_and_survives_storage(spec: Spec, after: int) -> None:
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=Spec)
    assert again == spec
    assert hash(again) == hash(spec)
    if not validate(spec, after_ms=after):
        assert next_fire(again, after) is not None
