"""How everything is, in one answer on the bus, whatever is away."""

from ops.compose import node
from schemas import FleetHealth
from subjects import HealthCall
from tests.support.inside import POLICY, Inside, inside

TWO = POLICY.replace("  bench: {}\n", "  bench: {}\n  other: {about: 둘째 기계, memory_gb: 64}\n")


async def asked(whole: Inside) -> FleetHealth:
    return FleetHealth.decode((await whole.bus.client.request(str(HealthCall()), b"", timeout=5)).data)


async def test_one_answer_holds_every_node_with_its_backends_and_models() -> None:
    async with inside(policy=TWO) as whole:
        async with node(whole.url, "other"):
            health = await asked(whole)
        assert (health.status, health.why_not, health.routers) == ("ok", (), 1)
        assert health.bus.up
        assert {name: each.status for name, each in health.nodes.items()} == {"bench": "ok", "other": "ok"}
        bench = health.nodes["bench"]
        assert bench.backends["loopback"].reachable
        assert bench.models.keys() == {"echo", "spare"}
        assert bench.memory_free_bytes
        assert bench.heard_ms_ago is not None
