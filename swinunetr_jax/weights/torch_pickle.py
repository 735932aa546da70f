"""Reads the pickle of a PyTorch weight file without unpickling.

Unpickling runs any function that a file names. torch's own `weights_only=True` had two vulnerabilities (CVE-2025-32434, CVE-2026-24747)
and refuses real checkpoints of MONAI, which contain a NumPy scalar. Therefore `interpret` executes the instructions itself: it accepts
only those that torch.save writes, computes the results of the few calls that torch_globals.py lists, and imports, calls or changes
nothing that a file names.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from swinunetr_jax.weights.torch_globals import Opaque, Refused, build, call, expect, find_global, find_storage
from swinunetr_jax.weights.weight_file import printable

_KEYS = {str, int, float, bool, bytes, type(None), Opaque}
_MAX_KEY = 1 << 60  # Python hashes larger integers modulo 2**61 - 1, so that a file could choose thousands that collide
_INSTRUCTIONS_PER_CALL = 16  # a call takes about as much time as this number of instructions


def interpret(program: bytes, read: Callable[[str], bytes], max_instructions: int) -> Any:
    """Returns the value of a pickle that consists of instructions that torch.save writes.

    Args:
        program: the pickle.
        read: a function that returns the bytes of the storage with a key.
        max_instructions: the limit for the number of instructions. One takes a third of a microsecond, and a call counts as several.

    Raises:
        Refused: the pickle has an instruction or a name that weights do not need.
        LookupError, ValueError, OverflowError: the pickle is damaged.
    """
    machine, operations = _Machine(program, read, max_instructions), _OPERATIONS
    for _ in range(max_instructions):
        code = program[machine.position]
        if code == _STOP:
            return machine.stack.pop()
        operation = operations.get(code)
        if operation is None:
            machine.refuse_instruction()
        machine.position += 1
        operation(machine)
    raise _too_many_instructions()


def _too_many_instructions() -> Refused:
    return Refused(
        "has far more instructions in its pickle than tensors need, expected only weights: get the file from a source you trust"
    )


class _Machine:
    """The state of the interpreter. Each method executes one instruction and is called with `position` after the instruction's code."""

    def __init__(self, program: bytes, read: Callable[[str], bytes], max_instructions: int):
        self.program, self.position = program, 0
        self.read, self.calls_left = read, max_instructions // _INSTRUCTIONS_PER_CALL
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}  # not a list, because an instruction of five bytes may use index 4,000,000,000

    def refuse_instruction(self) -> NoReturn:
        """Raises Refused with the name of the instruction at `position`."""
        instruction, argument, _ = next(pickletools.genops(self.program[self.position : self.position + (1 << 12)]))
        described = f"{instruction.name} {printable(argument)}" if isinstance(argument, str) else instruction.name
        raise Refused(
            f"has the pickle instruction `{described}`, which torch.save never writes for weights, "
            "so it was refused and nothing was executed: get the file from a source you trust"
        )

    # Arguments from the program and from the stack

    def take(self, count: int) -> bytes:
        start = self.position
        self.position = end = start + count
        if end > len(self.program):
            raise ValueError("the pickle ends within a value")
        return self.program[start:end]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.program.index(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1].decode("ascii")

    def pop(self, count: int) -> list:
        expect(count <= len(self.stack), "pickle stack underflow")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def pop_to_mark(self) -> list:
        return self.pop(max(len(self.stack) - self.marks.pop(), 0))

    # Values

    def skip(self, count: int) -> None:
        self.take(count)

    def constant(self, value: Any) -> None:
        self.stack.append(value)

    def new(self, kind: type) -> None:
        self.stack.append(kind())

    def unsigned(self, size: int) -> None:
        self.stack.append(int.from_bytes(self.take(size), "little"))

    def bin_int(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def long(self, size: int) -> None:
        self.stack.append(pickle.decode_long(self.take(self.integer(size))))

    def bin_float(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def unicode(self, size: int) -> None:
        self.stack.append(self.take(self.integer(size)).decode("utf-8", "surrogatepass"))

    def bin_bytes(self, size: int) -> None:
        self.stack.append(self.take(self.integer(size)))

    def opaque(self, name: str) -> None:
        self.stack.append(Opaque(name))

    def make_frozenset(self) -> None:
        self.pop_to_mark()
        self.opaque("frozenset")

    def byte_array(self) -> None:
        self.take(self.integer(8))
        self.opaque("bytearray")

    # Containers

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(self.pop(count)))

    def make_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append(self) -> None:
        self.extend(self.pop(1))

    def appends(self) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        else:
            expect(type(target) is Opaque, "APPEND to a value that is not a list")

    def set_item(self) -> None:
        self.update(self.pop(2))

    def set_items(self) -> None:
        self.update(self.pop_to_mark())

    def update(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is Opaque:
            return
        expect(type(target) is dict and len(items) % 2 == 0, "SETITEM of a value that is not a dict")
        for key in items[::2]:  # tuples are excluded, because Python hashes nested ones recursively and without a limit
            expect(type(key) in _KEYS, "a key that is neither text nor a number")
            expect(type(key) is not int or -_MAX_KEY < key < _MAX_KEY, "a key that is too large a number")
        target.update(zip(items[::2], items[1::2], strict=True))

    def add_items(self) -> None:
        self.pop_to_mark()
        expect(type(self.stack[-1]) is Opaque, "ADDITEMS of a value that is not a set")

    # The memo

    def put(self, size: int) -> None:
        self.memo[self.integer(size)] = self.stack[-1]

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, size: int) -> None:
        self.stack.append(self.memo[self.integer(size)])

    # Names and calls

    def find_global(self) -> None:
        self.stack.append(find_global(f"{self.line()}.{self.line()}"))

    def stack_global(self) -> None:
        module, name = self.pop(2)
        expect(type(module) is str and type(name) is str, "STACK_GLOBAL without names")
        self.stack.append(find_global(f"{module}.{name}"))

    def persistent(self) -> None:
        self.stack.append(find_storage(self.stack.pop()))

    def reduce(self) -> None:
        function, args = self.pop(2)
        expect(type(args) is tuple, "REDUCE without arguments")
        self.calls_left -= 1
        if self.calls_left < 0:
            raise _too_many_instructions()
        self.stack.append(call(function, args, self.read))

    def new_object(self) -> None:
        kind, args = self.pop(2)
        if type(kind) is not Opaque or type(args) is not tuple:
            self.position -= 1
            self.refuse_instruction()
        self.opaque(kind.name)

    def build(self) -> None:
        build(self.stack[-2], self.stack.pop())


def _with(method: Callable, argument: Any) -> Callable[[_Machine], None]:
    return lambda machine: method(machine, argument)


_STOP = ord(".")
_BY_NAME: dict[str, Callable[[_Machine], None]] = {
    "PROTO": _with(_Machine.skip, 1),
    "FRAME": _with(_Machine.skip, 8),
    "BININT": _Machine.bin_int,
    "BININT1": _with(_Machine.unsigned, 1),
    "BININT2": _with(_Machine.unsigned, 2),
    "LONG1": _with(_Machine.long, 1),
    "LONG4": _with(_Machine.long, 4),
    "BINFLOAT": _Machine.bin_float,
    "SHORT_BINUNICODE": _with(_Machine.unicode, 1),
    "BINUNICODE": _with(_Machine.unicode, 4),
    "BINUNICODE8": _with(_Machine.unicode, 8),
    "SHORT_BINBYTES": _with(_Machine.bin_bytes, 1),
    "BINBYTES": _with(_Machine.bin_bytes, 4),
    "BINBYTES8": _with(_Machine.bin_bytes, 8),
    "BYTEARRAY8": _Machine.byte_array,
    "NONE": _with(_Machine.constant, None),
    "NEWTRUE": _with(_Machine.constant, True),
    "NEWFALSE": _with(_Machine.constant, False),
    "EMPTY_DICT": _with(_Machine.new, dict),
    "EMPTY_LIST": _with(_Machine.new, list),
    "EMPTY_TUPLE": _with(_Machine.constant, ()),
    "EMPTY_SET": _with(_Machine.opaque, "set"),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.make_frozenset,
    "TUPLE1": _with(_Machine.tuple_of, 1),
    "TUPLE2": _with(_Machine.tuple_of, 2),
    "TUPLE3": _with(_Machine.tuple_of, 3),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _with(_Machine.put, 1),
    "LONG_BINPUT": _with(_Machine.put, 4),
    "MEMOIZE": _Machine.memoize,
    "BINGET": _with(_Machine.get, 1),
    "LONG_BINGET": _with(_Machine.get, 4),
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
}
_OPERATIONS = {ord(opcode.code): _BY_NAME[opcode.name] for opcode in pickletools.opcodes if opcode.name in _BY_NAME}
