"""What processes tell each other by Valkey; and that nothing depends on it, whether it is there, hangs or is dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fare_engine.answers import BatchAnswer
from fare_engine.errors import EnvelopeError
from fare_engine.pages.live import LiveFigures
from fare_engine.service.app import open_service
from fare_engine.service.signals import KEPT, Shaper, Signals
from fare_engine.settings import Settings
from fare_engine.store.database import sqlite_url
from tests.builders import HCMC
from tests.integration.desk import ADOPTED, AT_REST_KEY, BUS_FARE, SERVER_KEY, Stream, at, equip
from tests.served import free_port
from tests.servers import Valkey


def together(work: Callable[[Signals, Signals], Coroutine[Any, Any, None]], url: str | None) -> None:
    """Run something with two processes' signals."""

    async def run() -> None:
        both = Signals(url), Signals(url)
        tasks = [asyncio.create_task(signals.run()) for signals in both]
        try:
            if url is not None:
                await until(lambda: all(signals.connected for signals in both))
            await work(*both)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.01)


def test_what_one_process_says_the_others_hear_and_itself_not(valkey: Valkey) -> None:
    async def work(one: Signals, other: Signals) -> None:
        heard: list[tuple[str, bytes]] = []
        one.listen("topic", lambda body: heard.append(("one", body)))
        other.listen("topic", lambda body: heard.append(("other", body)))
        one.tell("topic", b"news")
        await until(lambda: bool(heard))
        await asyncio.sleep(0.05)
        assert heard == [("other", b"news")]

    together(work, valkey.url)


def test_junk_on_the_channel_harms_nobody(valkey: Valkey) -> None:
    import redis

    async def work(one: Signals, other: Signals) -> None:
        heard: list[bytes] = []
        other.listen("topic", heard.append)
        with redis.Redis.from_url(valkey.url) as client:
            client.publish("motthe/signals", b"\xff\xff junk")
        one.tell("topic", b"after it")
        await until(lambda: heard == [b"after it"])

    together(work, valkey.url)


def test_two_processes_count_a_device_s_messages_together(valkey: Valkey) -> None:
    async def work(one: Signals, other: Signals) -> None:
        first, second = Shaper(one, 50), Shaper(other, 50)
        assert not any(first.is_too_fast("bus-1", 1000) for _ in range(30))
        second.is_too_fast("bus-2", 1000)  # its second begins
        await until(lambda: second._counts["bus-1"] >= 30)
        assert sum(second.is_too_fast("bus-1", 1000) for _ in range(30)) == 10
        assert not second.is_too_fast("bus-1", 2000), "the next second is another one"

    together(work, valkey.url)


def test_a_server_that_is_killed_and_started_again_is_used_again() -> None:
    server = Valkey().start()

    async def work(one: Signals, other: Signals) -> None:
        heard: list[bytes] = []
        other.listen("topic", heard.append)
        await asyncio.to_thread(server.kill)
        for number in range(3 * KEPT):
            one.tell("topic", b"%d" % number)
        await until(lambda: not one.connected)
        await asyncio.to_thread(server.start)
        await until(lambda: one.connected and other.connected, 20)
        one.tell("topic", b"back")
        await until(lambda: b"back" in heard)

    try:
        together(work, server.url)
    finally:
        server.stop()


def test_the_live_page_of_one_process_counts_the_taps_of_another(tmp_path: Path, valkey: Valkey) -> None:
    data = store(tmp_path)
    both = [
        open_service(Settings(data=data, tariff=HCMC, adopt=ADOPTED, redis_url=valkey.url), lambda: at("12:00")) for _ in range(2)
    ]
    figures = [LiveFigures(service) for service in both]
    both[0].receipt.listener = figures[0].listen

    async def work() -> None:
        tasks = [asyncio.create_task(service.signals.run()) for service in both]
        await until(lambda: all(service.signals.connected for service in both))
        bus = Stream("bus-1")
        bus.board("08:00")
        await both[0].lane.submit(bus.new())
        await until(lambda: figures[1].now.taps == 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(work())
    assert [found.charged for found in figures] == [BUS_FARE, BUS_FARE]
    assert figures[0].now.by_network == figures[1].now.by_network
    for service in both:
        service.database.dispose()


def store(folder: Path) -> Path:
    """A folder with keys and a store with devices and cards."""
    data = folder / "store"
    (data / "keys").mkdir(parents=True)
    (data / "keys" / "server.key").write_bytes(SERVER_KEY)
    (data / "keys" / "at-rest.key").write_bytes(AT_REST_KEY)
    equip(sqlite_url(data / "motthe.db"))
    return data


@pytest.mark.parametrize("how", ["nobody is there", "it hangs"])
def test_without_it_taps_are_answered_as_always(tmp_path: Path, how: str) -> None:
    server = Valkey().start()
    data = store(tmp_path)
    url = server.url if how == "it hangs" else f"redis://127.0.0.1:{free_port()}/0"
    service = open_service(Settings(data=data, tariff=HCMC, adopt=ADOPTED, redis_url=url), lambda: at("12:00"))

    async def work() -> None:
        task = asyncio.create_task(service.signals.run())
        if how == "it hangs":
            await until(lambda: service.signals.connected)
            server.pause()
        bus = Stream("bus-1")
        slowest = 0.0
        for number in range(20):
            bus.board(f"08:{number:02d}")
            begun = time.monotonic()
            found = await service.lane.submit(bus.new())
            slowest = max(slowest, time.monotonic() - begun)
            assert isinstance(found, BatchAnswer)
            assert found.answers[0].fare in (BUS_FARE, 2000, 0)
            await asyncio.sleep(0.05)
        assert slowest < 1.0
        too_many = [await service.lane.submit(bus.message(1, 1)) for _ in range(60)]
        assert any(isinstance(found, EnvelopeError) and found.cause == "too_fast" for found in too_many)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(work())
    finally:
        server.resume()
        server.stop()
        service.database.dispose()
