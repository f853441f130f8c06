"""A llama model of random weights in the GGUF format: it knows nothing, and a real llama-server serves it.

It says random words, in English and Korean, until its end token or max_tokens. Written with the standard library only,
a megabyte in some milliseconds: the weights are windows into one tape of random numbers.
"""

import random
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_WORDS: Final = """the a of to in is and router queue model token stream worker lane bid offer lease retry score cost
load node edge cloud local fast slow green blue river stone light paper north south seven nine open close answer
안녕 라우터 대기열 모델 흐름 노드 비용 구름 바다 하늘 산 강 빛 종이 대답 질문 빠른 느린 처음 마지막 다시 언제나"""
WORDS: Final = _WORDS.split()
TEMPLATE: Final = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EOS: Final = 2
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
F32: Final = 0
ALIGNMENT: Final = 32
TAPE: Final = 65_537
"""Prime: no two rows of a tensor begin at the same place of the tape."""


@dataclass(frozen=True, slots=True)
class Shape:
    """`embd` is a multiple of 32 * heads. With `eos` 0.5 it ends after some 30 words, with -30 at max_tokens only."""

    layers: int = 4
    embd: int = 128
    heads: int = 4
    context: int = 8192
    eos: float = 0.5


TINY: Final = Shape()
ENDLESS: Final = Shape(layers=8, embd=512, heads=8, eos=-30)
"""75 MB, some hundred words a second, never done by itself."""
LARGE: Final = Shape(layers=40, embd=1024, heads=16)
"""1.5 GB: takes a while to load, and nothing on the disk when it is hollow."""


def write(path: Path, shape: Shape = TINY, *, hollow: bool = False) -> Path:
    """`hollow`: all weights are zeros that take no room on the disk."""
    plan, meta = _plan(shape), _metadata(shape)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(plan), len(meta)))
        for name, kind, value in meta:
            file.write(_string(name) + struct.pack("<I", kind) + _value(kind, value))
        offset = 0
        for name, columns, rows in plan:
            # No row is so short that its end would not be aligned.
            file.write(_string(name) + struct.pack("<IQQIQ", 2, columns, rows, F32, offset))
            offset += 4 * columns * rows
        file.write(bytes(-file.tell() % ALIGNMENT))
        if hollow:
            file.truncate(file.tell() + offset)
        else:
            file.writelines(_weights(shape, plan))
    return path


def _vocabulary() -> list[tuple[str, float, int]]:
    """Text, score and kind of each token: three of control, all bytes, ASCII, the words."""
    tokens = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    tokens += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    tokens += [("\u2581" if char == " " else char, -1000.0, NORMAL) for char in map(chr, range(32, 127))]
    return tokens + [("\u2581" + word, -float(at), NORMAL) for at, word in enumerate(WORDS)]


def _metadata(shape: Shape) -> list[tuple[str, int, Any]]:
    texts, scores, kinds = zip(*_vocabulary(), strict=True)
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "tiny-random"),
        ("general.file_type", UINT32, F32),
        ("llama.vocab_size", UINT32, len(texts)),
        ("llama.context_length", UINT32, shape.context),
        ("llama.embedding_length", UINT32, shape.embd),
        ("llama.block_count", UINT32, shape.layers),
        ("llama.feed_forward_length", UINT32, 2 * shape.embd),
        ("llama.attention.head_count", UINT32, shape.heads),
        ("llama.attention.head_count_kv", UINT32, shape.heads // 2),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("llama.rope.dimension_count", UINT32, shape.embd // shape.heads),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.pre", STRING, "default"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, texts)),
        ("tokenizer.ggml.scores", ARRAY, (FLOAT32, scores)),
        ("tokenizer.ggml.token_type", ARRAY, (INT32, kinds)),
        ("tokenizer.ggml.unknown_token_id", UINT32, 0),
        ("tokenizer.ggml.bos_token_id", UINT32, 1),
        ("tokenizer.ggml.eos_token_id", UINT32, EOS),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
        ("tokenizer.ggml.add_space_prefix", BOOL, False),
        ("tokenizer.chat_template", STRING, TEMPLATE),
    ]


def _plan(shape: Shape) -> list[tuple[str, int, int]]:
    """Every tensor by llama.cpp's name, with its columns and rows; a norm is one row."""
    embd, half, double, vocabulary = shape.embd, shape.embd // 2, 2 * shape.embd, len(_vocabulary())
    layer = [
        ("attn_q", embd, embd), ("attn_k", embd, half), ("attn_v", embd, half), ("attn_output", embd, embd),
        ("ffn_gate", embd, double), ("ffn_up", embd, double), ("ffn_down", double, embd),
        ("attn_norm", embd, 1), ("ffn_norm", embd, 1),
    ]  # fmt: skip
    whole = [("token_embd.weight", embd, vocabulary), ("output_norm.weight", embd, 1)]
    whole.append(("output.weight", embd, vocabulary))
    return whole + [
        (f"blk.{at}.{name}.weight", columns, rows) for at in range(shape.layers) for name, columns, rows in layer
    ]


def _weights(shape: Shape, plan: list[tuple[str, int, int]]) -> Iterator[bytes]:
    chance = random.Random(7)
    numbers = [chance.gauss(0, 1) for _ in range(TAPE)]
    scaled = array("f", (number * 0.5 / shape.embd**0.5 for number in numbers)).tobytes()
    for at, (name, columns, rows) in enumerate(plan):
        if name == "token_embd.weight":
            yield _embedding(numbers, shape, rows)
        elif name == "output.weight":
            yield _head(numbers, shape, rows)
        elif "norm" in name:
            yield array("f", [1.0] * columns).tobytes()
        else:
            start, size = 4 * (1009 * at % TAPE), 4 * columns * rows
            yield (scaled * ((start + size) // len(scaled) + 1))[start : start + size]


def _embedding(numbers: list[float], shape: Shape, vocabulary: int) -> bytes:
    """Its channel 0 is the same for all tokens: a bias for the head."""
    rows = array("f", (numbers[at % TAPE] for at in range(vocabulary * shape.embd)))
    rows[:: shape.embd] = array("f", [shape.embd**0.5] * vocabulary)
    return rows.tobytes()


def _head(numbers: list[float], shape: Shape, vocabulary: int) -> bytes:
    """Words are said, bytes and single characters practically never, the end as `eos` has it."""
    scale = 1.35 / shape.embd**0.5
    rows = array("f", (numbers[(at + 31) % TAPE] * scale for at in range(vocabulary * shape.embd)))
    bias = [-8.0] * (vocabulary - len(WORDS)) + [0.0] * len(WORDS)
    rows[:: shape.embd] = array("f", bias)
    end = EOS * shape.embd
    rows[end : end + shape.embd] = array("f", [shape.eos / (shape.embd / 2) ** 0.5] + [0.0] * (shape.embd - 1))
    return rows.tobytes()


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        item, values = value
        return struct.pack("<IQ", item, len(values)) + b"".join(_value(item, each) for each in values)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)
