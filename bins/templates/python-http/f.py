"""{{name}}: called with the whole HTTP request, and answers with a whole HTTP response.

The event is that of a Lambda Function URL (payload version 2.0).
"""

import json


def f(event):
    method = event["requestContext"]["http"]["method"]
    path = event["rawPath"]
    query = event.get("queryStringParameters") or {}
    # What is printed is in `ol logs {{name}}`.
    print(method, path)
    if method not in ("GET", "POST"):
        return {"statusCode": 405, "headers": {"allow": "GET, POST"}, "body": "use GET or POST\n"}
    who = query.get("name", "world")
    return {
        "statusCode": 200,
        "headers": {"content-type": "application/json", "cache-control": "no-store"},
        "body": json.dumps({"message": f"Hello, {who}!", "path": path}),
    }
