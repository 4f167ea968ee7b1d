"""redis.asyncio against a real Redis server, over TCP and a Unix socket."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError


@pytest.fixture(params=["tcp", "unix"])
def client_options(request: pytest.FixtureRequest, redis_server: Any) -> dict[str, Any]:
    if request.param == "unix":
        return {"unix_socket_path": redis_server.unix}
    return {"host": "127.0.0.1", "port": redis_server.port}


@asynccontextmanager
async def connected(options: dict[str, Any], **more: Any) -> AsyncIterator[redis.Redis]:
    """A client of an emptied database."""
    async with redis.Redis(**options, **more) as client:
        await client.flushdb()
        yield client


async def test_values_of_every_size(client_options: dict[str, Any]) -> None:
    async with connected(client_options) as client:
        for size in (0, 1, 1_000, 65_536, 5_000_000):
            value = random.Random(size).randbytes(size)
            assert await client.set("key", value)
            assert await client.get("key") == value
        assert await client.get("nothing") is None


async def test_pipeline_of_ten_thousand_commands(client_options: dict[str, Any]) -> None:
    async with connected(client_options) as client:
        async with client.pipeline(transaction=False) as pipe:
            for number in range(5_000):
                pipe.set(f"key:{number}", number)
                pipe.get(f"key:{number}")
            answers = await pipe.execute()
        assert answers[::2] == [True] * 5_000
        assert answers[1::2] == [b"%d" % number for number in range(5_000)]


async def test_transactions_that_collide_lose_no_increment(client_options: dict[str, Any]) -> None:
    """Optimistic locking: WATCH, read, MULTI, write; who was overtaken tries again."""
    async with connected(client_options) as client:
        collisions = 0

        async def increment() -> None:
            nonlocal collisions
            async with client.pipeline() as pipe:
                while True:
                    try:
                        await pipe.watch("counter")
                        value = int(await pipe.get("counter") or 0)
                        pipe.multi()
                        pipe.set("counter", value + 1)
                        await pipe.execute()
                        return
                    except WatchError:
                        collisions += 1

        await asyncio.gather(*(increment() for _ in range(30)))
        assert await client.get("counter") == b"30"
        assert collisions > 0


async def test_publish_and_subscribe(client_options: dict[str, Any]) -> None:
    """Each listener hears its own channel, its own pattern and the common channel, in publishing order."""
    listeners, rounds = 5, 100
    async with connected(client_options) as client:

        async def listen(number: int) -> list[bytes]:
            heard: list[bytes] = []
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(f"room:{number}", "everyone")
                await pubsub.psubscribe(f"seat:{number}:*")
                async for message in pubsub.listen():
                    heard.append(message["data"])
                    if message["data"] == b"end":
                        break
            return heard

        tasks = [asyncio.ensure_future(listen(number)) for number in range(listeners)]
        while await client.pubsub_numpat() < listeners:  # the pattern is what each one subscribes to last
            await asyncio.sleep(0.001)
        expected: list[list[bytes]] = [[] for _ in range(listeners)]
        for turn in range(rounds):
            for number in range(listeners):
                assert await client.publish(f"room:{number}", f"room {number} {turn}") == 1
                assert await client.publish(f"seat:{number}:{turn}", f"seat {number} {turn}") == 1
                expected[number] += [b"room %d %d" % (number, turn), b"seat %d %d" % (number, turn)]
            assert await client.publish("everyone", f"all {turn}") == listeners
            for heard in expected:
                heard.append(b"all %d" % turn)
        await client.publish("everyone", "end")
        assert await asyncio.gather(*tasks) == [[*heard, b"end"] for heard in expected]


async def test_blocking_pop_is_cancelled_and_the_next_one_gets_the_item(
    client_options: dict[str, Any],
) -> None:
    async with connected(client_options) as client:
        for _ in range(20):
            waiting = asyncio.ensure_future(client.blpop(["queue"], timeout=0))
            while not await blocked_clients(client):
                await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            while await blocked_clients(client):
                await asyncio.sleep(0.001)
        waiting = asyncio.ensure_future(client.blpop(["queue"], timeout=0))
        await client.rpush("queue", "item")
        assert list(await waiting) == [b"queue", b"item"]


async def blocked_clients(client: redis.Redis) -> int:
    clients: dict[str, Any] = await client.info("clients")
    return int(clients["blocked_clients"])


async def test_producer_and_consumers_over_a_stream(client_options: dict[str, Any]) -> None:
    async with connected(client_options) as client:
        await client.xgroup_create("work", "gang", id="0", mkstream=True)
        seen: Counter[int] = Counter()

        async def consume(name: str) -> None:
            while True:
                for _, entries in await client.xreadgroup("gang", name, {"work": ">"}, count=10, block=0):
                    for entry, fields in entries:
                        seen[int(fields[b"number"])] += 1
                        await client.xack("work", "gang", entry)

        consumers = [asyncio.ensure_future(consume(f"consumer {n}")) for n in range(4)]
        for start in range(0, 300, 20):
            await asyncio.gather(*(client.xadd("work", {"number": start + number}) for number in range(20)))
        while len(seen) < 300 or (await client.xpending("work", "gang"))["pending"]:
            await asyncio.sleep(0.005)
        for consumer in consumers:
            consumer.cancel()
        await asyncio.wait(consumers)
        assert seen == Counter(range(300))


async def test_pool_under_load_with_cancellations_mixes_up_no_answers(client_options: dict[str, Any]) -> None:
    """2,000 requests through 10 connections, every third one cancelled somewhere on its way."""
    rng = random.Random(3)
    pool = redis.BlockingConnectionPool.from_url(
        f"unix://{client_options['unix_socket_path']}"
        if "unix_socket_path" in client_options
        else f"redis://127.0.0.1:{client_options['port']}",
        max_connections=10,
        timeout=60,
    )
    client = redis.Redis.from_pool(pool)
    async with client:
        await client.flushdb()

        async def ask(number: int) -> bool:
            key, value = f"key:{number}", b"%d:" % number * rng.choice((1, 10, 2_000))
            await client.set(key, value)
            await asyncio.sleep(0)
            assert await client.get(key) == value, "another request's answer"
            return True

        async def ask_or_cancel(number: int) -> bool:
            task = asyncio.ensure_future(ask(number))
            if number % 3 == 0:
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            return not task.cancelled() and task.result()

        numbers, answered = iter(range(2_000)), Counter[bool]()

        async def worker() -> None:
            for number in numbers:
                answered[await ask_or_cancel(number)] += 1

        await asyncio.gather(*(worker() for _ in range(50)))
        assert answered.total() == 2_000
        assert answered[True] >= 1_333
        assert answered[False] > 100


async def test_killed_connections_are_made_anew(client_options: dict[str, Any]) -> None:
    async with connected(client_options) as client, redis.Redis(**client_options) as killer:
        for number in range(10):
            assert await client.incr("counter") == number + 1
            await killer.client_kill_filter(_type="normal", skipme=True)
    no_retry = Retry(NoBackoff(), 0)
    async with (
        redis.Redis(**client_options, retry=no_retry) as client,
        redis.Redis(**client_options) as killer,
    ):
        waiting = asyncio.ensure_future(client.blpop(["nothing"], timeout=0))
        while not await blocked_clients(killer):
            await asyncio.sleep(0.001)
        await killer.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(RedisConnectionError):
            await waiting
        assert await client.ping()


async def test_time_limit_of_an_answer(client_options: dict[str, Any]) -> None:
    no_retry = Retry(NoBackoff(), 0)
    async with redis.Redis(**client_options, socket_timeout=0.1, retry=no_retry) as client:
        with pytest.raises(RedisTimeoutError):
            await client.execute_command("BLPOP", "nothing", 30)
        assert await client.ping()


async def test_refused_connection(redis_server: Any) -> None:
    async with redis.Redis(
        unix_socket_path=f"{redis_server.unix}.none", retry=Retry(NoBackoff(), 0)
    ) as client:
        with pytest.raises(RedisConnectionError):
            await client.ping()


async def test_script_and_large_reply(client_options: dict[str, Any]) -> None:
    async with connected(client_options) as client:
        squares = client.register_script("local t = {} for i = 1, ARGV[1] do t[i] = i * i end return t")
        assert await squares(args=[50_000]) == [n * n for n in range(1, 50_001)]
