"""Whether a foreign ONNX file can be read at all: first by a small reader, then as it will be, in a limited process.

Folding its constants, or asking ONNX for the shapes of its tensors, may take whatever memory and time a file wants.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edge_sel.engines.trial import limit_this_process, run_limited
from edge_sel.errors import BadInputError, EdgeSelError, GraphError, SetupError, UsageError
from edge_sel.files import read_regular
from edge_sel.pack.foreign_model import MOST_FILE_BYTES, OutsideError, survey_model
from edge_sel.pack.graph_form import WireError

MEMORY_BYTES, MEMORY_PER_WEIGHT_BYTE = 1 << 30, 24
CPU_S, CPU_S_PER_MB = 60.0, 3.0
_REFUSED = 7
"""Status of a process that has told an error of ours."""
_ERRORS = {kind.__name__: kind for kind in (BadInputError, GraphError, UsageError)}


def require_readable(path: Path, image_size: tuple[int, int] | None, classes: int | None) -> None:
    """Refuse a file that is no ONNX file, or takes more than any classifier.

    Args:
        path: of the file.
        image_size: as ``read_onnx`` will get it; ``classes`` likewise.

    Raises:
        BadInputError: it cannot be read, or not within limits.
        GraphError: it is no classifier that can be trained.
    """
    try:
        found = survey_model(read_regular(path, MOST_FILE_BYTES), path.parent)
    except FileNotFoundError:
        raise BadInputError("no such ONNX file", where=path) from None
    except OutsideError as error:
        raise BadInputError("the file's external data cannot be read", where=f"{path}: {error}",
                            fix="put the data files beside it, under their own names") from error  # fmt: skip
    except (OSError, WireError) as error:
        raise BadInputError("not an ONNX file, or not one of a classifier", where=f"{path}: {error}") from error
    memory_bytes = MEMORY_BYTES + MEMORY_PER_WEIGHT_BYTE * found.weight_bytes
    cpu_s = CPU_S + CPU_S_PER_MB * found.weight_bytes / 1e6
    asked = json.dumps([image_size, classes])
    reason, status = run_limited(__name__, asked, path.absolute(), memory_bytes, cpu_s)
    if status == _REFUSED:
        kind, what, where, fix = json.loads(reason)
        raise _ERRORS.get(kind, GraphError)(what, where=where, fix=fix)
    if reason:
        what = f"the file cannot be read in {memory_bytes >> 20} MB and {cpu_s:.0f} s ({reason})"
        raise BadInputError(what, where=path, fix="export the model again")


def main(asked: str, path: str, memory_bytes: int, cpu_s: float) -> int:
    """The child."""
    from edge_sel.server.source.onnx_model import read_onnx

    size, classes = json.loads(asked)
    limit_this_process(memory_bytes, cpu_s)
    try:
        read_onnx(Path(path), size and (size[0], size[1]), classes)
    except SetupError as error:  # such as no room
        print(error, file=sys.stderr)
        return 1
    except EdgeSelError as error:
        where = None if error.where is None else str(error.where)
        print(json.dumps([type(error).__name__, error.what, where, error.fix]), file=sys.stderr)
        return _REFUSED
    except MemoryError:
        print("it takes too much memory", file=sys.stderr)
        return 1
    except Exception as error:  # whatever ONNX makes of a damaged file
        print(f"{type(error).__name__}: {str(error)[:200]!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
