"""The messages of the bus: frozen pydantic models, headers, and the closed lists of failures."""

from schemas.base import VERSION
from schemas.chunk import Chunk
from schemas.decision import Candidate, Decided, Decision, Finding, Forward, Refuse, Wait
from schemas.event import AttemptEnded, AttemptStarted, Replied
from schemas.failure import RETRYABLE, Error, ErrorType, Failure, FailureKind
from schemas.health import BusHealth, FleetHealth, NodeHealth
from schemas.heartbeat import BackendState, Health, Heartbeat, Host, ModelState
from schemas.outcome import Answer, AttemptTimings, Outcome
from schemas.policy import Policy
from schemas.reply import Reply, ReplyMessage, Timings
from schemas.request import Chat, ChatMessage, Constraints, LlmRequest, Preferences
from schemas.work import AttemptRecord, Target, Usage, WorkItem, attempt_id
from schemas.world import NodeView, World

__all__ = [
    "RETRYABLE",
    "VERSION",
    "Answer",
    "AttemptEnded",
    "AttemptRecord",
    "AttemptStarted",
    "AttemptTimings",
    "BackendState",
    "BusHealth",
    "Candidate",
    "Chat",
    "ChatMessage",
    "Chunk",
    "Constraints",
    "Decided",
    "Decision",
    "Error",
    "ErrorType",
    "Failure",
    "FailureKind",
    "Finding",
    "FleetHealth",
    "Forward",
    "Health",
    "Heartbeat",
    "Host",
    "LlmRequest",
    "ModelState",
    "NodeHealth",
    "NodeView",
    "Outcome",
    "Policy",
    "Preferences",
    "Refuse",
    "Replied",
    "Reply",
    "ReplyMessage",
    "Target",
    "Timings",
    "Usage",
    "Wait",
    "WorkItem",
    "World",
    "attempt_id",
]
