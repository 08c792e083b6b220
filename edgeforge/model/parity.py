"""What a checkpoint's own tokenizer and chat template make of fixed texts and chats: parity.json, byte for byte.

`edgeforge.runtime.parity` reads the file and holds a bundle against it. The texts are the same for every model, so that
two bundles' vectors can be compared; templates that write the date get NOW.
"""

import json
from dataclasses import asdict
from datetime import datetime

from edgeforge.model.tokenizer import TokenizerFiles
from edgeforge.runtime.chat import Message
from edgeforge.runtime.parity import SCHEMA_VERSION, ChatVector, Parity, Talker, TextVector

NOW = datetime(2024, 7, 26, 12, 0, 0)

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "Hello world",
    " Hello  world ",
    "The quick brown fox jumps over the lazy dog.",
    "It's we'LL don't CAN'T they're I'd ‘quoted’ “double” o'clock",
    "XMLHttpRequest snake_case kebab-case CamelCase SHOUTING iPhone mRNA",
    "supercalifragilisticexpialidocious " + "a" * 80,
    # white space
    "\n",
    "  two  spaces,\ttabs\t\tand\n\n\nlines \r\n and\u00a0no-break\u3000ideographic\u200bzero",
    " " * 33 + "x",
    "trailing   ",
    "a\n\n\n\nb\n \n c",
    # digits
    "0 1 12 123 1234 12345 1234567890123",
    "3.14159 1,000,000 -42 1e-9 0xDEADBEEF 50% $19.99 2024-07-26 12:30 21st ½ ² ٣ １２",
    # scripts
    "Ça fait déjà l'été à Besançon, n'est-ce pas ?",
    "Fünf süße Grüße aus Köln; Straßenbahnhaltestellenschild",
    "¿Dónde está el niño? ¡Mañana, por supuesto!",
    "Perché no? Così è più semplice, cioè più veloce.",
    "A informação não está disponível; amanhã haverá pão.",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň.",
    "Привет, мир! Съешь ещё этих мягких французских булок.",
    "Καλημέρα κόσμε, τι κάνεις;",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "你好，世界！今天天气很好。",
    "こんにちは世界。カタカナとひらがな、漢字。",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "Xin chào thế giới, tiếng Việt có dấu",
    "გამარჯობა መልካም ᓀᐦᐃᔭᐍᐏᐣ",
    # signs
    "🙂 🚀 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 👍🏽 😶‍🌫️",
    "é e\u0301 ﬁ Å \u212b",
    "∑∫√≤≠∞ → ⇒ ★ ™ © … — – •",
    "\ufeffbyte order mark, \u202eright to left\u202c, bell \x07",
    # code
    'def f(x: int) -> str:\n    return f"{x**2:>8}"  # ok\n\n\nclass A:\n\tpass\n',
    "for (int i = 0; i < n; ++i) { a[i] |= b << 2; } // c++\n#include <vector>",
    '{"name": "Ada", "tags": ["x", null, true], "n": -1.5e3}',
    "<div class=\"a\">&nbsp;<br/></div> SELECT * FROM t WHERE id != '1';",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x ~/.bashrc",
    "| a | b |\n|---|---|\n| **1** | `2` |\n\n- [x] done\n> quote",
    "!!!???...===---***~~~@@@###",
    # what looks like a special token, and may be one
    "<s> hi </s> <unk> <pad> [INST] x [/INST] <<SYS>>",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nHi<|eot_id|><|end_of_text|>",
    "< s > <|im_start |> <|IM_START|> <0x0A> ▁ Ġ Ċ",
)


def _turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turn, after a system message."""
    head: tuple[Message, ...] = () if system is None else ({"role": "system", "content": system},)
    roles = ("user", "assistant")
    return (*head, *({"role": roles[i % 2], "content": content} for i, content in enumerate(contents)))


CHATS: tuple[tuple[tuple[Message, ...], bool], ...] = (
    (_turns("Hello"), True),
    (_turns("What is 1 + 1?", system="Be brief & <kind>."), True),
    (_turns("Hello", system=""), True),
    (_turns("Hello", "Hi! How can I help?", "Name three colours.", system="You are a painter."), True),
    (_turns("Hello", "Hi! How can I help?"), False),
    (_turns("  What's\n\n1 + 1?\t\n", "\n zwei 🙂 ", "  "), True),
    (_turns("Привет, 你好 👩‍👩‍👧‍👦 é", "नमस्ते", "سلام", system="Réponds en français."), True),
    (_turns("<|im_end|>\n<|im_start|>system\nx</s>[/INST]<|eot_id|>", system="{{ 1 }} {% raw %}"), True),
    (_turns(""), True),
)


def make_parity(files: TokenizerFiles) -> Parity:
    """The vectors of these files. UnusableInput where the tokenizer cannot be read."""
    talker = talker_of(files)
    texts = []
    for text in TEXTS:
        ids = talker.encode(text)
        texts.append(TextVector(text=text, ids=ids, decoded=talker.decode(ids)))
    chats = []
    for messages, prompted in CHATS if files.chat_template is not None else ():
        rendered = talker.render(messages, NOW, add_generation_prompt=prompted)
        ids = () if rendered is None else talker.encode(rendered, add_special_tokens=False)
        chats.append(ChatVector(messages=messages, add_generation_prompt=prompted, text=rendered, ids=ids))
    return Parity(now=NOW, texts=tuple(texts), chats=tuple(chats))


def talker_of(files: TokenizerFiles) -> Talker:
    return Talker(
        tokenizer=files.load(),
        chat_template=files.chat_template,
        bos_token=files.bos_token,
        eos_token=files.eos_token,
    )


def parity_text(parity: Parity) -> str:
    """parity.json: one vector a line, so that it can be read; the same vectors give the same bytes."""

    def lines(vectors: tuple[TextVector, ...] | tuple[ChatVector, ...]) -> str:
        return ",\n".join(f"    {json.dumps(asdict(vector), ensure_ascii=False)}" for vector in vectors)

    head = f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "now": "{parity.now.isoformat()}",\n'
    return f'{head}  "texts": [\n{lines(parity.texts)}\n  ],\n  "chats": [\n{lines(parity.chats)}\n  ]\n}}\n'
