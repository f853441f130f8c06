"""`decide`: from a request, the policy and the world to who answers it, or why nobody does. Pure.

The stages, in order: admit, guardrails, task, candidates, filter, strategy. The first that objects settles it.
"""

from dataclasses import dataclass

from router.core.admit import Asked
from router.core.candidates import Plan, plan, size_of
from router.core.guardrails import for_data, screen
from router.core.routes import Chosen, choose_route
from router.core.tokens import estimate_tokens
from schemas.decision import Decision, Finding, Forward, Refuse, Wait
from schemas.failure import ErrorType
from schemas.policy import Policy
from schemas.request import Chat, ChatMessage, LlmRequest
from schemas.work import Target
from schemas.world import World

FIRST_WAIT_MS = 250
MAX_WAIT_MS = 2_000
RETRY_AFTER_MS = 5_000
RECOVERY_MS = 1_000
"""The least that must be left of its time for a wait to be worth it."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision, and what goes to the model if it is to go anywhere: redacted where the policy says so."""

    decision: Decision
    chat: Chat | None = None


def decide(asked: Asked, world: World, policy: Policy) -> Ruling:
    request = asked.request
    if request is None:
        return Ruling(Decision(choice=asked.refusal or _unreadable(), stage="admit"))
    if refusal := _called_off(world) or _too_late(request, world):
        return Ruling(Decision(choice=refusal, stage="admit", urgency=request.urgency))
    chat = Chat.of(request)
    texts = chat.texts()
    findings, screened = screen(texts, policy.guardrails if chat.embed is None else for_data(policy.guardrails))
    if blocked := [finding for finding in findings if finding.action == "block"]:
        refusal = Refuse(error=ErrorType.GUARDRAIL_BLOCKED, message=_why_blocked(blocked))
        return Ruling(Decision(choice=refusal, stage="guardrails", urgency=request.urgency, findings=findings))
    tokens_in = estimate_tokens(screened)
    chosen = choose_route(request, asked.capability, policy, tokens_in)
    if isinstance(chosen, Refuse):
        return Ruling(Decision(choice=chosen, stage="task", urgency=request.urgency, findings=findings))
    if refusal := _not_theirs(chosen, asked.models):
        return Ruling(Decision(choice=refusal, stage="task", urgency=request.urgency, findings=findings))
    found = plan(request, chosen, tokens_in, policy, world, asked.models)
    decision = _place(request, chosen, found, findings, tokens_in, policy, world)
    return Ruling(decision, chat if screened == texts else redacted(chat, texts, screened))


def deadline_at_ms(request: LlmRequest, world: World) -> int:
    return world.received_ms + request.deadline_ms


def redacted(chat: Chat, texts: tuple[str, ...], screened: tuple[str, ...]) -> Chat:
    """The chat with the screened texts in place; a turn of several parts keeps its parts that are not text."""
    if chat.embed is not None:
        return chat.model_copy(update={"embed": screened})
    turns = (
        turn if text is clean else _reworded(turn, clean)
        for turn, text, clean in zip(chat.messages, texts, screened, strict=True)
    )
    return chat.model_copy(update={"messages": tuple(turns)})


def _reworded(turn: ChatMessage, text: str) -> ChatMessage:
    if not isinstance(turn.content, list):
        return turn.model_copy(update={"content": text})
    others = [part for part in turn.content if not isinstance(part.get("text"), str)]
    return turn.model_copy(update={"content": [{"type": "text", "text": text}, *others]})


def _place(
    request: LlmRequest, chosen: Chosen, found: Plan, findings: tuple[Finding, ...], tokens_in: int, policy: Policy,
    world: World,
) -> Decision:  # fmt: skip
    choice: Forward | Wait | Refuse
    if found.targets:
        first, *rest = found.targets
        choice = Forward(target=first, fallbacks=tuple(rest))
    elif found.resting:
        choice = _wait_for_breakers(request, found.resting, world)
    else:
        choice = _nobody(request, found, tokens_in, policy, world)
    return Decision(
        choice=choice,
        stage="strategy" if isinstance(choice, Forward) else "filter",
        task=chosen.task,
        route=chosen.route,
        strategy=chosen.strategy,
        urgency=request.urgency,
        findings=findings,
        candidates=found.considered,
    )


