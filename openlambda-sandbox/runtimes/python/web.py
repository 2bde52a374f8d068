"""Runs a web application for bootstrap.py: a WSGI callable (PEP 3333), or an ASGI 3 application.

Both get the HTTP request as it came, and what they send goes to the client as they send it. The
worker is asked for requests with `OpenLambda-Raw`; `OpenLambda-Head` carries the JSON of a head, the
request's from the worker (method, root, path, query, headers) and the reply's to it (status, headers).

A reply that is whole when it begins is posted at once; any other is streamed, piece by piece.
"""

import io
import posix
import sys
from _contextvars import copy_context

import openlambda_bootstrap as bootstrap

RAW = "OpenLambda-Raw: 1\r\n"
FAREWELL = "OpenLambda-Farewell: 1\r\n"
# ASGI applications may be asked for WebSockets; websocket.py beside this file serves them.
WEBSOCKET = "OpenLambda-WebSocket: 1\r\n"
# The worker reads the head of a reply from one header.
MOST_HEAD = 65536
# A whole reply up to this size is posted at once.
MOST_AT_ONCE = 1 << 20
# Statuses whose replies have no body, and those to HEAD (RFC 9110, section 6.4.1).
WITHOUT_BODY = (204, 304)


class Request:
    """What both kinds of applications are told about, from a head of the worker's."""

    def __init__(self, headers):
        head = bootstrap.loads(headers["openlambda-head"].encode("latin-1").decode())
        self.id = headers["lambda-runtime-aws-request-id"]
        self.path_of_reply = "invocation/" + self.id
        self.context = bootstrap.Context(headers)
        self.method, self.root, self.path = head["method"], head["root"], head["path"]
        self.query = head["query"] or ""
        self.is_websocket = head.get("websocket", False)
        self.headers = head["headers"]
        self.first = first = {}
        for name, value in self.headers:
            first.setdefault(name, value)
        # Who terminates TLS before the balancer says so; who calls it is told by the balancer.
        self.scheme = "https" if first.get("x-forwarded-proto", "").lower() == "https" else "http"
        self.client = first.get("x-forwarded-for", "").split(",")[0].strip() or "127.0.0.1"
        host, port = first.get("host", "localhost"), "443" if self.scheme == "https" else "80"
        before, colon, after = host.rpartition(":")
        if colon and after.isdecimal():
            host, port = before, after
        self.host, self.port = host, port


def unquote(text):
    """The bytes that a part of a URL stands for."""
    first, *parts = text.encode().split(b"%")
    decoded = [first]
    for part in parts:
        try:
            # (Which would pass over white space.)
            if not part[:2].isalnum():
                raise ValueError
            decoded.append(bytes.fromhex(part[:2].decode()) + part[2:])
        except ValueError:
            decoded.append(b"%" + part)
    return b"".join(decoded)


def head_of(status, headers):
    """The header that carries a reply's head."""
    head = bootstrap.encode({"status": status, "headers": headers})
    if len(head) > MOST_HEAD:
        raise ValueError("the head of the reply is over 64 KiB; send less in headers")
    return "OpenLambda-Head: " + head.decode("utf-8") + "\r\n"


def checked(name, value):
    """The header, after a check that its text cannot end it early or begin another header."""
    if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
        if not name or any(c <= " " or c >= "\x7f" or c in '"(),/:;<=>?@[\\]{}' for c in name):
            raise ValueError(f"{name!r} cannot be the name of a header; use letters, digits and -")
    if not value.isprintable() and any((c < " " and c != "\t") or c == "\x7f" for c in value):
        raise ValueError(f"the header {name} holds control characters: {value!r}; leave out line breaks and the like")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the header {name} holds characters beyond Latin-1: {value!r}; quote them, as urllib.parse.quote does") from None
    return [name, value]


# WSGI


