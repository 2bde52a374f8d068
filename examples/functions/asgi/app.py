"""A web application as ASGI 3 has it, without a framework. One of FastAPI or Starlette is the same to
the platform: a coroutine that gets `scope`, `receive` and `send`.
"""

import asyncio
import json
from urllib.parse import parse_qs

# How long a request waits for others to come.
LONGEST_SECONDS = 10


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(scope["state"], receive, send)
    path = scope["path"].removeprefix(scope["root_path"])
    if scope["type"] == "websocket":
        return await upper(receive, send)
    if path == "/ticks":
        return await ticks(scope, send)
    if path == "/meet":
        return await meet(scope["state"]["room"], scope, send)
    if path == "/echo":
        body = (await receive())["body"]
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        return await answer(send, 200, body, kinds[0] if kinds else b"application/octet-stream")
    await answer(send, 404, json.dumps({"error": f"there is nothing at {path}"}).encode())


async def lifespan(state, receive, send):
    """What is made before the first request and shared by all."""
    while (message := await receive())["type"] == "lifespan.startup":
        state["room"] = Room()
        await send({"type": "lifespan.startup.complete"})
    await send({"type": message["type"] + ".complete"})


async def ticks(scope, send):
    """Server-sent events: each goes to the client when it happens."""
    count = int(parse_qs(scope["query_string"].decode()).get("count", ["3"])[0])
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for n in range(count):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % n, "more_body": True})
        await asyncio.sleep(0.05)
    await send({"type": "http.response.body"})


async def upper(receive, send):
    """A WebSocket that says everything louder."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": (message["text"] or "").upper()})


class Room:
    def __init__(self):
        self.changed = asyncio.Condition()
        self.there = self.most = 0


async def meet(room, scope, send):
    """Answers when as many requests are here as its query says: they are all in one event loop."""
    guests = int(parse_qs(scope["query_string"].decode()).get("guests", ["1"])[0])
    async with room.changed:
        room.there += 1
        room.most = max(room.most, room.there)
        room.changed.notify_all()
        try:
            wait = room.changed.wait_for(lambda: room.most >= guests)
            await asyncio.wait_for(wait, LONGEST_SECONDS)
        except asyncio.TimeoutError:
            pass
        room.there -= 1
    await answer(send, 200, json.dumps({"met": room.most >= guests}).encode())


async def answer(send, status, body, kind=b"application/json"):
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
