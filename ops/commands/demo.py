"""`llmbus demo`: real prompts from several services through a whole llmbus, shown from end to end."""

from pathlib import Path

from ops.commands.options import Json, run_quietly


def demo(as_json: Json = False) -> None:
    """Send real prompts through a whole llmbus and show it.

    Everything runs in a temporary place and is stopped at the end.
    """
    run_quietly(_demo(as_json=as_json))


async def _demo(*, as_json: bool) -> None:
    import tempfile

    from ops.commands.children import early_router

    with tempfile.TemporaryDirectory(prefix="llmbus-demo-") as directory:
        async with early_router(Path(directory)) as router:
            from ops.commands.demo_run import run_demo

            await run_demo(Path(directory), router, as_json=as_json)