def serve_wsgi(connection, application, style):
    """One slot: request after request, until the worker ends the process."""
    own_pid = posix.getpid()
    upcoming = None
    while True:
        headers, body = bootstrap.next_event(connection, RAW, told=upcoming)
        request = Request(headers)
        bootstrap.begin_call(request.id)
        reply = WsgiReply(connection, request)
        leave = failure = None
        try:
            environ = environ_of(request, body)
            copy_context().run(call_wsgi, application, environ, reply)
            del environ
        except ClientLeft:
            pass
        except SystemExit as error:
            leave = error
            message = f"The application exited with {error.code!r}"
            failure = bootstrap.describe(error, "Runtime.ExitError", message)
        except BaseException as error:
            failure = bootstrap.describe(error)
        bootstrap.end_call(request.id)
        bootstrap.flush()
        if posix.getpid() != own_pid:
            # A child that the application forked: its parent answers, and goes on.
            posix._exit(bootstrap.exit_code(leave) if leave else 1 if failure else 0)
        upcoming = reply.end(failure, bootstrap.EXITING if leave else "")
        if leave is not None:
            posix._exit(bootstrap.exit_code(leave))


def environ_of(request, body):
    """PEP 3333's environ: text of which each character is a byte."""
    target = request.root + request.path + ("?" + request.query if request.query else "")
    environ = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": unquote(request.root).decode("latin-1"),
        "PATH_INFO": unquote(request.path).decode("latin-1"),
        "QUERY_STRING": request.query.encode().decode("latin-1"),
        "REQUEST_URI": target.encode().decode("latin-1"),
        "REMOTE_ADDR": request.client,
        "SERVER_NAME": request.host,
        "SERVER_PORT": request.port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "OpenLambda",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": bootstrap.SLOTS > 1,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "openlambda.context": request.context,
    }
    if body or "content-length" in request.first:
        environ["CONTENT_LENGTH"] = str(len(body))
    for name, value in request.headers:
        if name == "content-type":
            environ["CONTENT_TYPE"] = value
        elif name != "content-length" and "_" not in name:
            # (`x_a` and `x-a` would be one variable: only one of them can be meant.)
            key = "HTTP_" + name.upper().replace("-", "_")
            if key in environ:
                value = environ[key] + ("; " if name == "cookie" else ",") + value
            environ[key] = value
    return environ


def call_wsgi(application, environ, reply):
    result = application(environ, reply.start_response)
    try:
        # What has one piece is whole with it; of anything else only its end shows that.
        reply.only_piece = hasattr(result, "__len__") and len(result) == 1
        for piece in result:
            reply.write(piece)
            if reply.without_body or reply.left:
                break
        if reply.head is None:
            raise RuntimeError("the application returned without calling start_response")
    finally:
        if hasattr(result, "close"):
            result.close()


class ClientLeft(ConnectionError):
    """Nobody is there to get what the application sends."""


def too_short(sent, length):
    """What is said of a reply that ends before the length that was declared."""
    message = f"the application sent {sent} bytes and its Content-Length says {length}"
    return bootstrap.describe(RuntimeError(message))


def comes_of_leaving(error):
    """Whether frameworks have made this error of a ClientLeft."""
    for _ in range(16):
        if error is None or isinstance(error, ClientLeft):
            break
        error = error.__cause__ or error.__context__
    return error is not None


