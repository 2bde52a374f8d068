"""Compiles a bundle's files ahead of their imports, for bootstrap.py: the worker asks for it once, in a sandbox
of its own, and puts what it gets beside the bundle's files.

The handler gets the paths of the files, and yields first the name that this Python's compiled files have
(`cpython-313`) and an end of line, then for each file that can be compiled its number among the paths and the
length of what follows, four bytes each, the lowest first, and that many bytes: a `.pyc` with a hash that is not
checked, so no date makes it stale. Nothing of the bundle is run.
"""

import _imp
import marshal
import posix
import sys

import openlambda_bootstrap as bootstrap

# So much is sent at once.
MOST = 1 << 18


def handler(paths):
    try:
        # Calls go first.
        posix.nice(19)
    except OSError:
        pass
    yield (sys.implementation.cache_tag + "\n").encode()
    pieces, length = [], 0
    for number, path in enumerate(paths):
        compiled = compiled_of(f"{bootstrap.ROOT}/{path}")
        if compiled is None:
            continue
        pieces += [number.to_bytes(4, "little"), len(compiled).to_bytes(4, "little"), compiled]
        length += len(compiled)
        if length > MOST:
            yield b"".join(pieces)
            pieces, length = [], 0
    yield b"".join(pieces)


def compiled_of(path):
    """The content of the file's `.pyc`, or None where there can be none: then the import tells why."""
    magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
    try:
        with bootstrap.io.FileIO(path) as file:
            source = file.readall()
        code = compile(source, path, "exec", dont_inherit=True, optimize=-1)
        # The hash is there, and the 1 says that it is not compared.
        hash = _imp.source_hash(int.from_bytes(magic, "little"), source)
        return magic + (1).to_bytes(4, "little") + hash + marshal.dumps(code)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return None
