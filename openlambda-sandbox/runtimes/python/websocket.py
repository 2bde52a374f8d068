"""WebSockets (RFC 6455) for web.py: an ASGI application's `websocket` scopes.

Worker and balancer pass bytes; frames are made and checked here, in the function's own process. What the
client sends comes as the answer to the post by which the application accepts, while that post goes on with
what the client is sent.
"""

import posix
import sys
from collections import deque

import openlambda_bootstrap as bootstrap

web = bootstrap.load_beside("web")
asyncio = web.asyncio
base64, hashlib = bootstrap.own("base64"), bootstrap.own("hashlib")

CONTINUED, TEXT, BYTES, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
# The largest message, bytes: as large as the body of a call may be.
MOST_OF_A_MESSAGE = 6 << 20
# What waits for the application: messages, and bytes beside the last. Then no more is read.
MOST_MESSAGES = 64
MOST_WAITING = 1 << 20
# A client that is silent for so long is asked whether it is there, and given up after the same time.
SILENCE = 20
# The part of the time limit, and the most seconds of it, that an application has after it is told that the time is
# over, before the worker ends the whole instance.
LAST_PART, LAST_SECONDS = 0.1, 2


def accept_of(key):
    """The server's part of the handshake."""
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
    return base64.b64encode(digest.digest()).decode()


def frame(opcode, data):
    """A whole message, or control frame, as a server sends it: one frame, not masked."""
    if len(data) < 126:
        head = bytes((0x80 | opcode, len(data)))
    elif len(data) < 65536:
        head = bytes((0x80 | opcode, 126)) + len(data).to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + len(data).to_bytes(8, "big")
    return head + data


