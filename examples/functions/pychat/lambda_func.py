"""A chat room in one function: `init`, `msg`, and `updates`, which waits for the next message.

The messages are in SQLite on a volume, so all instances on this machine share them. static/ is its
page.
"""

import os
import sqlite3
import time
import traceback

DATABASE = os.path.join(os.environ["OPENLAMBDA_VOLUME_MESSAGES"], "messages.db")
# Less than timeout_seconds in ol.toml, so that a poll without news ends with an empty list.
LONG_POLL_SECONDS = float(os.environ["LONG_POLL_SECONDS"])
# How late a waiting client may hear of a message.
CHECK_SECONDS = 0.02
# More than these come with the next poll, since a reply has a limit.
MOST_ROWS = 1000

database = sqlite3.connect(DATABASE, timeout=10, isolation_level=None)
# Readers and the writer, in several processes, do not wait for each other. Of several instances that say so first, all
# but one are refused at once, whatever the time-out: they say it again.
for attempt in reversed(range(100)):
    try:
        database.execute("PRAGMA journal_mode = WAL")
        break
    except sqlite3.OperationalError:
        if not attempt:
            raise
        time.sleep(CHECK_SECONDS)
# Rooms that were made before messages had names.
columns = [column[1] for column in database.execute("PRAGMA table_info(messages)")]
if columns and "name" not in columns:
    try:
        database.execute("ALTER TABLE messages ADD COLUMN name TEXT")
    except sqlite3.OperationalError:
        # Another instance was faster.
        pass


def handler(conn, event):
    try:
        operation = OPERATIONS.get(event.get("op") if isinstance(event, dict) else None)
        if operation is None:
            return {"error": "bad op"}
        return {"result": operation(event)}
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return {"error": 'there is no chat room yet; send {"op": "init"} first'}
        return {"error": traceback.format_exc()}
    except Exception:
        return {"error": traceback.format_exc()}


def init(event):
    with Transaction():
        known = "SELECT 1 FROM sqlite_master WHERE name = 'messages'"
        existed = database.execute(known).fetchone() is not None
        # Who only wants to come in must not send the others away.
        if existed and event.get("keep"):
            return "kept"
        database.execute("DROP TABLE IF EXISTS messages")
        database.execute(
            "CREATE TABLE messages (ts INTEGER PRIMARY KEY, msg TEXT NOT NULL, name TEXT)"
        )
    return "dropped, then created" if existed else "created"


def msg(event):
    with Transaction():
        # Microseconds since 1970, and later than every other: who has seen one message has seen
        # all before it.
        last = database.execute("SELECT max(ts) FROM messages").fetchone()[0] or 0
        ts = max(time.time_ns() // 1000, last + 1)
        name = str(event["name"]) if event.get("name") else None
        row = (ts, str(event["msg"]), name)
        database.execute("INSERT INTO messages (ts, msg, name) VALUES (?, ?, ?)", row)
    return f"insert {ts} complete"


def updates(event):
    since = int(float(event["ts"])) if not str(event["ts"]).isdigit() else int(event["ts"])
    end = time.monotonic() + LONG_POLL_SECONDS
    newer = f"SELECT ts, msg, name FROM messages WHERE ts > ? ORDER BY ts LIMIT {MOST_ROWS}"
    seen = None
    while True:
        # Changes when another connection commits; far cheaper than the query.
        version = database.execute("PRAGMA data_version").fetchone()
        if version != seen:
            seen = version
            rows = database.execute(newer, (since,)).fetchall()
            if rows:
                return [message(*row) for row in rows]
        if time.monotonic() >= end:
            return []
        time.sleep(CHECK_SECONDS)


def message(ts, text, name):
    return {"ts": ts, "msg": text} | ({"name": name} if name else {})


OPERATIONS = {"init": init, "msg": msg, "updates": updates}


class Transaction:
    """One writer at a time; the others wait."""

    def __enter__(self):
        database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind, error, trace):
        database.execute("COMMIT" if kind is None else "ROLLBACK")