class WsgiReply:
    """One reply on its way to the worker."""

    def __init__(self, connection, request):
        self.connection, self.request = connection, request
        self.head = None
        self.begun = False
        self.without_body = request.method == "HEAD"
        self.only_piece = False
        # What the application has declared, and sent.
        self.length = None
        self.sent = 0
        self.whole = None
        # The client has, in the middle of the reply.
        self.left = False

    def start_response(self, status, headers, exc_info=None):
        if exc_info:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.head is not None:
            raise AssertionError("the application called start_response a second time, without exc_info")
        code = status.split(" ", 1)[0]
        if not (len(code) == 3 and code.isdecimal()):
            raise ValueError(f"the status {status!r} does not begin with a number of three digits; write it as '200 OK'")
        self.without_body = self.request.method == "HEAD" or int(code) in WITHOUT_BODY
        self.length = self.whole = None
        checked_headers = []
        for name, value in headers:
            checked_headers.append(checked(name, value))
            if name.lower() == "content-length" and value.isdecimal():
                self.length = int(value)
        self.head = head_of(int(code), checked_headers)
        return self.push

    def write(self, data):
        if self.head is None:
            raise AssertionError("the application sent data before it called start_response")
        if not isinstance(data, bytes):
            raise TypeError(f"the application sent data of type {type(data).__name__}, not bytes; encode it")
        if not data or self.without_body:
            return
        if self.length is not None:
            # As other servers do: nobody would understand what is beyond.
            data = data[: self.length - self.sent]
            if not data:
                return
            self.sent += len(data)
        if self.whole is None and not self.begun:
            whole = self.only_piece if self.length is None else len(data) == self.length
            if len(data) <= MOST_AT_ONCE and whole:
                self.whole = data
                return
            self.begin()
        elif not self.begun:
            self.begin()
            self.connection.send(self.whole)
        self.left = self.left or self.connection.left()
        if not self.left:
            self.connection.send(data)

    def push(self, data):
        """What applications get that do not return pieces: only an error can tell them to stop."""
        self.write(data)
        if self.left:
            raise ClientLeft("the client has left")

    def begin(self):
        self.begun = True
        # What was printed so far comes before what the client sees.
        bootstrap.flush()
        self.connection.begin(self.request.path_of_reply + "/response", self.head)

    def end(self, failure, exiting):
        """Returns what `Connection.answer` does."""
        path = self.request.path_of_reply
        short = self.length is not None and self.sent < self.length and not self.without_body
        if short and self.head is not None and not failure and not self.left:
            failure = too_short(self.sent, self.length)
            if not self.begun:
                self.begin()
        if self.begun:
            self.connection.end(bootstrap.trailers(failure, exiting) if failure else "")
        elif failure:
            self.connection.request("POST", path + "/error", failure, exiting)
        else:
            return self.connection.answer(path + "/response", self.whole or b"", self.head)


# ASGI


def serve_asgi(connection, application, style):
    """All slots, each a task of one event loop, until the worker ends the process."""
    global asyncio, socket
    asyncio, socket = bootstrap.own("asyncio", stays=True), bootstrap.own("socket")
    asyncio.run(AsgiServer(application).serve(connection))


class AsgiServer:
    VERSIONS = {"version": "3.0", "spec_version": "2.4"}

    def __init__(self, application):
        self.application = application
        self.state = {}
        self.own_pid = posix.getpid()
        # Requests that are answered now, by the ids that the worker knows.
        self.exchanges = {}
        self.listening = None

    async def serve(self, connection):
        lifespan = Lifespan(self)
        failure = await lifespan.start()
        if failure is not None:
            bootstrap.flush()
            connection.request("POST", "init/error", failure)
            posix._exit(1)
        place = bootstrap.WORKER
        connections = [connection]
        connections += [bootstrap.Connection(place) for _ in range(bootstrap.SLOTS - 1)]
        asks = RAW + WEBSOCKET + (FAREWELL if lifespan.known else "")
        slots = [self.slot(await AsyncConnection.of(other), asks) for other in connections]
        await asyncio.gather(*slots)
        # The worker has no more requests for any of them.
        await lifespan.end()
        bootstrap.flush()
        posix._exit(0)

    async def slot(self, connection, asks):
        """Request after request. Each has a task of its own, and with it context variables."""
        while (event := await connection.next_event(asks)) is not None:
            headers, body = event
            request = Request(headers)
            kind = bootstrap.load_beside("websocket").Socket if request.is_websocket else Exchange
            exchange = kind(self, connection, request, body)
            self.exchanges[exchange.request.id] = exchange
            leave = await asyncio.create_task(exchange.run())
            del self.exchanges[exchange.request.id]
            if posix.getpid() != self.own_pid:
                # A child that the application forked: its parent answers, and goes on.
                bootstrap.flush()
                posix._exit(bootstrap.exit_code(leave) if leave else 0)
            exchange.end(leave)
            await exchange.settle()
            if leave is not None:
                posix._exit(bootstrap.exit_code(leave))

    def listen(self):
        """Sees to it that applications are told when clients leave; for the first that asks."""
        if self.listening is None:
            self.listening = asyncio.create_task(self.tell_departures())

    async def tell_departures(self):
        connection = bootstrap.Connection(bootstrap.WORKER)
        connection = await AsyncConnection.of(connection)
        while True:
            connection.writer.write(bootstrap.request_head("GET", "invocation/departed", 0))
            status, _, body = await connection.reply()
            if status != 200:
                return
            exchange = self.exchanges.get(bootstrap.loads(body.decode())["id"])
            if exchange is not None:
                exchange.left = True
                exchange.departed.set()


