"""The places a request may go, the reasons against each, and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router.core.cost import expected_cost_usd
from router.core.routes import Chosen
from router.core.strategies import STRATEGIES, Option
from router.core.tokens import estimate_tokens
from schemas.decision import Candidate, PassedOver
from schemas.policy import Limits, Model, Policy
from schemas.request import Chat, LlmRequest
from schemas.work import Target
from schemas.world import NodeView, World

MAX_FALLBACKS = 4
TYPICAL_TOKENS_OUT = 500
EXPENSIVE_USD_PER_MTOK = 5
"""From this output price on, a model is not for a tight budget."""
PASSING: frozenset[PassedOver] = frozenset(
    {"node_unknown", "node_silent", "node_draining", "model_unusable", "breaker_open", "overloaded", "too_late"}
)
"""Reasons that may be gone in a moment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every place that was considered, and those that can take it, best first."""

    considered: tuple[Candidate, ...]
    targets: tuple[Target, ...]
    resting: tuple[tuple[int, Target], ...] = ()
    """What only an open breaker keeps away, and the broker time at which it may be tried, soonest first."""

    @property
    def may_come(self) -> bool:
        """Nobody can take it now, but somebody may soon."""
        return any(candidate.passed_over in PASSING for candidate in self.considered)


class Size(NamedTuple):
    """What a request is in tokens."""

    context: int
    """That must fit a model's context at once."""
    tokens_in: int
    tokens_out: int
    """The most it may bring, or a typical answer."""


def expected_tokens_out(chat: Chat) -> int:
    """What it may bring at most, or a typical answer; vectors are no tokens."""
    return 0 if chat.embed is not None else chat.max_tokens or TYPICAL_TOKENS_OUT


def size_of(request: LlmRequest, tokens_in: int) -> Size:
    wished = request.preferences.max_tokens
    if request.embed is not None:  # each text is read for itself
        return Size(max(estimate_tokens((text,)) for text in request.embed), tokens_in, 0)
    return Size(tokens_in + (wished or 0), tokens_in, wished or TYPICAL_TOKENS_OUT)


def plan(
    request: LlmRequest, chosen: Chosen, tokens_in: int, policy: Policy, world: World,
    allowed: frozenset[str] | None = None,
) -> Plan:  # fmt: skip
    """The route's models by strategy, then its fallback chain in the chain's order. None but `allowed` models."""
    size = size_of(request, tokens_in)
    options: list[Option] = []
    considered: list[Candidate] = []
    absent: list[tuple[str, str, PassedOver]] = []
    chain = tuple(name for name in chosen.chain if name not in chosen.models)
    for position, name in enumerate((*chosen.models, *chain)):
        model = policy.models[name]
        for node in model.nodes:
            why = (
                _forbidden(name, allowed)
                or _unable(request, model, size)
                or node_unable(world.nodes.get(node), name, world.as_of_ms, policy.limits)
            )
            if why is not None:
                considered.append(Candidate(node=node, model=name, passed_over=why))
                if why in PASSING:
                    absent.append((name, node, why))
            else:
                state = world.nodes[node].models[name]
                sent = world.sent.get(f"{name}@{node}", 0) if world.sent else 0
                options.append(Option(name, model, node, state, position, tokens_in, size.tokens_out, sent))
    if request.embed is not None:
        options = _without_stand_ins(options, considered)
    left_ms = world.received_ms + request.deadline_ms - world.as_of_ms
    quick = [option for option in options if option.in_time(left_ms)]
    if 0 < len(quick) < len(options):
        for option in options:
            if option not in quick:
                considered.append(Candidate(node=option.node, model=option.name, passed_over="too_late"))
                absent.append((option.name, option.node, "too_late"))
        options = quick
    score = STRATEGIES[chosen.strategy]
    routed = [(round(score(option), 6), option) for option in options if option.position < len(chosen.models)]
    routed.sort(key=lambda pair: (-pair[0], pair[1].position, _turn(pair[1], policy, world)))
    spare = sorted(
        (option for option in options if option.position >= len(chosen.models)),
        key=lambda option: (option.position, _turn(option, policy, world)),
    )
    ranked: Sequence[tuple[float | None, Option]] = [*routed, *((None, option) for option in spare)]
    considered[:0] = [Candidate(node=option.node, model=option.name, score=points) for points, option in ranked]
    able = [policy.targets[option.name, option.node] for _, option in ranked]
    # Who cannot take it now may be back when everybody else has failed.
    late = [policy.targets[name, node] for name, node, _ in absent]
    targets = (*able, *late)[: MAX_FALLBACKS + 1] if able else ()
    extra = _only_after(request, chosen, size, policy, allowed) if able and request.embed is None else ()
    return Plan(tuple(considered), (*targets, *extra), () if able else _resting(absent, policy, world))


