"""What processes tell each other and may be lost: that the deny list or the rules changed, what the live page counts, how fast
a device sends.

With Redis (or Valkey) it reaches every process within moments; without, or while it is empty, slow or dead, each process has
its own and asks the database once a second for what matters. Nothing that is right or wrong depends on it, and no answer waits
for it: messages go out of a queue that drops the oldest, by a task of their own."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

CHANNEL = "motthe/signals"
KEPT = 2000
"""Messages that wait to go out; beyond it the oldest is forgotten."""
TIMEOUT_S = 1.0
RETRY_S = 2.0

Listener = Callable[[bytes], None]


class _Signal(msgspec.Struct, frozen=True, array_like=True):
    sender: str
    topic: str
    body: bytes


class Signals:
    """Tells listeners in this process at once, and those in other processes through Redis if there is one."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.connected = False
        self.dropped = 0
        self._name = secrets.token_hex(8)
        self._out: deque[bytes] = deque(maxlen=KEPT)
        self._wake = asyncio.Event()
        self._listeners: dict[str, list[Listener]] = defaultdict(list)

    def listen(self, topic: str, listener: Listener) -> None:
        """Be told what other processes say under a topic."""
        self._listeners[topic].append(listener)

    def tell(self, topic: str, body: bytes) -> None:
        """Say something to the other processes. Never waits and never fails."""
        if self.url is None:
            return
        self.dropped += len(self._out) == KEPT
        self._out.append(msgspec.msgpack.encode(_Signal(self._name, topic, body)))
        self._wake.set()

    async def run(self) -> None:
        """Speak and listen until cancelled; begin again whenever Redis fails."""
        if self.url is None:
            return
        while True:
            client = redis.Redis.from_url(self.url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
            try:
                await self._speak_and_listen(client)
            except (RedisError, OSError, TimeoutError) as error:
                if self.connected:
                    logger.warning("no signals to other processes: %s", error)
            finally:
                self.connected = False
                with suppress(RedisError, OSError, TimeoutError):
                    await client.aclose()
            await asyncio.sleep(RETRY_S)

    async def _speak_and_listen(self, client: redis.Redis) -> None:
        async with client.pubsub(ignore_subscribe_messages=True) as heard:
            await heard.subscribe(CHANNEL)
            self.connected = True
            speaking = asyncio.create_task(self._speak(client))
            try:
                while not speaking.done():
                    message = await heard.get_message(timeout=TIMEOUT_S)
                    if message is not None:
                        self._take(message["data"])
                await speaking
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)

    async def _speak(self, client: redis.Redis) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._out:
                pipeline = client.pipeline(transaction=False)
                for _ in range(min(len(self._out), 200)):
                    pipeline.publish(CHANNEL, self._out.popleft())
                await pipeline.execute()

    def _take(self, data: bytes) -> None:
        """What came in; whatever it is, it harms nobody."""
        try:
            signal = msgspec.msgpack.decode(data, type=_Signal)
            if signal.sender != self._name:
                for listener in self._listeners[signal.topic]:
                    listener(signal.body)
        except Exception:
            logger.exception("a signal could not be used")


class Shaper:
    """How many messages each device sent in the running second, in all processes as far as is known.

    Beyond `most` a second a device is told to come back later, before anything is looked up for it. Counts of other processes
    come as signals; without them each process allows as many."""

    TOPIC = "rates"

    def __init__(self, signals: Signals, most: int) -> None:
        self.signals = signals
        self.most = most
        self._second = 0
        self._counts: Counter[str] = Counter()
        self._untold: Counter[str] = Counter()
        signals.listen(self.TOPIC, self._hear)

    def is_too_fast(self, device_id: str, now: int) -> bool:
        """Count a message of a device, and say whether it is one too many."""
        second = now // 1000
        if second != self._second:
            self._second = second
            self._counts.clear()
            self._untold.clear()
        self._counts[device_id] += 1
        self._untold[device_id] += 1
        if self._untold[device_id] >= max(1, self.most // 10):  # a busy device is spoken of, a usual one never
            self.signals.tell(self.TOPIC, msgspec.msgpack.encode((second, device_id, self._untold.pop(device_id))))
        return self._counts[device_id] > self.most

    def _hear(self, body: bytes) -> None:
        second, device_id, count = msgspec.msgpack.decode(body, type=tuple[int, str, int])
        if second == self._second:
            self._counts[device_id] += count
