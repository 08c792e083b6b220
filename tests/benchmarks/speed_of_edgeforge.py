"""Measures one bundle through edgeforge.runtime, in a process of its own: `speed_of_edgeforge.py BUNDLE THREADS`.

Reads requests from stdin, {"prompt": ids, "new_tokens": n}, and answers each with seconds; see test_speed.py.
"""

import json
import resource
import sys

from edgeforge import runtime

bundle, threads = sys.argv[1:]
model = runtime.load(bundle, threads=int(threads))
model.warm_up()
for line in sys.stdin:
    request = json.loads(line)
    chunks = model.generate(
        request["prompt"],
        max_new_tokens=request["new_tokens"] + 1,
        temperature=0.0,
        repetition_penalty=1.0,
        ignore_eos=True,
    )
    *_, last = chunks
    assert last.timings is not None
    assert last.usage is not None
    assert last.usage.reused_tokens == 0
    assert last.usage.completion_tokens == request["new_tokens"] + 1
    answer = {
        "prefill_seconds": last.timings.prefill_ms / 1000,
        "decode_seconds": last.timings.decode_ms / 1000,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(answer), flush=True)
