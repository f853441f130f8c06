"""Who asks an edge: keys that name their clients, that end everywhere at once, and that stand nowhere afterwards."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from adapters.bus import JetStreamBus, open_bus
from adapters.key_ring import KeysChangedError, read_clients
from ops.client_keys import NewKey, create, limit, revoke, rotate
from ops.edge import edge
from ops.identity import BindError
from router.errors import LlmbusError
from subjects import Event, InvalidTokenError, parse
from subjects.streams import BUCKETS, EVENTS, STREAMS
from tests.support.bus import environment
from tests.support.edge import edge_on
from tests.support.inside import inside
from tests.support.keyed import CHAT, bearer, chat, key_of, refuses, taken, told
from tests.support.nats_server import OwnBroker, start_server

LLMBUS = str(Path(sys.executable).with_name("llmbus"))
SOON_S = 1.0
"""Within this time a key that has ended opens nothing anywhere."""
SECRET_AT = len("llmbus_0123456789ab_")


async def clients_on(bus: JetStreamBus) -> set[str]:
    """Who has asked, by the record."""
    found = {parse(letter.subject) async for letter in bus.read(EVENTS, "llm.evt.*.*.decided")}
    return {event.client for event in found if isinstance(event, Event)}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    while not await holds():
        await asyncio.sleep(0)


async def test_a_key_names_its_client_and_nothing_else_does() -> None:
    async with inside() as whole, edge_on(whole.url, keys=True) as http:
        key = await key_of(whole.bus, "npc-ai", http)
        other = await key_of(whole.bus, "rule-manager", http)
        lie = {"x-llm-client": "somebody-else"}
        assert (await http.post(CHAT, json=told(), headers=bearer(key) | lie)).status_code == 200
        assert (await http.post(CHAT, json=told(), headers={"x-api-key": other} | lie)).status_code == 200
        assert (await http.post(CHAT, json=told(), headers=lie)).status_code == 401
        assert await clients_on(whole.bus) == {"npc-ai", "rule-manager"}


WRONG: dict[str, Callable[[str], dict[str, str | bytes]]] = {
    "none": lambda _: {},
    "empty": lambda _: {"authorization": "Bearer", "x-api-key": ""},
    "no secret": lambda key: {"x-api-key": key.rpartition("_")[0]},
    "another secret": lambda key: {"x-api-key": key[:-1] + ("A" if key[-1] != "A" else "B")},
    "more of it": lambda key: {"x-api-key": key + "x"},
    "other case": lambda key: {"x-api-key": key.swapcase()},
    "unknown id": lambda key: {"x-api-key": f"llmbus_ffffffffffff_{key[SECRET_AT:]}"},
    "its digest": lambda key: {"x-api-key": f"llmbus_{'0' * 64}"},
    "basic": lambda key: {"authorization": f"Basic {key}"},
    "somebody else's": lambda _: {"authorization": "Bearer sk-ant-api03-AAAA"},
    "SQL": lambda _: {"authorization": "Bearer llmbus_' OR '1'='1' --_x"},
    "format": lambda _: {"x-api-key": "llmbus_%s%n{0.__class__}${jndi:ldap://x}_{{7*7}}"},
    "long": lambda _: {"x-api-key": "llmbus_" + "a" * 20_000},
    "Korean": lambda _: {"x-api-key": "llmbus_열쇠_열쇠".encode()},
    "no UTF-8": lambda _: {"authorization": b"Bearer llmbus_\xff\xfe_\x80"},
    "NUL escaped": lambda key: {"x-api-key": f"{key}%00"},
}


async def test_what_is_no_key_is_refused_in_the_same_words() -> None:
    async with inside(nodes=False) as whole, edge_on(whole.url, keys=True) as http:
        key = await key_of(whole.bus, "npc-ai", http)
        refusals = set()
        for name, wrong in WRONG.items():
            made = {field.encode(): v if isinstance(v, bytes) else v.encode() for field, v in wrong(key).items()}
            response = await http.post(CHAT, json=told(), headers={**made, b"idempotency-key": b"same"})
            assert response.status_code == 401, name
            assert response.headers["www-authenticate"] == "Bearer"
            refusals.add((response.text, str(sorted(response.headers.items() - {("date", response.headers["date"])}))))
        assert len(refusals) == 1
        assert json.loads(refusals.pop()[0])["error"]["code"] == "unauthorized"


async def test_a_revoked_key_is_dead_in_every_edge_within_a_second() -> None:
    async with (
        inside(nodes=False) as whole,
        edge_on(whole.url, keys=True) as one,
        edge_on(whole.url, keys=True) as two,
    ):
        made = await create(whole.bus, "npc-ai", note="", changes={})
        kept = await key_of(whole.bus, "npc-ai", one, two)
        await taken(made.text, one, two)
        await revoke(whole.bus, made.id)
        async with asyncio.timeout(SOON_S):
            for http in (one, two):
                await until(lambda http=http: refuses(http, made.text))  # type: ignore[misc]
        assert not await refuses(one, kept)
        await revoke(whole.bus, "npc-ai")
        async with asyncio.timeout(SOON_S):
            await until(lambda: refuses(two, kept))


async def test_a_rotated_key_opens_as_long_as_was_said() -> None:
    async with inside(nodes=False) as whole, edge_on(whole.url, keys=True) as http:
        first = await create(whole.bus, "npc-ai", note="", changes={"requests_per_minute": 1000})
        second = await rotate(whole.bus, first.id, overlap_ms=60_000)
        assert second.client.limits.requests_per_minute == 1000
        await taken(second.text, http)
        assert not await refuses(http, first.text)
        third = await rotate(whole.bus, second.id, overlap_ms=300)
        async with asyncio.timeout(0.3 + SOON_S):
            await until(lambda: refuses(http, second.text))
        await taken(third.text, http)
        fourth = await rotate(whole.bus, third.id, overlap_ms=0)
        async with asyncio.timeout(SOON_S):
            await until(lambda: refuses(http, third.text))
        await taken(fourth.text, http)


async def test_a_key_that_ended_unheard_is_dead_once_the_bus_is_back(broker: OwnBroker) -> None:
    async with edge_on(broker.url, keys=True) as http:
        async with open_bus(broker.url, name="looking") as bus:
            made = await create(bus, "npc-ai", note="", changes={})
        await taken(made.text, http)
        broker.kill()
        aside, url = start_server(broker.directory)
        async with open_bus(url, name="where no edge listens") as bus:
            await revoke(bus, made.id)
        aside.kill()
        aside.wait()
        broker.start()
        async with asyncio.timeout(10):
            await until(lambda: refuses(http, made.text))


async def test_on_this_machine_a_client_names_itself_unless_it_shows_a_key() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        key = await key_of(whole.bus, "npc-ai", http)
        dummy = bearer("dummy")
        assert (await http.post(CHAT, json=told(), headers=dummy)).status_code == 200
        assert (await http.post(CHAT, json=told(), headers=dummy | {"x-llm-client": "gm"})).status_code == 200
        assert (await http.post(CHAT, json=told(), headers=bearer(key) | {"x-llm-client": "gm"})).status_code == 200
        assert (await http.post(CHAT, json=told(), headers=bearer(key + "x"))).status_code == 401
        assert (await http.post(CHAT, json=told(), headers={"origin": "https://evil.example"})).status_code == 403
        assert (await http.post(CHAT, json=told(), headers={"host": "evil.example"})).status_code == 403
        assert await clients_on(whole.bus) == {"local", "gm", "npc-ai"}


async def test_no_key_is_told_to_anybody(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    async with inside() as whole, edge_on(whole.url, keys=True) as http:
        key = await key_of(whole.bus, "npc-ai", http, usd_per_day="1", tokens_per_minute=10_000, concurrent=3)
        secret = key[SECRET_AT:]
        answers = [
            await chat(http, key),
            await chat(http, key, model="nobody"),
            await chat(http, key[:-1] + "!"),
            await http.post(CHAT, json=told(), headers={"x-api-key": key, "authorization": "Bearer x"}),
            await http.get("/v1/nowhere", headers=bearer(key)),
        ]
        stored = [
            f"{letter.subject} {dict(letter.headers)} {letter.data.decode(errors='replace')}"
            for stream in (*(spec.name for spec in STREAMS), *(f"KV_{spec.name}" for spec in BUCKETS))
            async for letter in whole.bus.read(stream)
        ]
    out, err = capfd.readouterr()
    told_so = "\n".join((out, err, caplog.text, *stored, *(f"{a.headers} {a.text}" for a in answers)))
    assert "npc-ai" in told_so
    assert secret not in told_so
    assert secret[:20] not in told_so


async def test_an_edge_that_others_can_reach_needs_keys_and_tls_in_front() -> None:
    async with inside(nodes=False, routers=0) as whole:
        with pytest.raises(BindError, match="llmbus key create") as refused:
            await _opened(whole.url, behind_tls=True)
        assert "--behind-tls" not in str(refused.value)
        await key_of(whole.bus, "npc-ai")
        with pytest.raises(BindError, match="--behind-tls"):
            await _opened(whole.url)
        async with edge(whole.url, host="0.0.0.0", port=0, behind_tls=True) as address:  # noqa: S104 - the very case
            port = address.rpartition(":")[2]
            async with httpx.AsyncClient(trust_env=False) as http:
                response = await http.post(f"http://127.0.0.1:{port}{CHAT}", json=told())
            assert response.status_code == 401


async def _opened(url: str, **settings: bool) -> None:
    async with edge(url, host="0.0.0.0", port=0, **settings):  # noqa: S104 - the very case
        pass


def llmbus(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LLMBUS, "key", *arguments], capture_output=True, text=True, timeout=60, env=environment(NATS_URL=url),
        check=False,
    )  # fmt: skip


async def test_the_command_makes_lists_limits_rotates_and_revokes() -> None:
    async with inside(nodes=False) as whole, edge_on(whole.url, keys=True) as http:

        async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(llmbus, whole.url, *arguments)

        made = await run("create", "npc-ai", "--note", "게임", "--usd-per-day", "1.50", "--model", "echo")
        key = made.stdout.strip()
        assert key.startswith("llmbus_")
        assert key not in made.stderr
        assert "$1.5/day, only by echo" in made.stderr
        await taken(key, http)
        limited = json.loads((await run("limit", "npc-ai", "--concurrent", "2", "--json")).stdout)
        assert limited["limits"] == {"concurrent": 2, "usd_per_day": "1.5", "models": ["echo"]}
        [listed] = json.loads((await run("list", "--json")).stdout)
        assert (listed["client"], listed["note"], listed["keys"][0]["state"]) == ("npc-ai", "게임", "live")
        key_id = listed["keys"][0]["id"]
        following = json.loads((await run("rotate", key_id, "--overlap", "15m", "--json")).stdout)
        await taken(following["key"], http)
        assert (await run("revoke", "npc-ai")).stdout == f"npc-ai: {key_id}, {following['id']} ended\n"
        async with asyncio.timeout(SOON_S):
            await until(lambda: refuses(http, following["key"]))
        shown = await run("list")
        assert "ended" in shown.stdout
        assert key[SECRET_AT:] not in shown.stdout
        whole_key = await run("revoke", key)
        assert (whole_key.returncode, "no such key" in whole_key.stderr) == (1, True)
        assert key[SECRET_AT:] not in whole_key.stderr


async def test_what_cannot_be_done_with_a_key_is_refused_with_what_would_be_right() -> None:
    async with inside(nodes=False) as whole:
        made = await create(whole.bus, "npc-ai", note="", changes={})
        with pytest.raises(InvalidTokenError, match="1 to 64"):
            await create(whole.bus, "a b", note="", changes={})
        with pytest.raises(LlmbusError, match=r"no model 'ecko'.*echo"):
            await create(whole.bus, "gm", note="", changes={"models": ["ecko"]})
        with pytest.raises(LlmbusError, match=r"no capability 'cod'.*code"):
            await limit(whole.bus, "npc-ai", lift=False, changes={"capabilities": ["cod"]})
        with pytest.raises(LlmbusError, match="npc-ai"):
            await limit(whole.bus, "npc", lift=True, changes={})
        await revoke(whole.bus, made.id)
        with pytest.raises(LlmbusError, match="has ended"):
            await rotate(whole.bus, made.id, overlap_ms=0)
        together = (create(whole.bus, "npc-ai", note="", changes={}) for _ in range(4))
        done = await asyncio.gather(*together, return_exceptions=True)
        new = [each.id for each in done if isinstance(each, NewKey)]
        assert all(isinstance(each, NewKey | KeysChangedError) for each in done)
        [client] = [client for client, _ in (await read_clients(whole.bus)).values()]
        assert [key.id for key in client.keys] == [made.id, *new]
