"""What fits, who goes for it, and what was measured: one rule, one example. A load takes 5 s for every 10 GB."""

from dataclasses import replace

import pytest

from router.core.orders import Load, Refusal, Unload, Wait
from router.core.residency import GB, ModelSpec, NodeState, spec_of
from schemas.policy import Model
from tests.support.schedule_desk import ARCHITECT, CODER, JUDGE, REVIEWER, Desk


def test_what_fits_is_loaded_while_others_generate() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.run("coder")
    desk.ask("reviewer")
    assert desk.orders.load == Load("reviewer", "room")
    assert desk.orders.unloads == ()


def test_the_idle_go_for_what_is_wanted_and_it_comes_when_they_are_gone() -> None:
    desk = Desk()
    desk.hold("coder", "reviewer")
    desk.ask("architect")
    assert desk.orders.unloads == (Unload("coder", "idle", "architect"), Unload("reviewer", "idle", "architect"))
    assert desk.orders.load is None
    desk.node.unload_began("coder")
    desk.node.unload_began("reviewer")
    desk.node.unloaded("coder")
    assert not desk.orders.acts
    desk.node.unloaded("reviewer")
    assert desk.orders.load == Load("architect", "room")


def test_they_go_for_the_one_that_wanted_the_room_and_not_for_another() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.ask("architect")
    assert desk.orders.unloads == (Unload("coder", "idle", "architect"),)
    desk.node.unload_began("coder", "architect")
    desk.ask("coder", "critical")
    desk.node.unloaded("coder")
    assert desk.orders.load == Load("architect", "room")


def test_no_more_go_than_must_and_the_least_used_first() -> None:
    small = [ModelSpec(f"m{at}", 15 * GB, 30) for at in range(5)]
    desk = Desk(*small)
    desk.hold("m0", "m1", "m2", "m3")
    for at, model in enumerate(("m2", "m0", "m3", "m1")):
        desk.now_ms = at
        desk.node.finished(desk.run(model), at)
    desk.ask("m4")
    assert desk.orders.unloads == (Unload("m2", "idle", "m4"),)


def test_what_can_never_fit_is_refused_with_the_figures() -> None:
    desk = Desk(replace(ARCHITECT, weights_bytes=60 * GB), CODER)
    ticket = desk.ask("architect")
    assert desk.orders.refusals == (Refusal(ticket, "insufficient_memory", 65 * GB, 64 * GB),)


def test_what_fits_alone_may_not_fit_beside_the_pinned() -> None:
    desk = Desk(ARCHITECT, JUDGE, total_gb=60)
    ticket = desk.ask("architect")
    assert desk.orders.refusals == (Refusal(ticket, "insufficient_memory", 57 * GB, 54 * GB),)


@pytest.mark.parametrize(
    ("weights_gb", "total_gb", "fits"),
    [(52, 57, True), (52, 56.9, False), (30, 57, True), (19, 28, True), (19, 20.9, False)],
)
def test_five_gb_stay_free_beside_a_giant_and_two_beside_others(
    weights_gb: int, total_gb: float, *, fits: bool
) -> None:
    desk = Desk(ModelSpec("one", weights_gb * GB, 30), total_gb=total_gb)
    desk.ask("one")
    assert (desk.orders.load == Load("one", "room")) is fits
    assert bool(desk.orders.refusals) is not fits


def test_memory_that_other_programs_took_is_not_loaded_into() -> None:
    desk = Desk()
    ticket = desk.ask("architect")
    desk.node.measured(30 * GB)
    orders = desk.orders
    assert orders.waits == (Wait("architect", "memory_taken", 57 * GB, 30 * GB),)
    assert not orders.acts
    desk.node.measured(60 * GB)
    assert desk.orders.load == Load("architect", "room")
    assert ticket in desk.node.queue


def test_memory_is_weights_and_context_of_every_slot_and_what_was_measured() -> None:
    desk = Desk(replace(REVIEWER, context_tokens=32_000, kv_bytes_per_token=100_000))
    model = desk.node.models["reviewer"]
    assert model.memory_bytes == 9 * GB + 2 * 32_000 * 100_000
    assert model.load_ms == 4_500
    desk.node.load_began("reviewer", 0)
    desk.node.loaded("reviewer", 7_000, memory_bytes=17 * GB)
    assert (model.memory_bytes, model.load_ms) == (17 * GB, 7_000)
    assert desk.node.free_bytes == 47 * GB
    desk.node.unload_began("reviewer")
    desk.node.unloaded("reviewer")
    assert desk.node.free_bytes == 64 * GB