class Lifespan:
    """The application's startup and shutdown, where it has them."""

    def __init__(self, server):
        self.server = server
        self.inbox = asyncio.Queue()
        # None when it has started, or why it has not.
        self.started = asyncio.get_running_loop().create_future()
        self.known = False
        self.task = None

    async def start(self):
        self.inbox.put_nowait({"type": "lifespan.startup"})
        self.task = asyncio.create_task(self.run())
        return await self.started

    async def end(self):
        if not self.task.done():
            self.inbox.put_nowait({"type": "lifespan.shutdown"})
            await self.task

    async def run(self):
        scope = {"type": "lifespan", "asgi": AsgiServer.VERSIONS, "state": self.server.state}
        failure = None
        try:
            await self.server.application(scope, self.inbox.get, self.send)
        except SystemExit as error:
            message = f"The application exited with {error.code!r} when it started"
            failure = bootstrap.describe(error, "Runtime.ExitError", message)
        except BaseException as error:
            # It knows no lifespan, which is its right; unless it has said so.
            if self.known:
                bootstrap.print_error(error, bootstrap.OWN_FILES)
        self.tell(failure)

    async def send(self, message):
        if message["type"] == "lifespan.startup.complete":
            self.known = True
            self.tell(None)
        elif message["type"] == "lifespan.startup.failed":
            error = RuntimeError(message.get("message") or "the application did not start, and gave no reason")
            self.tell(bootstrap.describe(error, "Runtime.StartupFailed"))

    def tell(self, failure):
        if not self.started.done():
            self.started.set_result(failure)


class Exchange:
    """One request and its reply."""

    def __init__(self, server, connection, request, body):
        self.server = server
        self.connection, self.request, self.body = connection, request, body
        self.path = request.path_of_reply
        self.head = self.length = self.failure = None
        self.sent = 0
        self.begun = False
        # The reply has been sent as a whole.
        self.complete = False
        # The client has left before that.
        self.left = False
        # Either of the two.
        self.departed = asyncio.Event()
        self.without_body = request.method == "HEAD"

    async def run(self):
        """Returns the SystemExit by which the application wants to end the process."""
        bootstrap.begin_call(self.request.id)
        leave = None
        try:
            await self.server.application(self.scope(), self.receive, self.send)
            if not self.complete and not self.left:
                self.returned()
        except SystemExit as error:
            leave = error
            message = f"The application exited with {error.code!r}"
            self.failure = bootstrap.describe(error, "Runtime.ExitError", message)
        except BaseException as error:
            if self.left and self.comes_of_leaving(error):
                return None
            self.failure = bootstrap.describe(error)
            if self.complete:
                # The client has its reply, so only the log can be told.
                bootstrap.print_error(error, bootstrap.OWN_FILES)
        finally:
            bootstrap.end_call(self.request.id)
        return leave

    def returned(self):
        raise RuntimeError("the application returned before its reply was complete")

    def comes_of_leaving(self, error):
        return comes_of_leaving(error)

    def scope(self):
        request = self.request
        # With the path to the function before it, as servers do since the specification says so.
        path = request.root + request.path
        return {
            "type": "http",
            "asgi": AsgiServer.VERSIONS,
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": unquote(path).decode("utf-8", "replace"),
            "raw_path": path.encode(),
            "query_string": request.query.encode(),
            "root_path": unquote(request.root).decode("utf-8", "replace"),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in request.headers],
            "client": (request.client, 0),
            "server": (request.host, int(request.port)),
            "state": self.server.state.copy(),
            "extensions": {},
            "openlambda.context": request.context,
        }

    async def receive(self):
        if self.body is not None:
            body, self.body = bytes(self.body), None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self.departed.is_set():
            self.server.listen()
        await self.departed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if posix.getpid() != self.server.own_pid:
            # A child that the application forked: its parent answers.
            return
        kind = message["type"]
        if kind == "http.response.start" and self.head is None:
            return self.start(message["status"], message.get("headers", ()))
        if kind != "http.response.body" or self.head is None:
            raise RuntimeError(f"the application sent {kind} out of order; send http.response.start once, then http.response.body")
        data, more = bytes(message.get("body", b"")), message.get("more_body", False)
        if self.complete:
            if data and not self.without_body:
                raise RuntimeError("the application sent data after the end of its reply")
            return
        if self.without_body:
            data, more = b"", False
        if self.left:
            raise ClientLeft("the client has left")
        if self.length is not None and not self.without_body:
            # As other servers do: nobody would understand what is beyond, and nothing else can come.
            data = data[: self.length - self.sent]
            self.sent += len(data)
            if self.sent == self.length:
                more = False
            elif not more:
                self.failure = too_short(self.sent, self.length)
        if not self.begun:
            bootstrap.flush()
            if len(data) <= MOST_AT_ONCE and not more and not self.failure:
                self.finish()
                self.connection.post(self.path + "/response", data, self.head)
                return
            self.begun = True
            self.server.listen()
            self.connection.begin(self.path + "/response", self.head)
        self.connection.send(data)
        if not more:
            bootstrap.flush()
            self.finish()
            self.connection.end(bootstrap.trailers(self.failure) if self.failure else "")
        await self.connection.drain()

    def start(self, status, headers):
        checked_headers = []
        for name, value in headers:
            name, value = name.decode("latin-1"), value.decode("latin-1")
            checked_headers.append(checked(name, value))
            if name.lower() == "content-length" and value.isdecimal():
                self.length = int(value)
        self.without_body = self.request.method == "HEAD" or status in WITHOUT_BODY
        self.head = head_of(status, checked_headers)

    def finish(self):
        # What is printed after the reply is no call's any more.
        bootstrap.end_call(self.request.id)
        self.complete = True
        self.departed.set()

    def end(self, leave):
        """Sends what the application has left open."""
        bootstrap.flush()
        if self.complete:
            return
        self.finish()
        exiting = bootstrap.EXITING if leave else ""
        if self.begun:
            self.connection.end(bootstrap.trailers(self.failure, exiting) if self.failure else "")
        else:
            self.connection.post(self.path + "/error", self.failure, exiting)

    async def settle(self):
        """Resolves when the connection can have another request."""
        await self.connection.reply()


