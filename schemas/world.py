"""All that a decision may know beside the request and the policy: recorded with it, so it can be computed again."""

from schemas.base import Wire
from schemas.heartbeat import ModelState


class NodeView(Wire):
    """A node as last heard."""

    heard_ms: int
    """Broker time of the heartbeat."""
    draining: bool = False
    models: dict[str, ModelState]


class World(Wire):
    """What is known at one moment. Times are broker time, epoch milliseconds."""

    as_of_ms: int
    received_ms: int
    """When the broker received the request."""
    linked_ms: int | None = None
    """Since when the router hears nodes, if that is later."""
    request_seq: int
    """Its sequence in LLM_REQUESTS: the turn in a round robin."""
    policy: int
    cancelled: bool | None = None
    """True when the client has called it off."""
    retries_left: int | None = None
    """How many more calls of a target that has just failed the traffic of the last seconds allows; for settling."""
    sent: dict[str, int] | None = None
    """By `<model>@<node>`: what this router has sent there, less what came back, since the node was last heard."""
    nodes: dict[str, NodeView]
