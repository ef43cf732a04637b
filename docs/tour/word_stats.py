#!/usr/bin/env python3
"""Word statistics of one text: what `cortex worker --exec` runs for each job.

Standard input is the job's input_data, {"text": "...", "seconds": 0}; standard output becomes its output_data.
`seconds` makes the work take longer.
"""

import collections
import json
import re
import sys
import time

job = json.load(sys.stdin)
words = re.findall(r"[^\W\d_]+", job["text"].lower())
if not words:
    sys.exit("the text has no words")  # a failed attempt, with this as its error message
time.sleep(job.get("seconds", 0))
counts = collections.Counter(words)
json.dump(
    {
        "words": len(words),
        "unique": len(counts),
        "average_length": round(sum(map(len, words)) / len(words), 2),
        "top": [f"{word} {count}" for word, count in counts.most_common(5)],
    },
    sys.stdout,
)
