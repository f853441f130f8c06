"""A streamed answer on the terminal: its pieces as they come, then how it came about."""

import typer
from rich.text import Text

from adapters.streaming import Stream
from ops.commands.screen import console, ms, print_json, usd
from schemas.chunk import Chunk
from schemas.reply import Reply


class Printed:
    """What was printed of an answer so far, and where it stands."""

    def __init__(self) -> None:
        self.last: Chunk | None = None
        self._begun_at = 0
        self._text = ""

    def piece(self, chunk: Chunk) -> None:
        if self.last is None:
            self._begun_at = chunk.n
        elif self.last.attempt_id != chunk.attempt_id:
            over = "; the answer starts over" if self._text else ""
            typer.echo(nl=bool(self._text))
            console(stderr=True).print(Text(f"attempt {chunk.attempt_id}{over}", "dim"))
            self._begun_at, self._text = chunk.n, ""
        self.last = chunk
        self._text += chunk.text
        typer.echo(chunk.text, nl=False)

    def rest(self, whole: str) -> str:
        """What is still to be printed. Pieces are best effort; the reply is whole."""
        if self._begun_at and whole.endswith(self._text):
            return ""
        if not self._begun_at and whole.startswith(self._text):
            return whole[len(self._text) :]
        return f"\n[pieces were lost; the whole answer:]\n{whole}"


async def show_stream(coming: Stream, printed: Printed, *, as_json: bool) -> None:
    """Until its reply. Raises RequestFailedError. As JSON a line for each piece, and one for the reply."""
    async with coming:
        async for item in coming:
            if as_json:
                print_json(item, indent=None)
                printed.last = item if isinstance(item, Chunk) else printed.last
            elif isinstance(item, Chunk):
                printed.piece(item)
            else:
                show_reply(item, printed.rest(item.message.content if item.message else ""))


def show_reply(reply: Reply, text: str) -> None:
    """The answer on stdout, how it came about on stderr."""
    typer.echo(text)
    cost, latency = usd(reply.cost_usd), ms(reply.timings.total_ms)
    aside = console(stderr=True)
    aside.print(Text.assemble((f"{reply.decision} · ", "dim"), cost, (f" · {latency} · {reply.request_id}", "dim")))
    if reply.notice:
        aside.print(Text(reply.notice, "yellow"))
