"""What AWS's own client does for handlers of its style and bootstrap.py loads only when it is needed: JSON
with decimals and bytes, and a handler for `logging`.

AWS_LAMBDA_LOG_FORMAT is `Text`, or `JSON` for one object a line; AWS_LAMBDA_LOG_LEVEL is the level of the
root logger, with `JSON` only.
"""

import _thread
import sys

import openlambda_bootstrap as bootstrap

# JSON


def encode(value):
    text = "".join(parts_of(value))
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair has no UTF-8, but JSON can name it.
        return "".join(sign if sign < "\x80" else json_name(sign) for sign in text).encode()


def json_name(sign):
    return bootstrap.own("json").dumps(sign)[1:-1]


def parts_of(value):
    """The JSON of a value, in parts. (The encoder in C has no way to write a number's own digits.)"""
    if isinstance(value, dict):
        yield "{"
        for n, (key, item) in enumerate(value.items()):
            if isinstance(key, bytes):
                key = key.decode()
            elif not isinstance(key, str):
                if not (key is None or isinstance(key, (bool, int, float))):
                    raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")
                key = bootstrap.dumps(key)
            yield (", " if n else "") + bootstrap.dumps(key) + ": "
            yield from parts_of(item)
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield "["
        for n, item in enumerate(value):
            if n:
                yield ", "
            yield from parts_of(item)
        yield "]"
    elif isinstance(value, (bytes, bytearray)):
        yield bootstrap.dumps(value.decode())
    elif type(value).__name__ == "Decimal" and hasattr(value, "is_finite"):
        if not value.is_finite():
            raise ValueError(f"Out of range decimal values are not JSON compliant: {value}")
        yield str(value)
    else:
        yield bootstrap.dumps(value)


# logging


def set_up(logging):
    """Gives the root logger of this module a handler."""

    class Handler(logging.Handler):
        def emit(self, record):
            try:
                sys.stdout.write(self.format(record) + "\n")
            except RecursionError:
                raise
            except Exception:
                self.handleError(record)

    class Request(logging.Filter):
        def filter(self, record):
            record.aws_request_id = current_request()
            return True

    handler = Handler()
    handler.addFilter(Request())
    in_json = bootstrap.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"
    handler.setFormatter(json_formatter(logging) if in_json else text_formatter(logging))
    logging.root.addHandler(handler)
    level = bootstrap.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper() if in_json else ""
    level = {"TRACE": "DEBUG", "FATAL": "CRITICAL"}.get(level, level)
    if level in ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL"):
        logging.root.setLevel(level)


def current_request():
    """The id of the call that this thread serves; in a thread of the function's, that of the last call."""
    ids = bootstrap.request_ids
    known = ids.get(_thread.get_ident())
    return known or next(reversed(ids.values()), "")


def text_formatter(logging):
    layout = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
    formatter = logging.Formatter(layout, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = bootstrap.time.gmtime
    return formatter


def json_formatter(logging):
    usual = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "aws_request_id"}

    class Formatter(logging.Formatter):
        converter = bootstrap.time.gmtime

        def format(self, record):
            told = {
                "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"),
                "level": record.levelname,
                "message": record.getMessage(),
                "logger": record.name,
                "requestId": record.aws_request_id or None,
            }
            if record.exc_info and record.exc_info[1] is not None:
                error = record.exc_info[1]
                told["stackTrace"] = [line.rstrip("\n") for line in bootstrap.stack_of(error, ())]
                told["errorType"], told["errorMessage"] = type(error).__name__, bootstrap.text_of(error)
                told["location"] = f"{record.pathname}:{record.funcName}:{record.lineno}"
            told.update((key, value) for key, value in vars(record).items() if key not in usual)
            told = {key: value for key, value in told.items() if value is not None}
            try:
                return encode(told).decode()
            except Exception:
                return encode({key: as_json(value) for key, value in told.items()}).decode()

    return Formatter()


def as_json(value):
    """What has no JSON is told as text."""
    try:
        encode(value)
        return value
    except Exception:
        return str(value)
