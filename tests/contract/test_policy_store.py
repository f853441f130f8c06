"""The policy's revisions on a real broker: checked before they are kept, never overwritten, one of them active."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import nats
import pytest
from nats.js.kv import KeyValue

from ops.policy_file import PolicyError
from ops.policy_store import PolicyStore, RevisionNotFoundError
from schemas.policy import Policy, Price
from schemas.prices import PriceTable
from subjects.streams import BUCKETS, POLICY_BUCKET

TEXT = """\
version: 1
nodes: {mac: {}}
providers: {loop: {dialect: loopback}}
models:
  coder: {nodes: [mac], provider: loop, backend: none, context_tokens: 1000, quality: 0.5, tokens_per_s: 10}
capabilities:
  code: {models: [coder]}
default: {models: [coder]}
# 한국어도 그대로 남는다
"""


@pytest.fixture
async def bucket(nats_url: str) -> AsyncIterator[KeyValue]:
    """A bucket of its own, made like the real one."""
    spec = next(spec for spec in BUCKETS if spec.name == POLICY_BUCKET)
    connection = await nats.connect(nats_url)
    try:
        js = connection.jetstream()
        name = f"policy_{uuid4().hex}"
        yield await js.create_key_value(bucket=name, history=spec.history, direct=True)
        await js.delete_key_value(name)
    finally:
        await connection.close()


@pytest.fixture
def store(bucket: KeyValue) -> PolicyStore:
    return PolicyStore(bucket)


async def test_an_empty_bucket_has_no_policy(store: PolicyStore) -> None:
    assert await store.active() is None
    assert await store.history() == []
    with pytest.raises(RevisionNotFoundError, match="no revision 1;"):
        await store.get(1)
    with pytest.raises(RevisionNotFoundError, match="no revision 1;"):
        await store.rollback(1)


async def test_what_is_applied_is_active_and_kept_as_it_was_written(store: PolicyStore) -> None:
    applied = await store.apply(TEXT, "p.yaml")
    assert (applied.number, applied.text) == (1, TEXT)
    assert applied.policy.models["coder"].quality == 0.5
    assert applied.created.tzinfo == UTC
    assert abs(applied.created - datetime.now(UTC)) < timedelta(minutes=1)
    assert await store.active() == applied == await store.get(1)


async def test_the_active_text_makes_no_new_revision(store: PolicyStore) -> None:
    first = await store.apply(TEXT, "p.yaml")
    assert await store.apply(TEXT, "other.yaml", note="again") == first
    assert len(await store.history()) == 1


async def test_a_bad_policy_is_refused_and_nothing_changes(store: PolicyStore) -> None:
    good = await store.apply(TEXT, "p.yaml")
    with pytest.raises(PolicyError, match=r"bad.yaml:3:29: providers.loop.dialect: cannot be \"loop\""):
        await store.apply(TEXT.replace("loopback", "loop"), "bad.yaml")
    assert await store.active() == good
    assert len(await store.history()) == 1


async def test_the_history_names_every_revision_and_rollback_moves_only_the_pointer(
    store: PolicyStore, bucket: KeyValue
) -> None:
    texts = [TEXT, TEXT + "# two\n", TEXT + "# three\n"]
    for number, text in enumerate(texts, 1):
        assert (await store.apply(text, "p.yaml", note=f"이유 {number}")).number == number
    assert (await store.rollback(1)).text == TEXT
    active = await store.active()
    assert active is not None
    assert active.number == 1
    kept = await store.history()
    assert [(each.number, each.active, each.text, each.note) for each in kept] == [
        (1, True, texts[0], "이유 1"),
        (2, False, texts[1], "이유 2"),
        (3, False, texts[2], "이유 3"),
    ]
    assert len({each.digest for each in kept}) == 3
    assert all(len(each.digest) == 12 for each in kept)
    assert (await store.apply(texts[1], "p.yaml")).number == 4


async def test_many_at_once_get_numbers_of_their_own(store: PolicyStore) -> None:
    texts = [f"{TEXT}# {each}\n" for each in range(8)]
    applied = await asyncio.gather(*(store.apply(text, "p.yaml") for text in texts))
    assert sorted(revision.number for revision in applied) == list(range(1, 9))
    assert [revision.text for revision in applied] == texts
    assert [each.text for each in await store.history()] == [
        revision.text for revision in sorted(applied, key=lambda each: each.number)
    ]
    active = await store.active()
    assert active in applied


async def test_a_number_is_never_given_twice(store: PolicyStore, bucket: KeyValue) -> None:
    for number in (1, 2, 3):
        await store.apply(f"{TEXT}# {number}\n", "p.yaml")
    await bucket.delete("r000001")
    await bucket.purge("r000003")
    assert [each.number for each in await store.history()] == [2]
    assert (await store.apply(TEXT, "p.yaml")).number == 4
    with pytest.raises(RevisionNotFoundError):
        await store.rollback(3)


async def test_a_revision_whose_writer_crashed_does_not_count(store: PolicyStore, bucket: KeyValue) -> None:
    await bucket.put("r000001", TEXT.encode())
    assert await store.history() == []
    assert (await store.apply(TEXT, "p.yaml")).number == 2


async def test_a_revision_that_todays_rules_refuse_is_listed_but_not_made_active(
    store: PolicyStore, bucket: KeyValue
) -> None:
    await bucket.put("r000001", b"version: 0\n")
    await bucket.put("r000001.about", b'{"created": "2025-01-01T00:00:00+00:00", "note": ""}')
    good = await store.apply(TEXT, "p.yaml")
    assert [each.number for each in await store.history()] == [1, 2]
    with pytest.raises(PolicyError, match="llm_policy/r000001:1:10: version: cannot be 0"):
        await store.rollback(1)
    assert await store.active() == good


async def test_a_pointer_that_is_no_number_is_named_and_mended_by_apply(store: PolicyStore, bucket: KeyValue) -> None:
    await bucket.put("active", b"newest")
    with pytest.raises(PolicyError, match="llm_policy/active:1:1: active: cannot be b'newest'"):
        await store.active()
    applied = await store.apply(TEXT, "p.yaml")
    assert await store.active() == applied


async def test_reading_leaves_no_consumer_behind(store: PolicyStore, bucket: KeyValue) -> None:
    applied = await store.apply(TEXT, "p.yaml")
    for _ in range(20):
        assert await store.active() == applied
    await asyncio.gather(*(store.history() for _ in range(20)))
    assert (await bucket.status()).stream_info.state.consumer_count == 0


LISTED = TEXT.replace("{dialect: loopback}", "{dialect: openai, url: https://api.openai.com/v1}").replace(
    "none", "gpt-4.1"
)


class Shop:
    """Prices that a test may change."""

    def __init__(self, usd: int = 1, day: int = 1) -> None:
        self.usd, self.day, self.asked = usd, day, 0

    async def resolve(self, policy: Policy) -> PriceTable | None:
        self.asked += 1
        cost = Decimal(self.usd)
        price = Price(input_usd_per_mtok=cost, output_usd_per_mtok=cost, source=f"shop, 2026-11-{self.day:02}")
        return PriceTable(version="shop", as_of=date(2026, 11, self.day), models=dict.fromkeys(policy.models, price))


def usd(policy: Policy) -> Decimal | None:
    price = policy.models["coder"].price
    return price.input_usd_per_mtok if price else None


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def priced(bucket: KeyValue, shop: Shop) -> PolicyStore:
    return PolicyStore(bucket, shop.resolve)


async def test_prices_are_looked_up_once_and_stand_beside_the_revision_for_ever(
    priced: PolicyStore, shop: Shop, bucket: KeyValue
) -> None:
    applied = await priced.apply(TEXT, "p.yaml")
    assert usd(applied.policy) == 1
    shop.usd = 2
    assert await PolicyStore(bucket, shop.resolve).active() == applied == await priced.get(1)
    assert shop.asked == 1
    assert applied.prices is not None
    assert (await bucket.get("r000001.prices")).value == applied.prices.encode()


async def test_new_prices_make_a_new_revision_of_the_same_text_and_another_day_does_not(
    priced: PolicyStore, shop: Shop
) -> None:
    first = await priced.apply(TEXT, "p.yaml")
    shop.day = 2
    assert await priced.apply(TEXT, "p.yaml") == first
    shop.usd = 3
    second = await priced.apply(TEXT, "p.yaml")
    assert (second.number, usd(second.policy)) == (2, Decimal(3))
    assert usd((await priced.get(1)).policy) == 1
    assert usd((await priced.rollback(1)).policy) == 1


async def test_the_library_knows_the_price_of_a_model_at_its_makers_address(store: PolicyStore) -> None:
    applied = await store.apply(LISTED, "p.yaml")
    assert usd(applied.policy) == 2
    price = applied.policy.models["coder"].price
    assert price is not None
    assert price.source is not None
    assert price.source.startswith("genai-prices ")
    assert await store.active() == applied


async def test_a_revision_from_before_prices_were_kept_is_read_as_it_is(bucket: KeyValue, priced: PolicyStore) -> None:
    await bucket.put("r000001", TEXT.encode())
    await bucket.put("r000001.about", b'{"created": "2025-01-01T00:00:00+00:00", "note": ""}')
    await bucket.put("active", b"1")
    old = await priced.active()
    assert old is not None
    assert (old.prices, usd(old.policy)) == (None, None)
    again = await priced.apply(TEXT, "p.yaml")
    assert (again.number, usd(again.policy)) == (2, Decimal(1))


class DyingBucket:
    """Dies in place of its nth write."""

    def __init__(self, bucket: KeyValue, writes: int) -> None:
        self._bucket, self._left = bucket, writes
        self.get = bucket.get

    async def put(self, key: str, value: bytes) -> int:
        self._write()
        return await self._bucket.put(key, value)

    async def update(self, key: str, value: bytes, last: int | None = None) -> int:
        self._write()
        return await self._bucket.update(key, value, last)

    def _write(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ConnectionResetError


@pytest.mark.parametrize("how", ["apply", "seed"])
@pytest.mark.parametrize("writes", range(4))
async def test_whoever_dies_while_writing_leaves_no_revision_without_its_prices(
    bucket: KeyValue, shop: Shop, priced: PolicyStore, how: str, writes: int
) -> None:
    dying = PolicyStore(DyingBucket(bucket, writes), shop.resolve)
    with pytest.raises(ConnectionResetError):
        await getattr(dying, how)(TEXT, "p.yaml")
    assert await priced.active() is None
    assert len(await priced.history()) == (writes == 3)
    for kept in await priced.history():
        assert usd((await priced.get(kept.number)).policy) == 1
    seeded = await priced.seed(TEXT, "p.yaml")
    assert (seeded.number, usd(seeded.policy)) == (1, Decimal(1))
    assert await priced.active() == seeded


async def test_a_seed_that_finds_another_text_gives_it_prices_of_its_own(bucket: KeyValue) -> None:
    async def by_text(policy: Policy) -> PriceTable:
        cost = Decimal(str(policy.models["coder"].quality))
        price = Price(input_usd_per_mtok=cost, output_usd_per_mtok=cost)
        return PriceTable(version="shop", as_of=date(2026, 11, 1), models={"coder": price})

    await bucket.put("r000001", TEXT.encode())
    seeded = await PolicyStore(bucket, by_text).seed(TEXT.replace("quality: 0.5", "quality: 0.25"), "p.yaml")
    assert (seeded.text, usd(seeded.policy)) == (TEXT, Decimal("0.5"))


async def test_many_who_seed_at_once_get_the_same_prices(bucket: KeyValue) -> None:
    stores = [PolicyStore(bucket, Shop(usd).resolve) for usd in range(1, 9)]
    seeded = await asyncio.gather(*(store.seed(TEXT, "p.yaml") for store in stores))
    assert len({usd(revision.policy) for revision in seeded}) == 1
    assert len({dataclasses.astuple(revision)[:2] for revision in seeded}) == 1


async def test_prices_that_cannot_be_read_are_an_error_and_not_a_missing_price(
    priced: PolicyStore, bucket: KeyValue
) -> None:
    await priced.apply(TEXT, "p.yaml")
    await bucket.put("r000001.prices", b'{"version": "shop", "as_of": "2026-11-01", "models": {"coder": {"new": 1}}}')
    with pytest.raises(PolicyError, match=r"llm_policy/r000001\.prices:1:1: models\.coder\.new: cannot be read"):
        await priced.active()
    assert (await priced.apply(TEXT, "p.yaml")).number == 2
