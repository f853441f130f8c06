"""`llmbus node NAME --drain` and `--resume`: a word to a node that runs, wherever it does."""

import nats.errors
import typer
from pydantic import ValidationError

from adapters.bus import open_bus
from router.errors import LlmbusError
from schemas.heartbeat import Health
from subjects import NodeCall
from subjects.grammar import NodeVerb

ANSWER_S = 5.0


class NodeAwayError(LlmbusError):
    """Nobody answers for that node."""


async def tell(url: str, name: str, verb: NodeVerb) -> None:
    """Do it, and say what is so now. Raises NodeAwayError."""
    health = await call(url, name, verb)
    if not health.draining:
        typer.echo(f"{name} takes work")
        return
    running = sum(model.running for model in health.models.values())
    runs = f"finishes the {running} that run" if running else "nothing runs there"
    typer.echo(f"{name} drains: it takes nothing new, {runs}; `llmbus node {name} --resume` ends that, a restart too")


async def call(url: str, name: str, verb: NodeVerb) -> Health:
    """Ask a running node. Raises NodeAwayError."""
    subject = str(NodeCall(name, verb))
    async with open_bus(url, name="llmbus node") as bus:
        try:
            answer = await bus.client.request(subject, b"", timeout=ANSWER_S)
            return Health.decode(answer.data)
        except nats.errors.NoRespondersError:
            why = f"nobody answers for node {name!r}: it is not running, or has another name; see `llmbus nodes`"
        except TimeoutError:
            why = f"node {name!r} is there and does not answer within {ANSWER_S:g} s: it sleeps, or was just cut off"
        except ValidationError:
            why = f"node {name!r} answers with something else: it runs another version of llmbus"
    raise NodeAwayError(why)
