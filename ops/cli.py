"""The `llmbus` command: its subcommands, and every known error as one clear message instead of a traceback."""

import os
import sys
from typing import Annotated

import typer

from ops.commands import cost, demo, doctor, key, live, policy, replay, requests, roles, running, schema, up
from ops.commands.options import Group

app = typer.Typer(
    name="llmbus",
    cls=Group,
    help="An event-driven LLM router on NATS JetStream: durable requests, replayable decisions, every cent on record.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up.up)
app.command()(demo.demo)
app.command()(roles.router)
app.command()(roles.node)
app.command()(roles.edge)
app.command()(requests.ask)
app.command()(requests.submit)
app.command()(requests.result)
app.command()(running.watch)
app.command()(running.cancel)
app.command()(live.tail)
app.command()(live.health)
app.command()(live.nodes)
app.command()(live.providers)
app.command()(replay.replay)
app.command()(cost.cost)
app.add_typer(policy.app, name="policy")
app.add_typer(key.app, name="key")
app.command()(schema.schema)
app.command()(doctor.doctor)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug


_debug = False


def main() -> None:
    """Exit code 0 when it worked, 1 with a message when it did not, 2 for a wrong command line, 130 after Ctrl-C."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has read enough
        sys.exit(0)
    except Exception as error:
        if _debug:
            raise
        complain(error)
        sys.exit(1)


def complain(error: Exception) -> None:
    """The error on stderr, in red where there is a terminal."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    red, plain = ("\x1b[31m", "\x1b[0m") if coloured else ("", "")
    sys.stderr.write(f"{red}{_words(error)}{plain}\n")


def _words(error: BaseException) -> str:
    from nats.errors import Error as NatsError

    from ops.policy_file import PolicyError
    from ops.policy_store import RevisionNotFoundError
    from router.errors import LlmbusError
    from subjects import InvalidTokenError

    if isinstance(error, BaseExceptionGroup):
        return "\n".join(dict.fromkeys(map(_words, error.exceptions)))
    if isinstance(error, LlmbusError | PolicyError | RevisionNotFoundError | InvalidTokenError):
        return str(error)
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, NatsError | TimeoutError | ConnectionError):
        return f"the bus was lost: {what}; look at it with `llmbus doctor`"
    return f"unexpected {what}\nshow where with `llmbus --debug ...`"


if __name__ == "__main__":
    main()