def _nobody(request: LlmRequest, found: Plan, tokens_in: int, policy: Policy, world: World) -> Wait | Refuse:
    """Wait while a node may still come up, or a queue shorten; then say why it went nowhere."""
    reasons = ", ".join(f"{c.model}@{c.node} {c.passed_over}" for c in found.considered)
    waited_ms = world.as_of_ms - world.received_ms
    deadline_ms = deadline_at_ms(request, world)
    known_ms = world.linked_ms or world.received_ms
    patience_ms = deadline_ms if _overloaded(found) else known_ms + policy.limits.node_wait_ms
    if found.may_come and world.as_of_ms < min(patience_ms, deadline_ms):
        pause_ms = min(MAX_WAIT_MS, max(FIRST_WAIT_MS, waited_ms // 2))
        return Wait(until_ms=min(world.as_of_ms + pause_ms, deadline_ms))
    if found.may_come:
        message = f"no node can take it now: {reasons}"
        return Refuse(error=ErrorType.OVERLOADED, message=message, retry_after_ms=RETRY_AFTER_MS)
    if all(candidate.passed_over in ("too_expensive", "forbidden") for candidate in found.considered):
        return Refuse(error=ErrorType.BUDGET_EXCEEDED, message=f"the budget allows none of: {reasons}")
    if all(candidate.passed_over == "context_too_long" for candidate in found.considered):
        return Refuse(error=ErrorType.BAD_REQUEST, message=f"{_too_long(request, found, tokens_in, policy)}: {reasons}")
    if all(candidate.passed_over == "kind_unsupported" for candidate in found.considered):
        return Refuse(error=ErrorType.NO_ROUTE, message=_wrong_kind(request, found, policy))
    return Refuse(error=ErrorType.NO_ROUTE, message=f"no model can take it: {reasons}")


def _wrong_kind(request: LlmRequest, found: Plan, policy: Policy) -> str:
    embed = request.embed is not None
    others = ", ".join(name for name, model in policy.models.items() if model.embeds == embed) or "none"
    asked = ", ".join(dict.fromkeys(candidate.model for candidate in found.considered))
    return f"{asked} takes no {'embeddings' if embed else 'chats'}; models that do: {others}"


def _too_long(request: LlmRequest, found: Plan, tokens_in: int, policy: Policy) -> str:
    """In Anthropic's words: its clients shorten what they ask for by the numbers in them."""
    most = max(policy.models[candidate.model].context_tokens for candidate in found.considered)
    wanted = request.preferences.max_tokens or 0
    length = size_of(request, tokens_in).context - wanted
    if length > most:
        return f"prompt is too long: {length} tokens > {most} maximum, by estimate"
    return f"input length and `max_tokens` exceed context limit: {length} + {wanted} > {most}, by estimate"


def _wait_for_breakers(request: LlmRequest, resting: tuple[tuple[int, Target], ...], world: World) -> Wait | Forward:
    """Every breaker is open: wait for the first to be tried if that leaves it time, else call it all the same."""
    soonest_ms, target = resting[0]
    if soonest_ms + RECOVERY_MS < deadline_at_ms(request, world):
        return Wait(until_ms=max(soonest_ms, world.as_of_ms + FIRST_WAIT_MS))
    return Forward(target=target.model_copy(update={"forced": True}))


def _overloaded(found: Plan) -> bool:
    return any(candidate.passed_over == "overloaded" for candidate in found.considered)


def _too_late(request: LlmRequest, world: World) -> Refuse | None:
    late_ms = world.as_of_ms - deadline_at_ms(request, world)
    if late_ms < 0:
        return None
    return Refuse(
        error=ErrorType.DEADLINE_EXCEEDED,
        message=f"its deadline of {request.deadline_ms} ms had passed {late_ms} ms before it could be decided",
    )


def _not_theirs(chosen: Chosen, allowed: frozenset[str] | None) -> Refuse | None:
    """Fallbacks alone do not make up for a route none of whose models is the client's to use."""
    if allowed is None or any(name in allowed for name in chosen.models):
        return None
    message = (
        f"{chosen.route} leads to {', '.join(chosen.models)}, and this client may use {', '.join(sorted(allowed))}"
    )
    return Refuse(error=ErrorType.FORBIDDEN, message=message)


def _called_off(world: World) -> Refuse | None:
    if not world.cancelled:
        return None
    return Refuse(error=ErrorType.CANCELLED, message="its client called it off")


def _unreadable() -> Refuse:
    return Refuse(error=ErrorType.BAD_REQUEST, message="the request cannot be read")


def _why_blocked(blocked: list[Finding]) -> str:
    worst = max(blocked, key=lambda finding: finding.score)
    return (
        f"the guardrail {worst.rule!r} found {worst.code!r}; rephrase the request, or change guardrails.{worst.rule} "
        "in the policy"
    )
