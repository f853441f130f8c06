"""The policy: who may answer what, and at which price. One file holds it, the bus every revision.

Unlike messages, a policy is strict coming in: an unknown field is a typing error and is refused.
"""

from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.failure import FailureKind
from schemas.request import Strategy
from schemas.work import Target

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Balance = Literal["round_robin", "least_loaded", "health_based"]
Dialect = Literal["ollama", "openai", "anthropic", "gemini", "cohere", "loopback"]

Residence = Literal["ollama", "llama-server", "single", "none"]
"""How the models of a provider come into memory: by Ollama's API; by that of a llama-server that was started without a
model; one model, which its server was started with; or that is no business of ours."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Node(Strict):
    """A machine, or a place that is reached through APIs."""

    about: str = ""
    memory_gb: float | None = Field(default=None, gt=0)
    urls: dict[Name, str] = {}
    """Where this node finds a provider, when not at the provider's own url."""


class Provider(Strict):
    """Somebody's API: its dialect, its address, the environment variables that may hold its key."""

    dialect: Dialect
    url: str | None = None
    keys: tuple[str, ...] = ()
    price_list: str | None = None
    """Whose prices hold, by genai-prices' name of them; absent: told by the url, without one by dialect or name."""
    residency: Residence | None = None
    """Who brings its models into memory; absent: `ollama` for that dialect, `none` for others."""

    @property
    def residence(self) -> Residence:
        return self.residency or ("ollama" if self.dialect == "ollama" else "none")


class TokenPrice(Strict):
    """US dollars per million tokens."""

    input_usd_per_mtok: Decimal = Field(ge=0)
    output_usd_per_mtok: Decimal = Field(ge=0)
    cached_input_usd_per_mtok: Decimal | None = Field(default=None, ge=0)
    """Of what is read from the provider's cache; absent: as any input."""
    cache_write_input_usd_per_mtok: Decimal | None = Field(default=None, ge=0)
    """Of what is written to the provider's cache; absent: as any input."""


class PriceTier(TokenPrice):
    """What all tokens of a request cost, the first ones too, once its input is larger than this."""

    above_tokens_in: int = Field(ge=0)


class Price(TokenPrice):
    """What a model costs, by tokens, by time, or both."""

    input_usd_per_mtok: Decimal = Field(default=Decimal(0), ge=0)
    output_usd_per_mtok: Decimal = Field(default=Decimal(0), ge=0)
    above: tuple[PriceTier, ...] = ()
    usd_per_hour: Decimal | None = Field(default=None, ge=0)
    """Of a machine of ours while it answers: kW times US dollars per kWh."""
    source: str | None = None
    """Where it was looked up, and when; None: nowhere, it is the policy's own."""

    @property
    def tokens_cost_nothing(self) -> bool:
        return not self.above and not any(
            (
                self.input_usd_per_mtok,
                self.output_usd_per_mtok,
                self.cached_input_usd_per_mtok,
                self.cache_write_input_usd_per_mtok,
            )
        )


class Model(Strict):
    """A model under the name that subjects carry; `backend` is what its provider calls it."""

    nodes: tuple[Name, ...] = Field(min_length=1)
    provider: Name
    backend: str = Field(min_length=1)
    role: str | None = None
    memory_gb: float = Field(default=0, ge=0)
    context_tokens: int = Field(gt=0)
    resident: bool = False
    """Kept in memory always."""
    slots: int = Field(default=1, ge=1, le=4096)
    """Requests that one node runs at a time on it."""
    quality: float = Field(ge=0, le=1)
    tokens_per_s: float = Field(gt=0)
    price: Price | None = None
    """Absent: looked up when the policy is applied; not found there: unknown, and so is what its answers cost."""
    free_tier: bool = False
    """Costs nothing within the provider's free quota."""
    tools: bool = True
    embeds: bool = False
    """It turns texts into vectors, and takes no chats. Its requests never go to another model: vectors of two models
    cannot be compared."""
    fallback: Name = "default"
    """The chain that follows when a request names this model and it is out."""
    lighter: Name | None = None
    """The quicker model that takes its place for critical requests."""
    first_token_ms: int = Field(default=10_000, gt=0)
    """Silence longer than this is a failure; local models need room to load."""
    idle_ms: int = Field(default=20_000, gt=0)
    """The longest pause within an answer."""

    @property
    def costs_nothing(self) -> bool:
        price = self.price
        return self.free_tier or (price is not None and price.tokens_cost_nothing and not price.usd_per_hour)