def test_a_measurement_amid_a_change_is_not_believed() -> None:
    desk = Desk()
    desk.node.load_began("coder", 0)
    desk.node.measured(60 * GB)
    assert desk.node.free_bytes == 45 * GB
    desk.node.loaded("coder", 9_500)
    desk.node.measured(44 * GB)
    assert desk.node.free_bytes == 44 * GB


def test_the_pinned_come_first_and_never_go() -> None:
    desk = Desk(CODER, JUDGE, replace(ARCHITECT, weights_bytes=50 * GB))
    desk.ask("coder", "critical")
    assert desk.orders.load == Load("judge", "pinned")
    desk.hold("judge")
    assert desk.orders.load == Load("coder", "room")
    desk.hold("coder")
    desk.node.withdrawn(1)
    desk.ask("architect")
    assert desk.orders.unloads == (Unload("coder", "idle", "architect"),)


def test_one_change_of_memory_at_a_time_while_others_serve_on() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.node.load_began("reviewer", 0)
    desk.ask("architect")
    ticket = desk.ask("coder")
    orders = desk.orders
    assert desk.started == [ticket]
    assert not orders.load
    assert not orders.unloads


def test_a_load_that_failed_is_tried_again_later() -> None:
    desk = Desk()
    desk.ask("coder")
    desk.node.load_began("coder", 0)
    desk.node.load_failed("coder", retry_ms=5_000)
    assert desk.waits == {"coder": "load_failed"}
    assert desk.orders.ask_at_ms == 5_000
    assert desk.at(5_000).load == Load("coder", "room")
    assert desk.node.free_bytes == 64 * GB


def test_a_model_that_nobody_used_for_two_hours_goes_and_the_pinned_stay() -> None:
    desk = Desk(CODER, JUDGE)
    desk.hold("coder", "judge")
    desk.node.finished(desk.run("coder"), 0)
    assert desk.orders.ask_at_ms == 7_200_000
    assert not desk.at(7_199_999).acts
    assert desk.at(7_200_000).unloads == (Unload("coder", "unused"),)


def test_one_that_makes_room_enough_spares_the_others() -> None:
    desk = Desk(ModelSpec("small", 9 * GB, 30), ModelSpec("large", 45 * GB, 30), ModelSpec("wanted", 20 * GB, 30))
    desk.hold("small", "large")
    desk.now_ms = 5
    desk.node.finished(desk.run("large"), 5)
    desk.ask("wanted")
    assert desk.orders.unloads == (Unload("large", "idle", "wanted"),)


def test_the_pinned_do_not_go_though_only_they_would_make_room_enough() -> None:
    desk = Desk(replace(ARCHITECT, weights_bytes=50 * GB), JUDGE)
    desk.hold("judge")
    desk.ask("architect")
    desk.node.measured(52 * GB)
    assert desk.orders.waits == (Wait("architect", "memory_taken", 55 * GB, 52 * GB),)
    assert not desk.orders.acts


def test_the_unused_stay_while_memory_is_being_changed() -> None:
    desk = Desk()
    desk.hold("reviewer")
    desk.node.load_began("coder", 7_200_000)
    assert not desk.at(7_200_000).acts
    desk.node.loaded("coder", 7_209_500)
    assert desk.at(7_209_500).unloads == (Unload("reviewer", "unused"),)


def test_room_is_made_for_one_load_only() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.node.unload_began("coder", "architect")
    desk.node.unloaded("coder")
    desk.node.load_began("architect", 0)
    desk.node.loaded("architect", 26_000)
    desk.node.unloaded("architect")  # somebody else unloaded it
    desk.ask("architect")
    desk.ask("coder")
    assert desk.orders.load == Load("coder", "room")


def test_a_model_of_the_policy_as_the_scheduler_sees_it() -> None:
    model = Model(
        nodes=("macbook",), provider="ollama", backend="llama3.1:8b", memory_gb=5.5, context_tokens=16_000,
        resident=True, slots=4, quality=0.45, tokens_per_s=35,
    )  # fmt: skip
    spec = spec_of("judge", model)
    assert spec == ModelSpec("judge", 5_500_000_000, 35, slots=4, context_tokens=16_000, pinned=True)
    assert NodeState([spec], 24 * GB).models["judge"].memory_bytes == 5_500_000_000


def test_what_is_checked_starts_nothing_and_does_not_go_until_it_was_found_well() -> None:
    desk = Desk()
    desk.hold("coder")
    free_bytes = desk.node.free_bytes
    desk.node.check_began("coder")
    ticket = desk.ask("coder")
    desk.ask("architect")
    assert not desk.orders.acts
    desk.node.checked("coder")
    assert desk.started == [ticket]
    assert desk.node.free_bytes == free_bytes


def test_what_generates_is_not_checked() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.run("coder")
    with pytest.raises(ValueError, match="coder is generating"):
        desk.node.check_began("coder")
