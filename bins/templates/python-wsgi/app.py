"""{{name}}: a web application, WSGI (PEP 3333).

An application of Flask or Django is called the same way: put it in the place of `app`, and its
packages beside this file (`pip install --target . flask`).
"""

import json
from urllib.parse import parse_qs


def app(environ, start_response):
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    # What is printed is in `ol logs {{name}}`.
    print(method, path)
    if method not in ("GET", "HEAD", "POST"):
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD, POST")])
        return [b"use GET or POST\n"]
    who = parse_qs(environ["QUERY_STRING"]).get("name", ["world"])[0]
    body = json.dumps({"message": f"Hello, {who}!", "path": path}).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