class When(Strict):
    """All that is given must hold."""

    dataset_size_at_least: int | None = None
    prompt_tokens_at_most: int | None = None
    quality_critical: bool | None = None
    time_critical: bool | None = None


class Route(Strict):
    """Models in order of preference."""

    models: tuple[Name, ...] = Field(min_length=1)
    strategy: Strategy | None = None
    fallback: Name = "default"
    """The chain that follows when all of `models` are out."""
    when: When | None = None


class Task(Strict):
    """A kind of work: models, or variants by context of which the first whose `when` holds is taken."""

    models: tuple[Name, ...] = ()
    strategy: Strategy | None = None
    fallback: Name = "default"
    variants: dict[Name, Route] = {}


class Capability(Strict):
    """The word after `llm.req.`: what a request without further wishes gets."""

    task: Name | None = None
    models: tuple[Name, ...] = ()
    strategy: Strategy | None = None
    fallback: Name = "default"


class Agent(Strict):
    """A service that asks: its own model, what may replace it, and how it likes to choose."""

    model: Name
    fallbacks: tuple[Name, ...] = ()
    fallback: Name = "default"
    """The chain that follows when these are out too."""
    strategy: Strategy = "agent_preference"
    about: str = ""


class GuardrailRule(Strict):
    """What to do about what a guardrail finds."""

    action: Literal["block", "redact", "flag", "off"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Findings scored lower are recorded as flags only."""


class Limits(Strict):
    """Bounds that hold for every request."""

    max_body_bytes: int = Field(default=2_000_000, ge=1_000, le=4_000_000)
    max_messages: int = Field(default=2_000, ge=1)
    max_depth: int = Field(default=64, ge=4, le=150)
    """Nesting of the body's JSON."""
    max_values: int = Field(default=50_000, ge=1_000, le=200_000)
    """JSON values in a body, not counting what strings hold: many tiny ones take longer than one long text."""
    max_attempts: int = Field(default=3, ge=1, le=6)
    max_deliveries: int = Field(default=5, ge=1, le=20)
    """A message that comes back more often than this without an outcome is poison."""
    max_waiting: int = Field(default=2_000, ge=1)
    """Work that may wait for one model on one node; when that many wait, the next candidate is taken."""
    max_retry_after_ms: int = Field(default=5_000, ge=0)
    """A target that asks for no more patience than this is waited for, though others could take it."""
    breaker_failures: int = Field(default=5, ge=1)
    """So many failures in a row open a model's breaker; silence opens it at once."""
    breaker_open_ms: int = Field(default=5_000, ge=100)
    """How long it stays open; then one call finds out whether the model is well again."""
    node_silent_ms: int = Field(default=3_500, ge=1_000)
    """A node not heard for this long is passed over, and its work goes elsewhere. They are heard every second."""
    node_wait_ms: int = Field(default=20_000, ge=0)
    """How long a request may wait for a node to come up before it is refused."""


class Policy(Strict):
    """The whole policy. Field order is the order of the file."""

    version: Literal[1]
    nodes: dict[Name, Node]
    providers: dict[Name, Provider]
    models: dict[Name, Model] = Field(min_length=1)
    capabilities: dict[Name, Capability] = Field(min_length=1)
    tasks: dict[Name, Task] = {}
    default: Route
    """Where a task that nobody mapped goes."""
    aliases: dict[Name, Route] = {}
    agents: dict[Name, Agent] = {}
    fallbacks: dict[Name, tuple[Name, ...]] = {"default": ()}
    default_strategy: Strategy = "agent_preference"
    balance: Balance = "least_loaded"
    """The choice among equals: the same model on several nodes."""
    critical_keeps_model: tuple[Name, ...] = ("plan", "design", "architecture")
    """Tasks for which a critical request still gets the big model."""
    guardrails: dict[Name, GuardrailRule] = {}
    limits: Limits = Limits()

    @cached_property
    def targets(self) -> Mapping[tuple[str, str], Target]:
        """Every place a request may go, by model and node."""
        return {
            (name, node): Target(
                node=node,
                model=name,
                backend=model.backend,
                provider=model.provider,
                role=model.role,
                first_token_ms=model.first_token_ms,
                idle_ms=model.idle_ms,
            )
            for name, model in self.models.items()
            for node in model.nodes
        }

    @cached_property
    def failure_chains(self) -> tuple[FailureKind, ...]:
        """The failures that have a fallback chain of their own."""
        return tuple(kind for kind in FailureKind if kind.value in self.fallbacks)
