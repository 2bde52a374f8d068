"""The words that begin with a prefix, from a list in the bundle.

The list is read once, when an instance starts; each call finds its words by bisection.
"""

import bisect
import os

MOST = 10

with open(os.path.join(os.environ["LAMBDA_TASK_ROOT"], "words.txt"), encoding="utf-8") as file:
    WORDS = sorted({line.strip().lower() for line in file} - {""})


def f(event):
    prefix = event["prefix"].strip().lower()
    first = bisect.bisect_left(WORDS, prefix)
    last = bisect.bisect_left(WORDS, prefix + "\U0010ffff")
    return WORDS[first : min(last, first + int(event.get("limit", MOST)))]
