"""Runs a Python handler: asks the worker for events and posts what the handler returns.

It speaks the Lambda Runtime API over the Unix socket (or to the host:port) in
OPENLAMBDA_RUNTIME_SOCKET. A cold start waits for this file, so it imports built-in modules only:
`json` alone would cost as much as the rest of the interpreter's start, and is used only when its C
parts are not where they were. Web applications are run by web.py beside it; aws.py is loaded when a
handler in AWS's style needs it.

A function may bring files that are called as Python's own modules are (types.py, token.py …), and a
__main__.py. So once it has been loaded, this file imports nothing but by `own`, and it is no longer
`__main__`: the children of `multiprocessing` import that, and would ask for events, too.

The environment says what to run: _HANDLER (module.function), OPENLAMBDA_STYLE (event, legacy,
lambda, wsgi, asgi; compile, which is for compile.py beside this file), LAMBDA_TASK_ROOT (the code), AWS_LAMBDA_MAX_CONCURRENCY (slots: a thread and a
connection each; with ASGI, a task each; absent: one).
"""

import _io as io
import _socket
import _thread
import posix
import sys
import time

if __name__ != "__main__":
    raise ImportError("the runtime is a program; it is not there to be imported")
__name__ = "openlambda_bootstrap"
sys.modules[__name__] = sys.modules["__main__"]
sys.modules["__main__"] = type(sys)("__main__")

API = "/2018-06-01/runtime/"
# With an error after which this process ends.
EXITING = "OpenLambda-Exiting: 1\r\n"
# With a reply that the next event is to answer: both of us are woken once for a call, not twice.
NEXT = "OpenLambda-Next: 1\r\n"
environ = {k.decode(): v.decode("utf-8", "surrogateescape") for k, v in posix.environ.items()}
ROOT = environ.get("LAMBDA_TASK_ROOT", "")
# Whoever is started by the function is not to speak with the worker.
WORKER = environ.pop("OPENLAMBDA_RUNTIME_SOCKET", None)
posix.environ.pop(b"OPENLAMBDA_RUNTIME_SOCKET", None)
posix.unsetenv(b"OPENLAMBDA_RUNTIME_SOCKET")
# Where this file is, and those beside it.
RUNTIMES = sys.path[0]
SLOTS = int(environ.get("AWS_LAMBDA_MAX_CONCURRENCY", "1"))
if SLOTS > 1:
    from _contextvars import ContextVar

    # The id of the call that a thread, or a task, is at.
    CALL = ContextVar("openlambda_call", default=None)


def json_functions():
    """dumps and loads as json's, from its C parts where this Python has them."""
    try:
        import _json

        class Decoding:
            strict = True
            object_hook = None
            object_pairs_hook = None
            parse_float = float
            parse_int = int
            parse_constant = {"NaN": None, "Infinity": None, "-Infinity": None}.__getitem__
            memo = {}

        scan = _json.make_scanner(Decoding)

        def default(value):
            raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")

        quote = _json.encode_basestring

        def loads(text):
            return scan(text.strip(), 0)[0]

        def dumps(value):
            # markers (to find cycles), default, quote, indent, ": ", ", ", sort_keys, skipkeys,
            # allow_nan
            encode = _json.make_encoder({}, default, quote, None, ": ", ", ", False, False, False)
            return "".join(encode(value, 0))

        if dumps(loads('{"a": [1, "é"]}')) == '{"a": [1, "é"]}':
            return dumps, loads
    except Exception:
        pass
    import json

    return lambda value: json.dumps(value, ensure_ascii=False, allow_nan=False), json.loads