def unmask(data, key):
    """As numbers: byte by byte it takes a hundred times as long."""
    mask = key * (len(data) // 4 + 1)
    number = int.from_bytes(data, "little") ^ int.from_bytes(mask[: len(data)], "little")
    return number.to_bytes(len(data), "little")


def may_be_sent(code):
    """Whether a close frame may have it."""
    return 1000 <= code <= 1014 and code not in (1004, 1005, 1006) or 3000 <= code <= 4999


class Fault(Exception):
    """The client does not keep to the protocol."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Frames:
    """Takes what a client sends apart, as it comes."""

    def __init__(self):
        self.data = bytearray()
        # The message that has begun: its opcode and parts.
        self.opcode, self.parts, self.length = None, [], 0

    def next(self):
        """The next message or control frame, as opcode and payload; None when more has to come."""
        while True:
            took = self.frame()
            if took is None:
                return None
            final, opcode, payload = took
            if opcode >= CLOSE:
                return opcode, payload
            self.parts.append(payload)
            self.length += len(payload)
            self.opcode = opcode or self.opcode
            if final:
                message = self.opcode, self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
                self.opcode, self.parts, self.length = None, [], 0
                return message

    def frame(self):
        data = self.data
        if len(data) < 2:
            return None
        first, second = data[0], data[1]
        final, opcode, length = first >= 0x80, first & 15, second & 127
        if first & 0x70:
            raise Fault(1002, "reserved bits are set, and no extension was agreed upon")
        if opcode not in (CONTINUED, TEXT, BYTES, CLOSE, PING, PONG):
            raise Fault(1002, f"there is no opcode {opcode}")
        if second < 0x80:
            raise Fault(1002, "a frame of a client is not masked")
        if opcode >= CLOSE and (length > 125 or not final):
            raise Fault(1002, "a control frame is too long, or in parts")
        if opcode < CLOSE and (opcode == CONTINUED) == (self.opcode is None):
            raise Fault(1002, "a part of a message is out of order")
        at = 2
        if length > 125:
            at += 2 if length == 126 else 8
            if len(data) < at:
                return None
            length = int.from_bytes(data[2:at], "big")
        if length + self.length > MOST_OF_A_MESSAGE and opcode < CLOSE:
            raise Fault(1009, f"a message is over {MOST_OF_A_MESSAGE >> 20} MiB; send it in several")
        if len(self.parts) > 1 << 16:
            raise Fault(1009, "a message has too many parts")
        if len(data) < at + 4 + length:
            return None
        key = bytes(data[at : at + 4])
        payload = unmask(data[at + 4 : at + 4 + length], key)
        del data[: at + 4 + length]
        return final, opcode, payload


def text_of(data, what):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Fault(1007, f"{what} is not UTF-8") from None


def close_of(payload):
    """The code and reason of a client's close frame."""
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not may_be_sent(code):
        raise Fault(1002, "the code of the close frame is none")
    return code, text_of(payload[2:], "the reason of the close frame")


class Socket(web.Exchange):
    """One request for a WebSocket, and what comes of it."""

    def __init__(self, server, connection, request, body):
        super().__init__(server, connection, request, None)
        self.loop = asyncio.get_running_loop()
        # The application has accepted, and reads from then on.
        self.reading = None
        self.told_connect = False
        # It is over, for the client: with this code and reason, which the application is told, too.
        self.closed = None
        # Messages for the application, and how many bytes they have.
        self.inbox, self.waiting = deque(), 0
        # There is a message, or the end; there is room for messages.
        self.news, self.room = asyncio.Event(), asyncio.Event()
        # Two tasks must not wait for the same connection in old Pythons.
        self.draining = asyncio.Lock()
        self.heard = self.loop.time()
        self.asked = False
        self.timers = []
        # The application has closed it; it goes on although its time is over.
        self.has_closed = self.too_late = False

    def scope(self):
        scope = super().scope()
        del scope["method"]
        offered = self.request.first.get("sec-websocket-protocol", "")
        if offered:
            every = [value for name, value in self.request.headers if name == "sec-websocket-protocol"]
            offered = ",".join(every)
        self.offered = [name.strip() for name in offered.split(",") if name.strip()]
        scope.update(
            type="websocket",
            scheme="wss" if self.request.scheme == "https" else "ws",
            subprotocols=list(self.offered),
            extensions={"websocket.http.response": {}},
        )
        return scope

    # The application's end.

    async def run(self):
        remaining = self.request.context.get_remaining_time_in_millis() / 1000
        last = min(LAST_SECONDS, remaining * LAST_PART)
        self.limit = remaining
        self.application = asyncio.current_task()
        # In a context that knows the call, as what they print is its own.
        bootstrap.begin_call(self.request.id)
        self.at(remaining - last, self.expire)
        try:
            return await super().run()
        finally:
            for timer in self.timers:
                timer.cancel()
            if self.too_late and self.failure:
                error = TimeoutError("the application went on after it was told that its time limit is over")
                self.failure = bootstrap.describe(error)

    def returned(self):
        if self.reading is None:
            raise RuntimeError("the application returned without websocket.accept or websocket.close")

    def comes_of_leaving(self, error):
        # As Starlette tells its endpoints, which need not catch it.
        return super().comes_of_leaving(error) or type(error).__name__ == "WebSocketDisconnect"

    def at(self, seconds, what):
        timer = self.loop.call_later(seconds, what)
        self.timers = [other for other in self.timers if not other.cancelled() and other.when() > self.loop.time()]
        self.timers.append(timer)

    async def receive(self):
        if not self.told_connect:
            self.told_connect = True
            return {"type": "websocket.connect"}
        while not self.inbox:
            if self.closed is not None or self.complete:
                code, reason = self.closed or (1006, "")
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            self.news.clear()
            await self.news.wait()
        opcode, data, size = self.inbox.popleft()
        self.waiting -= size
        self.room.set()
        message = {"type": "websocket.receive", "bytes": None, "text": None}
        message["text" if opcode == TEXT else "bytes"] = data
        return message

    async def send(self, message):
        if posix.getpid() != self.server.own_pid:
            # A child that the application forked: its parent answers.
            return
        kind = message["type"]
        if self.reading is None:
            if kind == "websocket.accept" and self.head is None:
                return await self.accept(message)
            if kind == "websocket.close" and self.head is None:
                self.head = web.head_of(403, [])
                bootstrap.flush()
                self.finish()
                return self.connection.post(self.path + "/response", b"", self.head)
            if kind in ("websocket.http.response.start", "websocket.http.response.body"):
                return await super().send({**message, "type": kind[len("websocket.") :]})
        elif self.has_closed:
            raise RuntimeError(f"the application sent {kind} after websocket.close; send nothing more")
        elif kind == "websocket.close":
            if self.closed is None:
                code = message.get("code") or 1000
                reason = message.get("reason") or ""
                if not may_be_sent(code):
                    raise ValueError(f"a WebSocket cannot be closed with code {code}; use 1000, or one from 3000 to 4999")
                if len(reason.encode()) > 123:
                    raise ValueError("the reason of a close is over 123 bytes; give a shorter one")
                self.has_closed = True
                self.close(code, reason)
                await self.drain()
            return
        elif kind == "websocket.send":
            text, data = message.get("text"), message.get("bytes")
            if (text is None) == (data is None):
                raise ValueError("a websocket.send has either text or bytes; give one of them")
            if self.closed is not None:
                raise web.ClientLeft("the WebSocket is closed")
            self.put(TEXT if data is None else BYTES, text.encode() if data is None else bytes(data))
            return await self.drain()
        raise RuntimeError(
            f"the application sent {kind} out of order; send websocket.accept or websocket.close first, and "
            "websocket.send in between"
        )

    async def accept(self, message):
        headers = [["Sec-WebSocket-Accept", accept_of(self.request.first["sec-websocket-key"])]]
        chosen = message.get("subprotocol")
        if chosen is not None:
            if chosen not in self.offered:
                raise ValueError(f"the client has not offered the subprotocol {chosen!r}, but {self.offered}; choose of these")
            headers.append(["Sec-WebSocket-Protocol", chosen])
        for name, value in message.get("headers") or ():
            name, value = name.decode("latin-1"), value.decode("latin-1")
            if name.lower() == "sec-websocket-protocol":
                raise ValueError("sec-websocket-protocol is among the headers; give it as subprotocol")
            headers.append(web.checked(name, value))
        self.head = web.head_of(101, headers)
        bootstrap.flush()
        self.begun = True
        self.connection.begin(self.path + "/response", self.head + "TE: trailers\r\n")
        await self.connection.drain()
        self.heard = self.loop.time()
        self.at(SILENCE, self.ask)
        self.reading = asyncio.create_task(self.read())

    def end(self, leave):
        if self.reading is not None and self.closed is None:
            if self.failure:
                self.close(1011, "the application failed")
            else:
                self.close(1000, "")
        self.room.set()
        super().end(leave)

    def finish(self):
        super().finish()
        self.news.set()

    async def settle(self):
        """Resolves when the connection can have another request."""
        if self.reading is None:
            await super().settle()
        else:
            await self.reading

    # The client's end.

    async def read(self):
        try:
            _, headers = await self.connection.head()
            if "chunked" in headers.get("transfer-encoding", ""):
                await self.read_frames()
            else:
                # The worker knows the call no more.
                await self.connection.body(headers)
        finally:
            self.over(1006, "")

    async def read_frames(self):
        frames = Frames()
        try:
            while (data := await self.connection.piece()) is not None:
                self.heard, self.asked = self.loop.time(), False
                if self.closed is not None:
                    continue
                frames.data += data
                while self.closed is None and (message := frames.next()) is not None:
                    await self.take(*message)
                await self.drain()
        except Fault as fault:
            self.close(fault.code, fault.reason)
            while await self.connection.piece() is not None:
                pass
        if "x-openlambda-close" in self.connection.trailers:
            self.close(int(self.connection.trailers["x-openlambda-close"]), "the server is shutting down")

    async def take(self, opcode, data):
        if opcode == PING:
            self.put(PONG, data)
        elif opcode == CLOSE:
            code, reason = close_of(data)
            self.put(CLOSE, data)
            self.over(code, reason)
        elif opcode != PONG:
            size = len(data)
            if opcode == TEXT:
                data = text_of(data, "a text")
            self.inbox.append((opcode, data, size))
            self.waiting += size
            self.news.set()
            while (len(self.inbox) > MOST_MESSAGES or self.waiting > MOST_WAITING) and not self.complete:
                self.room.clear()
                await self.room.wait()
                self.heard = self.loop.time()

    def put(self, opcode, data):
        if not self.complete:
            self.connection.send(frame(opcode, data))

    async def drain(self):
        async with self.draining:
            await self.connection.drain()

    def close(self, code, reason):
        """Tells the client that it is over, if it is there to be told."""
        if self.closed is None:
            self.put(CLOSE, code.to_bytes(2, "big") + reason.encode()[:123])
            self.over(code, reason)

    def over(self, code, reason):
        """Nothing more comes, and nothing can be sent."""
        if self.closed is None:
            self.closed = code, reason
            self.left = True
        self.news.set()

    # Time.

    def ask(self):
        """Sees to it that a client is given up that has vanished without a word."""
        if self.closed is not None:
            return
        silent = self.loop.time() - self.heard
        # While the application takes nothing, nothing is read.
        if self.inbox or silent < SILENCE:
            self.asked = False
            return self.at(SILENCE - silent if silent < SILENCE else SILENCE, self.ask)
        if self.asked:
            return self.close(1011, "the client does not answer")
        self.asked = True
        self.put(PING, b"")
        self.at(SILENCE, self.ask)

    def expire(self):
        """The time limit comes up. The worker would end the instance, with all its other calls."""
        if self.reading is None:
            # Its client is told by a status.
            return
        if self.closed is None:
            limit = f"{self.limit:.0f} s"
            print(f"the WebSocket was closed after its time limit of {limit}; raise timeout_seconds in ol.toml", file=sys.stderr)
            self.close(1001, f"the time limit of {limit} is over")
        remaining = self.request.context.get_remaining_time_in_millis() / 1000
        self.at(remaining / 2, self.give_up)

    def give_up(self):
        self.too_late = True
        self.application.cancel()
