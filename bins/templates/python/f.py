"""{{name}}: called with the JSON body of each request; what it returns is the reply."""


def f(event):
    # An empty body is None. What is printed is in `ol logs {{name}}`.
    who = event.get("name", "world") if isinstance(event, dict) else "world"
    print("greeting", who)
    return {"message": f"Hello, {who}!"}
