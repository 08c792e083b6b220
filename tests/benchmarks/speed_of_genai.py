"""Measures one model folder in onnxruntime-genai, by the peers' Python: `speed_of_genai.py FOLDER THREADS`.

The same requests and answers as speed_of_edgeforge.py: prefill ends when the first new token is chosen, decode is all
later ones. Imports nothing of EdgeForge.
"""

import json
import resource
import sys
import time

import numpy as np
import onnxruntime_genai as og

folder, threads = sys.argv[1:]
config = og.Config(folder)
if int(threads):  # 0: as it comes, which is what its users get
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": int(threads)}}}}))
model = og.Model(config)
for line in sys.stdin:
    request = json.loads(line)
    prompt = np.array(request["prompt"], np.int32)
    length = len(prompt) + request["new_tokens"] + 1
    params = og.GeneratorParams(model)
    # min_length holds the end of text back, as ignore_eos does on the other side.
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    started = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(request["new_tokens"]):
        generator.generate_next_token()
    ended = time.perf_counter()
    assert len(generator.get_sequence(0)) == length
    answer = {
        "prefill_seconds": first - started,
        "decode_seconds": ended - first,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(answer), flush=True)
    del generator
