"""A web application as PEP 3333 has it, without a framework. One of Flask or Django is the same to the
platform: a callable that gets `environ` and `start_response`.
"""

from html import escape

PAGE = """<!doctype html>
<title>Upper case</title>
<form method="post" action="{root}/upper"><textarea name="text"></textarea><button>Upper case</button></form>
<p>Or <a href="{root}/hello/you">hello</a>.</p>
"""


def app(environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if path == "/" and method in ("GET", "HEAD"):
        # SCRIPT_NAME is where the function is, /run/wsgi, which links have to begin with.
        page = PAGE.format(root=escape(environ["SCRIPT_NAME"]))
        return answer(start_response, "200 OK", page, "text/html; charset=utf-8")
    if path.startswith("/hello/") and method in ("GET", "HEAD"):
        # In environ each character is a byte of the URL.
        name = path.removeprefix("/hello/").encode("latin-1").decode("utf-8", "replace")
        return answer(start_response, "200 OK", f"Hello, {name}!\n")
    if path == "/upper" and method == "POST":
        start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return upper(environ["wsgi.input"])
    return answer(start_response, "404 Not Found", f"There is nothing at {path}.\n")


def upper(lines):
    """A reply in pieces: each goes to the client before the next is made."""
    for line in lines:
        yield line.decode("utf-8", "replace").upper().encode()


def answer(start_response, status, text, kind="text/plain; charset=utf-8"):
    body = text.encode()
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
