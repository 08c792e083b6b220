"""Ask a bundle one question:  python ask.py BUNDLE "What is the capital of France?" """

import sys

bundle, question = sys.argv[1:]
sys.dont_write_bytecode = True  # a bundle is verified byte by byte: leave no __pycache__ in it
sys.path.insert(0, bundle)

from edgeforge_runtime import load  # noqa: E402

model = load(bundle)
for chunk in model.chat([{"role": "user", "content": question}], temperature=0):
    print(chunk.text, end="", flush=True)
print()
