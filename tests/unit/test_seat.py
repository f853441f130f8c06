"""How a model on a node has fared: its speed is the model's own, whatever it was waited for."""

import pytest

from adapters.host import look
from adapters.providers.loopback import Loopback
from router.attempt import Served, Tried
from router.breaker import Breaker
from router.lane import Lane
from router.seat import Seat
from schemas import Answer, Failure, FailureKind, Usage


def seat(*, stand_in: bool = False) -> Seat:
    return Seat(Served(Loopback(), "loopback", stand_in=stand_in), Lane(1), Breaker(5, 5_000))


def tried(tokens: int, first_s: float, ended_s: float, *, pieces: int = 5, load_ms: float | None = None) -> Tried:
    answer = Answer(text="네", usage=Usage(tokens_out=tokens), load_ms=load_ms)
    return Tried(begun_s=0.0, first_token_s=first_s, ended_s=ended_s, answer=answer, pieces=pieces)


@pytest.mark.parametrize(
    ("call", "rate"),
    [
        (tried(100, 60.0, 62.0), 50.0),  # a minute of loading and reading
        (tried(100, 4.0, 4.0, pieces=1), 25.0),  # all at once at the end
        (tried(100, 14.0, 14.0, pieces=1, load_ms=10_000), 25.0),
        (tried(100, 0.0, 0.0, pieces=1), None),
    ],
)
def test_speed_is_measured_without_the_loading(call: Tried, rate: float | None) -> None:
    measured = seat()
    measured.ended(call)
    assert measured.state().tokens_per_s == rate


def test_speed_is_an_average_that_follows_and_failures_leave_it_alone() -> None:
    measured = seat()
    for _ in range(3):
        measured.ended(tried(100, 1.0, 2.0))
    measured.ended(tried(200, 1.0, 2.0))
    assert measured.state().tokens_per_s == 120.0
    measured.ended(Tried(failure=Failure(kind=FailureKind.SILENCE, message="-"), first_token_s=1.0, ended_s=9.0))
    assert measured.state().tokens_per_s == 120.0
    assert measured.state().failed == 1


def test_a_stand_in_has_no_speed_of_the_model() -> None:
    standing = seat(stand_in=True)
    standing.ended(tried(100, 1.0, 2.0))
    assert standing.state().tokens_per_s is None


def test_the_host_says_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    host = look()
    assert host.memory_total_bytes is not None
    assert host.memory_free_bytes is not None
    assert 0 < host.memory_free_bytes <= host.memory_total_bytes

    class OnBattery:
        percent, power_plugged = 54.04, False

    monkeypatch.setattr("psutil.sensors_battery", OnBattery, raising=False)
    assert (look().battery_percent, look().power) == (54.0, "battery")

    def broken() -> None:
        raise OSError("드라이버 오류")

    monkeypatch.setattr("psutil.sensors_battery", broken)
    assert (look().battery_percent, look().power) == (None, None)
    monkeypatch.delattr("psutil.sensors_battery")
    assert look().battery_percent is None