class AsyncConnection:
    """A connection to the worker in an event loop. What is written goes in order, and as a whole
    whoever is cancelled; only `reply` and `next_event` read."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, connection):
        opened = socket.socket(fileno=connection.socket.detach())
        opened.setblocking(False)
        # A head of the worker's has up to 90 headers of the client's in one line.
        return cls(*await asyncio.open_connection(sock=opened, limit=4 << 20))

    async def next_event(self, asks):
        """None when there are no more."""
        self.writer.write(bootstrap.request_head("GET", "invocation/next", 0, asks))
        status, headers, body = await self.reply()
        if status == 410:
            return None
        if status != 200:
            raise RuntimeError(f"the worker gave no next event, but answered {status}: {body!r}")
        return headers, body

    def post(self, path, body, headers):
        self.writer.write(bootstrap.request_head("POST", path, len(body), headers))
        self.writer.write(body)

    def begin(self, path, headers):
        self.writer.write(bootstrap.stream_head(path, headers))

    def send(self, data):
        self.writer.writelines(bootstrap.chunk(data))

    def end(self, trailers=""):
        self.writer.write(bootstrap.stream_end(trailers))

    async def drain(self):
        await self.writer.drain()

    async def reply(self):
        status, headers = await self.head()
        return status, headers, await self.body(headers)

    async def head(self):
        return bootstrap.parse_head((await self.until(b"\r\n\r\n"))[:-4])

    async def body(self, headers):
        return await self.exactly(int(headers["content-length"]))

    async def piece(self):
        """The next piece of a reply whose body is chunked. None is its end; then there are `trailers`."""
        size = int((await self.until(b"\r\n")).partition(b";")[0], 16)
        if size:
            return (await self.exactly(size + 2))[:-2]
        trailers = b""
        while (line := await self.until(b"\r\n")) != b"\r\n":
            trailers += line
        self.trailers = bootstrap.parse_head(b"HTTP/1.1 200\r\n" + trailers[:-2])[1]
        return None

    async def until(self, end):
        try:
            return await self.reader.readuntil(end)
        except asyncio.IncompleteReadError:
            raise ConnectionError("the worker closed the connection") from None

    async def exactly(self, size):
        try:
            return await self.reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise ConnectionError("the worker closed the connection") from None
