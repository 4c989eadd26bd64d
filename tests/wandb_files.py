"""A reader of Weights & Biases' offline files, which use LevelDB's log format."""

import json
import struct

import wandb
from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records_of(path):
    """Yields the protocol buffers of a file in order."""
    content, at, parts = path.read_bytes(), 7, b""  # the file header has seven bytes
    while at + _HEADER.size <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER.size:  # padding; too short for a header
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        parts += content[at : at + length]
        at += length
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
            parts = b""


def read_runs(folder):
    """Returns ({(name, id): {metric: [(step, value), ...]}}, {(project, group), ...})."""
    wandb.teardown()  # at its end, W&B's own process writes all remaining data
    runs, homes = {}, set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = list(records_of(path))
        (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        homes.add((run.project, run.run_group))
        told = runs.setdefault((run.display_name, run.run_id), {})
        for record in records:
            if record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    name = item.key or "/".join(item.nested_key)
                    point = (record.history.step.num, json.loads(item.value_json))
                    if not name.startswith("_"):
                        told.setdefault(name, []).append(point)
    return runs, homes