def _without_stand_ins(options: list[Option], considered: list[Candidate]) -> list[Option]:
    """Where some node has the model itself, none on which loopback stands in for it: its vectors are others."""
    real = [option for option in options if not option.state.stand_in]
    if not real:
        return options
    considered += [
        Candidate(node=option.node, model=option.name, passed_over="model_unusable")
        for option in options
        if option.state.stand_in
    ]
    return real


def node_unable(view: NodeView | None, model: str, as_of_ms: int, limits: Limits) -> PassedOver | None:
    """Why this node cannot take work for `model` at this moment."""
    if view is None:
        return "node_unknown"
    if as_of_ms - view.heard_ms > limits.node_silent_ms:
        return "node_silent"
    if view.draining:
        return "node_draining"
    state = view.models.get(model)
    if state is None or not state.usable:
        return "model_unusable"
    if state.breaker == "half_open" or (state.breaker == "open" and as_of_ms < (state.open_until_ms or 0)):
        return "breaker_open"
    return "overloaded" if state.waiting >= limits.max_waiting else None


def _forbidden(name: str, allowed: frozenset[str] | None) -> PassedOver | None:
    return None if allowed is None or name in allowed else "forbidden"


def _unable(request: LlmRequest, model: Model, size: Size) -> PassedOver | None:
    """Why this model can never take the request."""
    if model.embeds != (request.embed is not None):
        return "kind_unsupported"
    if size.context > model.context_tokens:
        return "context_too_long"
    if request.tools and not model.tools:
        return "tools_unsupported"
    return "too_expensive" if _too_expensive(request, model, size) else None


def _too_expensive(request: LlmRequest, model: Model, size: Size) -> bool:
    if model.costs_nothing:
        return False
    asked = request.constraints
    if asked.budget_constraint == "high":
        return True
    if asked.budget_constraint == "medium" and (
        model.price is None or model.price.output_usd_per_mtok >= EXPENSIVE_USD_PER_MTOK
    ):
        return True
    if asked.max_cost_usd is None:
        return False
    usd = expected_cost_usd(model, size.tokens_in, size.tokens_out)
    return usd is None or usd > asked.max_cost_usd


def _turn(option: Option, policy: Policy, world: World) -> tuple[float, ...]:
    """The order among equals: the policy's balance, then turn by turn."""
    nodes = option.model.nodes
    turn = (nodes.index(option.node) - world.request_seq) % len(nodes)
    if policy.balance == "least_loaded":
        return option.wait_ms, option.load, turn
    return (-option.state.health, turn) if policy.balance == "health_based" else (turn,)


def _only_after(
    request: LlmRequest, chosen: Chosen, size: Size, policy: Policy, allowed: frozenset[str] | None
) -> tuple[Target, ...]:
    """The chains that are named after a failure: they are followed after that failure only, before any other."""
    return tuple(
        policy.targets[name, node].model_copy(update={"only_after": kind})
        for kind in policy.failure_chains
        for name in policy.fallbacks[kind]
        if name not in chosen.models
        and _forbidden(name, allowed) is None
        and _unable(request, policy.models[name], size) is None
        for node in policy.models[name].nodes
    )


def _resting(
    absent: Sequence[tuple[str, str, PassedOver]], policy: Policy, world: World
) -> tuple[tuple[int, Target], ...]:
    resting = (
        (world.nodes[node].models[name].open_until_ms or world.as_of_ms, policy.targets[name, node])
        for name, node, why in absent
        if why == "breaker_open"
    )
    return tuple(sorted(resting, key=lambda pair: pair[0]))
