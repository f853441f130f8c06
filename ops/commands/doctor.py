"""`llmbus doctor`: what is installed, reachable and configured, and what to do about what is not."""

import typer

from ops.commands.options import DEFAULT_STORE, DEFAULT_URL, Json, NatsUrl, Store, run_quietly


def doctor(nats_url: NatsUrl = DEFAULT_URL, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Check this machine and the bus.

    Every line that is not ok says what to do. The exit code is 1 when one failed.
    """
    from ops.commands.checks import examine
    from ops.commands.screen import console, print_json, table

    found = run_quietly(examine(nats_url, store.expanduser().absolute()))
    if as_json:
        print_json(
            {"ok": not any(each.state == "fail" for each in found), "checks": [each._asdict() for each in found]}
        )
    else:
        made = table("", "check", ("what", {"overflow": "fold"}))
        for each in found:
            remedy = f"\n{each.remedy}" if each.remedy else ""
            made.add_row(each.mark(), each.name, f"{each.what}{remedy}")
        console().print(made)
    if any(each.state == "fail" for each in found):
        raise typer.Exit(1)
