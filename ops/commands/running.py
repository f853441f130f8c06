"""`llmbus watch` and `llmbus cancel`: a request that is under way."""

from typing import Annotated

import typer

from ops.commands.options import DEFAULT_URL, Json, NatsUrl, run_quietly

Name = Annotated[str, typer.Argument(metavar="ID", help="RID or CLIENT/RID.")]
SILENCE_S = 125.0
CANCEL_S = 10.0


def watch(
    request_id: Name,
    attempt: Annotated[str | None, typer.Option(metavar="A", help="Go on with this attempt, if none is newer")] = None,
    after: Annotated[int, typer.Option(metavar="N", help="behind its piece N.")] = -1,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="S", help="Give up when it is silent so long.")
    ] = SILENCE_S,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Print a streamed answer as it comes, from its beginning.

    Any number may watch; Ctrl-C leaves it alone.
    """
    run_quietly(_watch(request_id, attempt, after, wait, nats_url, as_json=as_json))


def cancel(
    request_id: Name,
    wait: Annotated[float, typer.Option("--wait", min=0, metavar="S", help="Wait so long for its end.")] = CANCEL_S,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Stop a request, and say what came of it.

    The exit code is 1 when it was not cancelled: it had ended already, or the answer won.
    """
    run_quietly(_cancel(request_id, wait, nats_url, as_json=as_json))


async def _watch(
    name: str, attempt: str | None, after: int, silence_s: float, url: str, *, as_json: bool
) -> None:  # fmt: skip
    import asyncio

    from adapters.client import Client, RequestFailedError
    from ops.commands.screen import print_json
    from ops.commands.streamed import Printed, show_stream
    from router.errors import LlmbusError

    if after >= 0 and attempt is None:
        raise LlmbusError("pieces are numbered within an attempt: give `--attempt` with `--after`")
    owner, rid = await _whose(name, url)
    printed = Printed()
    try:
        async with Client.connect(url, owner) as client:
            coming = client.watch(rid, attempt_id=attempt, after=after, silence_s=silence_s)
            await show_stream(coming, printed, as_json=as_json)
    except asyncio.CancelledError:
        if last := printed.last:
            on = f"llmbus watch {owner}/{rid} --attempt {last.attempt_id} --after {last.n}"
            typer.echo(f"\nleft, not cancelled; go on with `{on}`", err=True)
        raise
    except RequestFailedError as refusal:
        if not as_json:
            raise
        print_json(refusal.reply or {"error": refusal.error}, indent=None)
        raise typer.Exit(1) from None


async def _cancel(name: str, wait_s: float, url: str, *, as_json: bool) -> None:
    from adapters.client import Client
    from ops.commands.screen import print_json
    from router.errors import LlmbusError

    owner, rid = await _whose(name, url)
    async with Client.connect(url, owner) as client:
        await client.cancel(rid)
        reply = await client.result(rid, timeout_s=wait_s)
    if reply is None:
        raise LlmbusError(
            f"the bus has it, but {owner}/{rid} did not end within {wait_s:g} s: is the id right, does a router run? "
            f"Look at `llmbus replay {owner}/{rid}`"
        )
    cancelled = reply.status == "cancelled"
    if as_json:
        told = {"request_id": rid, "client": owner, "cancelled": cancelled, "status": reply.status}
        print_json({**told, "error": reply.error, "cost_usd": reply.cost_usd})
    elif cancelled:
        typer.echo("cancelled")
    else:
        what = "the answer had won" if reply.error is None else f"it had ended as {reply.error.type.value}"
        typer.echo(f"not cancelled: {what}; see `llmbus result {owner}/{rid}`", err=True)
    if not cancelled:
        raise typer.Exit(1)


async def _whose(name: str, url: str) -> tuple[str, str]:
    """Client and id of RID or CLIENT/RID."""
    from adapters.bus import open_bus
    from ops.commands.history import whose
    from ops.commands.requests import CLI

    async with open_bus(url, name="llmbus") as bus:
        return await whose(bus, name, CLI)