class Connection:
    """One HTTP/1.1 connection to the worker, kept alive."""

    # What has been received beyond the last reply.
    rest = b""
    # Waits until there is something to receive.
    wait = None

    def __init__(self, path):
        if "/" not in path and ":" in path:
            # A port, where no Unix socket reaches into the sandbox.
            host, _, port = path.rpartition(":")
            self.socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
            self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            self.socket.connect((host, int(port)))
            return
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        if path.startswith("@"):
            # An abstract name, which belongs to the sandbox's own network.
            self.socket.connect("\0" + path[1:])
        elif len(path.encode()) < 100:
            self.socket.connect(path)
        else:
            # A socket's address has little room: go through a descriptor of its folder.
            folder, _, name = path.rpartition("/")
            fd = posix.open(folder, posix.O_RDONLY | posix.O_CLOEXEC)
            self.socket.connect(f"/proc/self/fd/{fd}/{name}")
            posix.close(fd)
        if "select" in sys.builtin_module_names:
            # Linux wakes whoever is in recv each time that the other end reads; who polls sleeps on.
            import select

            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            self.wait = poll.poll

    def request(self, method, path, body=b"", headers=""):
        """Returns the reply's status, its headers (lower case) and its body."""
        head = request_head(method, path, len(body), headers)
        if len(body) < 65536:
            self.socket.sendall(head + body)
        else:
            self.socket.sendall(head)
            self.socket.sendall(body)
        return self.reply()

    def answer(self, path, reply, headers=""):
        """Posts a reply. Returns what `request` does for the next event, or None if it does not answer
        the reply."""
        told = self.request("POST", path, reply, NEXT + headers)
        return told if told[0] == 200 else None

    def begin(self, path, headers):
        """Begins to post a body that comes in pieces, each of which goes to `send`."""
        self.socket.sendall(stream_head(path, headers))

    def send(self, data):
        for part in chunk(data):
            self.socket.sendall(part)

    def left(self):
        """Whether the client that such a body is for has left: then the worker has answered already."""
        try:
            return bool(self.socket.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def end(self, trailers=""):
        """Ends such a body, and returns what `request` does."""
        self.socket.sendall(stream_end(trailers))
        return self.reply()

    def reply(self):
        data, self.rest = self.rest, b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self.receive(65536)
        status, replied = parse_head(data[:end])
        body = data[end + 4 :]
        length = int(replied.get("content-length", 0))
        if len(body) > length:
            body, self.rest = body[:length], body[length:]
        elif len(body) < length:
            whole = bytearray(length)
            whole[: len(body)] = body
            view, at = memoryview(whole), len(body)
            while at < length:
                count = self.socket.recv_into(view[at:])
                if count == 0:
                    raise ConnectionError("the worker closed the connection")
                at += count
            body = whole
        return status, replied, body

    def receive(self, size):
        if self.wait:
            self.wait()
        data = self.socket.recv(size)
        if not data:
            raise ConnectionError("the worker closed the connection")
        return data


def request_head(method, path, length, headers=""):
    head = f"{method} {API}{path} HTTP/1.1\r\nHost: worker\r\n{headers}"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
    return head.encode() + b"\r\n"


def parse_head(head):
    """The status of a reply, and its headers (lower case)."""
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(first.split(" ")[1]), headers


def stream_head(path, headers):
    mode = "Transfer-Encoding: chunked\r\nLambda-Runtime-Function-Response-Mode: streaming\r\nOpenLambda-Early: 1\r\n"
    return f"POST {API}{path} HTTP/1.1\r\nHost: worker\r\n{mode}{headers}\r\n".encode()


def chunk(data):
    """The pieces of a chunk of such a body; none for no data, which would be its end."""
    if len(data) < 65536:
        return [b"%x\r\n%b\r\n" % (len(data), data)] if data else []
    return [b"%x\r\n" % len(data), data, b"\r\n"]


def stream_end(trailers=""):
    return f"0\r\n{trailers}\r\n".encode()


class Context:
    """What handlers of the lambda style get as their second argument."""

    def __init__(self, headers):
        self.aws_request_id = headers["lambda-runtime-aws-request-id"]
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.trace_id = headers.get("lambda-runtime-trace-id")
        self.tenant_id = None
        self.identity = Identity()
        self.client_context = None
        if "lambda-runtime-client-context" in headers:
            text = headers["lambda-runtime-client-context"].encode("latin-1").decode()
            self.client_context = ClientContext(loads(text))
        self._deadline_ms = int(headers["lambda-runtime-deadline-ms"])

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def log(self, message):
        sys.stdout.write(str(message))


class Identity:
    cognito_identity_id = None
    cognito_identity_pool_id = None


class ClientContext:
    def __init__(self, values):
        self.custom = values.get("custom")
        self.env = values.get("env")
        client = values.get("client")
        self.client = client and Client(client)


class Client:
    def __init__(self, values):
        for name in ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name"):
            setattr(self, name, values.get(name))


importing = _thread.RLock()


def own(name, stays=False):
    """A module of Python's own, whatever the function has called so. Of its modules, and of those that
    it will import, none is replaced; but this one where it `stays`, because it imports parts of itself
    later."""
    with importing:
        return import_own(name, stays)


def import_own(name, stays):
    if hasattr(sys, "stdlib_module_names") and ROOT:
        hides = {file.partition(".")[0] for file in posix.listdir(ROOT)} & sys.stdlib_module_names
    else:
        hides = set()
    theirs = [known for known in list(sys.modules) if known.partition(".")[0] in hides and is_theirs(known)]
    theirs = {known: sys.modules.pop(known) for known in theirs}
    known, path = set(sys.modules), sys.path
    sys.path = [folder for folder in path if folder not in ("", ROOT)]
    try:
        __import__(name)
        return sys.modules[name]
    finally:
        sys.path = path
        for new in set(sys.modules) - known:
            if new.partition(".")[0] in hides and not (stays and new.partition(".")[0] == name):
                del sys.modules[new]
        for known, module in theirs.items():
            sys.modules.setdefault(known, module)


def is_theirs(name):
    return str(getattr(sys.modules[name], "__file__", None)).startswith(ROOT + "/")


class Logging:
    """Finds `logging` for handlers in AWS's style, which expect more of it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "logging":
            return with_handler(sys.modules["_frozen_importlib_external"].PathFinder.find_spec(name))


def with_handler(spec):
    """`logging`, whose root logger has a handler from the beginning, as handlers for AWS expect. The
    function's own module of that name is left alone."""
    if spec is None or not spec.loader or str(spec.origin).startswith(ROOT + "/"):
        return spec
    load = spec.loader.exec_module

    def exec_module(module):
        load(module)
        load_beside("aws").set_up(module)

    spec.loader.exec_module = exec_module
    return spec


def describe(error, kind=None, message=None):
    """The error as Lambda's JSON, without this file's own frames."""
    if message is None:
        message = text_of(error)
    lines = stack_of(error, OWN_FILES)
    if isinstance(error, SyntaxError) and kind:
        lines += place_of(error)
    error = {"errorMessage": message, "errorType": kind or type(error).__name__, "stackTrace": lines}
    return encode(error)


def text_of(error):
    try:
        return str(error)
    except Exception:
        return "the exception cannot be shown as text"


def print_error(error, but=()):
    """Prints it as `traceback` does, without the frames of some files."""
    lines = []
    for depth in range(16):
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        told = ["Traceback (most recent call last):\n", *stack_of(error, but)]
        told += place_of(error) if isinstance(error, SyntaxError) else [f"{name}: {text_of(error)}\n"]
        lines = told + lines
        cause = error.__cause__
        why = "The above exception was the direct cause of the following exception"
        if cause is None and not error.__suppress_context__:
            cause, why = error.__context__, "During handling of the above exception, another exception occurred"
        if cause is None:
            break
        error, lines = cause, ["\n", why + ":\n", "\n", *lines]
    try:
        sys.stderr.write("".join(lines))
    except Exception:
        pass


def stack_of(error, but):
    """The frames of an error but for those of some files, as `traceback` writes them. What is called
    from the same place again and again is told three times."""
    lines, files, last, repeated = [], {}, None, 0
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_filename not in but:
            place = code, frame.tb_lineno
            repeated = repeated + 1 if place == last else 0
            last = place
            if repeated < 3:
                line = f'  File "{code.co_filename}", line {frame.tb_lineno}, in {code.co_name}\n'
                lines.append(line + source_of(frame, files))
            elif repeated == 3:
                lines.append("  [Previous line repeated 1 more time]\n")
            else:
                lines[-1] = f"  [Previous line repeated {repeated - 2} more times]\n"
        frame = frame.tb_next
    return lines


def source_of(frame, files):
    """The line of a frame, with marks below what of it runs; nothing where there is no source."""
    code, number = frame.tb_frame.f_code, frame.tb_lineno
    try:
        if code.co_filename not in files:
            try:
                with open(code.co_filename, "rb") as file:
                    source = file.read()
            except OSError:
                # In an archive, say.
                source = frame.tb_frame.f_globals["__loader__"].get_source(frame.tb_frame.f_globals["__name__"]).encode()
            files[code.co_filename] = source.split(b"\n")
        line = files[code.co_filename][number - 1]
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return ""
        marks = ""
        if hasattr(code, "co_positions"):
            positions = list(code.co_positions())[frame.tb_lasti // 2]
            first, last, begin, end = positions
            if None not in positions and first == number:
                indent = len(line) - len(line.lstrip())
                # Places are told in bytes.
                begin = len(line[indent:begin].decode("utf-8", "replace"))
                end = len(line[indent:end].decode("utf-8", "replace")) if last == number else len(text)
                if 0 <= begin < end and end - begin < len(text):
                    marks = "    " + " " * begin + "^" * (end - begin) + "\n"
        return f"    {text}\n{marks}"
    except Exception:
        return ""


def place_of(error):
    """Where a syntax error is, and what it is."""
    lines = []
    if error.lineno is not None:
        lines.append(f'  File "{error.filename or "<string>"}", line {error.lineno}\n')
        text = (error.text or "").rstrip()
        if text.strip():
            shown = text.lstrip()
            lines.append(f"    {shown}\n")
            column = (error.offset or 0) - 1 - (len(text) - len(shown))
            if column >= 0:
                lines.append("    " + " " * min(column, len(shown)) + "^\n")
    lines.append(f"{type(error).__name__}: {error.msg or '<no detail available>'}\n")
    return lines


def encode(value):
    text = dumps(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair has no UTF-8, but JSON can name it.
        return own("json").dumps(value, allow_nan=False).encode()


def encode_reply(result, style):
    """JSON of what a handler returned. AWS's own client takes decimals, which come from its databases, and
    bytes, which are UTF-8; so handlers in its style may return them."""
    try:
        return encode(result)
    except TypeError:
        if style != "lambda":
            raise
        return load_beside("aws").encode(result)


def trailers(failure, extra=""):
    """What ends a streamed reply that breaks off, with the JSON of `describe`."""
    error = loads(str(failure, "utf-8"))
    if len(failure) > 8000:
        # There is not much room in trailers.
        error["errorMessage"] = error["errorMessage"][:1000]
        error["stackTrace"] = [line[:300] for line in error["stackTrace"][-6:]]
        failure = encode(error)
    kind = error["errorType"].encode("ascii", "replace").decode()
    body = base64(failure)
    names = ("Type", kind), ("Body", body)
    return "".join(f"Lambda-Runtime-Function-Error-{name}: {value}\r\n" for name, value in names) + extra


def base64(data):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = []
    for at in range(0, len(data), 3):
        three = data[at : at + 3]
        number = int.from_bytes(three + bytes(3 - len(three)), "big")
        text += [letters[number >> shift & 63] for shift in (18, 12, 6, 0)]
    missing = -len(data) % 3
    text[len(text) - missing :] = "=" * missing
    return "".join(text)


def load(name, style):
    """The handler `module.function` with its style, and why there is none."""
    module_name, dot, function = name.rpartition(".")
    if not dot:
        error = ValueError(f"Handler '{name}' names no function; write it as module.function")
        return None, style, describe(error, "Runtime.MalformedHandlerName")
    module_name = module_name.replace("/", ".")
    file = module_name.replace(".", "/") + ".py"
    try:
        if module_name == "__main__":
            module = load_main()
        else:
            __import__(module_name)
            module = sys.modules[module_name]
    except SyntaxError as error:
        message = f"Syntax error in module '{module_name}': {error}"
        return None, style, describe(error, "Runtime.UserCodeSyntaxError", message)
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}{hint(error, module_name, file)}"
        return None, style, describe(error, "Runtime.ImportModuleError", message)
    except SystemExit as error:
        message = f"{file} exited with {error.code!r} when it was imported"
        return None, style, describe(error, "Runtime.ExitError", message)
    except BaseException as error:
        return None, style, describe(error)
    handler = getattr(module, function, None)
    if callable(handler):
        return handler, style, None
    if style == "event" and function == "f" and callable(getattr(module, "app", None)):
        # As in the Go project: a module without `f` is its web application `app`.
        return module.app, "asgi" if is_coroutine(module.app) else "wsgi", None
    what = "is not callable" if function in vars(module) else "is missing"
    error = AttributeError(f"Handler '{function}' {what} in module '{module_name}'; define it in {file}")
    return None, style, describe(error, "Runtime.HandlerNotFound")


def load_main():
    """The function's __main__.py, by the name that children of `multiprocessing` know it by, too. What is
    for `__name__ == "__main__"` does not run: it is not called as a program."""
    path = ROOT + "/__main__.py"
    try:
        posix.stat(path)
    except FileNotFoundError:
        raise ModuleNotFoundError("No module named '__main__'", name="__main__") from None
    spec = sys.modules["_frozen_importlib_external"].spec_from_file_location("__mp_main__", path)
    module = sys.modules["_frozen_importlib"].module_from_spec(spec)
    # They are told the path if there is no name by which it could be found.
    module.__spec__ = None
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    spec.loader.exec_module(module)
    return module


def layers():
    """Folders with packages as Lambda's layers have them, where the bundle has such."""
    packages = "python/lib/python%d.%d/site-packages" % sys.version_info[:2]
    found = []
    for folder in (packages, "python"):
        try:
            posix.stat(f"{ROOT}/{folder}")
            found.append(f"{ROOT}/{folder}")
        except OSError:
            if folder == "python":
                return found
    return found


def hint(error, module_name, file):
    """What helps against a module that is not there."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    if module_name == error.name or module_name.startswith(error.name + "."):
        return f"; add {file}, or correct handler in ol.toml"
    return "; if it is a package, install it with pip install --target in the function's folder, and deploy again"


def is_coroutine(handler):
    """Whether calling it makes a coroutine: an `async def`, or an object with such a `__call__`."""
    for function in (handler, type(handler).__call__):
        # Methods and partial functions wrap another.
        function = getattr(function, "func", function)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is not None:
            return bool(code.co_flags & 0x80)
    return False


class Raw(io.FileIO):
    """Standard output or standard error. Before it is written to, the worker has read what was written to
    the other: so the log has the lines of both in their order."""

    # The one that was written to last.
    written = None

    def __init__(self, fd, name):
        super().__init__(fd, "w", closefd=False)
        self.name = name
        # The pipe to the worker. The function may put another file in its place.
        self.pipe = posix.fstat(fd).st_ino

    def write(self, data):
        other = Raw.written
        if other is not self:
            Raw.written = self
            if other is not None:
                other.empty()
        return super().write(data)

    def empty(self):
        """Waits until the pipe is empty, but not for long: the worker may have other things to do."""
        try:
            # (It is built in nearly everywhere; what is not could wait here for a lock that is held.)
            if "fcntl" not in sys.builtin_module_names or posix.fstat(self.fileno()).st_ino != self.pipe:
                return
            import fcntl

            pause, until = 0.00005, time.monotonic() + 1
            while any(fcntl.ioctl(self.fileno(), 0x541B, bytes(4))):  # FIONREAD
                if time.monotonic() > until:
                    return
                time.sleep(pause)
                pause = min(2 * pause, 0.005)
        except Exception:
            # It may be closed.
            pass


class Lines(io.TextIOWrapper):
    """Where several calls are served at once: lines of which the worker is told whose they are."""

    # A line without an end is kept up to this length.
    MOST = 8192

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # By call that runs, the parts of a line whose end has not been written, and their length.
        self.begun = {}

    def write(self, text):
        id = CALL.get()
        if id not in running:
            # Of no call, or of one that is over: its tasks and threads may go on.
            return super().write(text)
        parts, length = self.begun.get(id, ([], 0))
        head, newline, rest = text.rpartition("\n")
        if newline:
            lines = "".join([*parts, head]).split("\n")
            super().write("".join(f"\x1e{id}\x1f{line}\n" for line in lines))
            parts, length = [], 0
        if rest:
            parts.append(rest)
            length += len(rest)
        self.begun[id] = parts, length
        if length > self.MOST:
            self.end(id)
        return len(text)

    def flush(self):
        if running:
            self.end(CALL.get())
        super().flush()

    def end(self, id):
        """What the call has begun is a line."""
        parts, _ = self.begun.pop(id, ((), 0))
        if parts:
            super().write(f"\x1e{id}\x1f{''.join(parts)}\n")


# Calls that run, where several can.
running = set()


def set_up_output():
    kind = Lines if SLOTS > 1 else io.TextIOWrapper
    for fd, name, errors in ((1, "stdout", sys.stdout.errors), (2, "stderr", "backslashreplace")):
        raw = Raw(fd, f"<{name}>")
        stream = kind(io.BufferedWriter(raw), sys.stdout.encoding, errors, line_buffering=True)
        stream.mode = "w"
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def begin_call(id):
    """What is printed from now on, in this thread or task, is this call's."""
    if SLOTS > 1:
        CALL.set(id)
        running.add(id)


def end_call(id):
    """The call is over, or is so once the worker has its reply."""
    if id in running:
        running.discard(id)
        for stream in (sys.__stdout__, sys.__stderr__):
            try:
                stream.end(id)
            except Exception:
                # What it has begun cannot be encoded, or the stream is closed.
                pass


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def next_event(connection, headers="", told=None):
    """The headers and the body of the next event; `told` is the reply, if it was asked for before."""
    status, headers, body = told or connection.request("GET", "invocation/next", headers=headers)
    if status != 200:
        raise RuntimeError(f"the worker gave no next event, but answered {status}: {bytes(body)!r}")
    return headers, body


def serve(connection, handler, style):
    """One slot: event after event, until the worker ends the process."""
    own_pid = posix.getpid()
    upcoming = loop = None
    while True:
        headers, body = next_event(connection, told=upcoming)
        upcoming = None
        id = headers["lambda-runtime-aws-request-id"]
        request_ids[_thread.get_ident()] = id
        begin_call(id)
        request = "invocation/" + id
        extra, leave, reply = "", None, None
        pieces = Pieces(connection, request)
        try:
            event = loads(str(body, "utf-8"))
            if style == "lambda":
                result = handler(event, Context(headers))
            elif style == "legacy":
                result = handler(None, event)
            else:
                result = handler(event)
            kind = type(result)
            if hasattr(kind, "__await__") or hasattr(kind, "__anext__"):
                # One event loop for all calls of the slot, so that what clients keep in it lives on.
                loop = loop or new_loop()
                result = loop.run_until_complete(settle(result, pieces))
            if type(result) is Generator:
                pieces.send_all(result)
            if pieces.begun:
                reply = b""
            else:
                try:
                    reply = encode_reply(result, style)
                except (TypeError, ValueError, RecursionError, OverflowError) as error:
                    message = f"Unable to marshal response: {error}"
                    if isinstance(error, TypeError):
                        message += "; return dicts, lists, text, numbers, booleans or None"
                    failure = describe(error.with_traceback(None), "Runtime.MarshalError", message)
            del event, result
        except SystemExit as error:
            leave, extra = error, EXITING
            failure = describe(error, "Runtime.ExitError", f"The handler exited with {error.code!r}")
        except BaseException as error:
            failure = describe(error)
        end_call(id)
        flush()
        if posix.getpid() != own_pid:
            # A child that the handler forked: its parent answers, and goes on.
            posix._exit(exit_code(leave) if leave is not None else 0 if reply is not None else 1)
        if pieces.begun:
            connection.end(trailers(failure, extra) if reply is None else "")
        elif reply is not None:
            upcoming = connection.answer(request + "/response", reply)
        else:
            connection.request("POST", request + "/error", failure, extra)
        if leave is not None:
            # From a thread, SystemExit would end that thread alone.
            posix._exit(exit_code(leave))


Generator = type(_ for _ in ())
# What each thread with a slot is at.
request_ids = {}


def new_loop():
    asyncio = own("asyncio", stays=True)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


async def settle(result, pieces):
    """What a handler's coroutine comes to. Pieces that it makes one after the other are sent from here: all
    in one task, as the generator has a right to expect."""
    if hasattr(type(result), "__await__"):
        result = await result
    if not hasattr(type(result), "__anext__"):
        return result
    try:
        async for piece in result:
            if not pieces.send(piece):
                break
    finally:
        if hasattr(type(result), "aclose"):
            await result.aclose()
    pieces.whole()


class Pieces:
    """A reply that comes in pieces. Its generator runs to the first before anything is sent."""

    def __init__(self, connection, request):
        self.connection, self.request = connection, request
        self.begun = False

    def send_all(self, generator):
        for piece in generator:
            if not self.send(piece):
                generator.close()
                break
        self.whole()

    def send(self, piece):
        """Whether the client is still there, and with it a reason to make another."""
        if not self.begun:
            kind, first = begin_stream(piece)
            self.begun = True
            self.connection.begin(self.request + "/response", f"Content-Type: {kind}\r\n")
            self.connection.send(first)
            return True
        if self.connection.left():
            return False
        self.connection.send(as_bytes(piece))
        return True

    def whole(self):
        """There was no piece at all, perhaps."""
        if not self.begun:
            self.send(b"")


def begin_stream(first):
    """The media type of a reply that comes in pieces, and the bytes of its first piece. A first one that is
    a dict is the reply's head: statusCode, headers, cookies."""
    if isinstance(first, dict):
        return "application/vnd.awslambda.http-integration-response", encode(first) + bytes(8)
    kind = "text/plain; charset=utf-8" if isinstance(first, str) else "application/octet-stream"
    return kind, as_bytes(first)


def as_bytes(piece):
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    raise TypeError(f"the handler yielded a piece of type {type(piece).__name__}; yield text or bytes")


def exit_code(leave):
    code = leave.code
    return 0 if code is None else code & 255 if isinstance(code, int) else 1


def main():
    set_up_output()
    if WORKER is None:
        sys.exit("this is the function's runtime, which the worker starts; start another program")
    style = environ.get("OPENLAMBDA_STYLE", "lambda")
    connection = Connection(WORKER)
    if style == "compile":
        # It reads the function's files and runs none of them, so they are not to be found by name.
        del sys.path[0]
        return guarded(serve, connection, load_beside("compile").handler, "event")
    sys.path[0] = ROOT
    sys.path += layers()
    # What the operator gives to all functions. What else is installed on the machine is not theirs: the
    # interpreter runs without `site`, and so do the children of `multiprocessing`.
    sys.path += filter(None, environ.get("OPENLAMBDA_PYTHON_PACKAGES", "").split(":"))
    if style == "lambda":
        sys.meta_path.insert(0, Logging)
    # What `site` would have put there, and code relies on.
    builtins = sys.modules["builtins"]
    builtins.exit = builtins.quit = sys.exit
    handler, style, failure = load(environ["_HANDLER"], style)
    if handler is None:
        flush()
        connection.request("POST", "init/error", failure)
        posix._exit(1)
    run, threads = serve, SLOTS
    if style == "wsgi":
        run = load_beside("web").serve_wsgi
    elif style == "asgi":
        run, threads = load_beside("web").serve_asgi, 1
    for _ in range(threads - 1):
        another = Connection(WORKER)
        _thread.start_new_thread(guarded, (run, another, handler, style))
    guarded(run, connection, handler, style)


beside = {}


def load_beside(name):
    """web.py or aws.py, which lie beside this file. A module of the function's may have the same name."""
    with importing:
        if name not in beside:
            spec = sys.modules["_frozen_importlib_external"].PathFinder.find_spec(name, [RUNTIMES])
            module = sys.modules["_frozen_importlib"].module_from_spec(spec)
            spec.loader.exec_module(module)
            OWN_FILES.add(spec.loader.get_code(name).co_filename)
            beside[name] = module
        return beside[name]


def guarded(run, connection, handler, style):
    """A slot that fails ends the process: the worker sees that, and not a slot that hangs."""
    try:
        run(connection, handler, style)
    except ConnectionError:
        posix._exit(1)
    except BaseException as error:
        print_error(error)
        flush()
        posix._exit(1)


OWN_FILES = {describe.__code__.co_filename, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}
dumps, loads = json_functions()
main()
