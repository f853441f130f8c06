"""`llm.node.<node>.*`: a running node says how it is, drains and resumes when it is told; plain NATS requests."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from router.executor import Executor
from router.ports import NO_HEADERS, Bus, Question
from schemas.heartbeat import BackendState, Health
from subjects import NodeCall, parse

Backends = Callable[[], Mapping[str, BackendState]]


@asynccontextmanager
async def answering(bus: Bus, executor: Executor, backends: Backends) -> AsyncIterator[None]:
    """Answer until the context ends. Every answer is a `Health`, given from what is known: it waits for no backend."""

    async def answer(question: Question) -> None:
        call = parse(question.subject)
        if not isinstance(call, NodeCall):
            return  # another verb; who asked finds out by its time-out
        if call.verb == "drain":
            await executor.drain()
        elif call.verb == "resume":
            await executor.resume()
        await question.respond(health(executor, backends()).encode(), NO_HEADERS)

    subject = str(NodeCall(executor.node, "health")).removesuffix("health") + "*"
    about = f"Node {executor.node}: health, drain, resume"
    async with bus.serve(subject, answer, name=f"llmbus-node-{executor.node}", about=about):
        yield


def health(executor: Executor, backends: Mapping[str, BackendState]) -> Health:
    state = executor.state()
    able = [model.usable and not model.stand_in for model in state.models.values()]
    return Health(
        **{name: getattr(state, name) for name in type(state).model_fields},
        status="ok" if all(able) else "degraded" if any(able) else "down",
        backends=dict(backends),
    )
