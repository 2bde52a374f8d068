"""What an instance is: one process, whose variables stay from call to call, with a slot for each of
`concurrency` calls. Each call has a thread of its own, and another thread counts beside them.
"""

import threading
import time
import uuid

# How long a call waits for others to come.
LONGEST_SECONDS = 10

INSTANCE = uuid.uuid4().hex[:8]
changed = threading.Condition()
calls = at_once = most_at_once = ticks = 0


def tick():
    global ticks
    while True:
        time.sleep(0.001)
        ticks += 1


threading.Thread(target=tick, daemon=True).start()


def f(event):
    """With {"meet": N} it waits until N calls have been here at once."""
    global calls, at_once, most_at_once
    meet = (event or {}).get("meet", 1)
    with changed:
        calls += 1
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        changed.notify_all()
        met = changed.wait_for(lambda: most_at_once >= meet, LONGEST_SECONDS)
        at_once -= 1
        return {
            "instance": INSTANCE,
            "calls": calls,
            "met": met,
            "most_at_once": most_at_once,
            "ticks": ticks,
        }
