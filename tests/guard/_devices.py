"""All guards under all layouts, on the devices of one process: writes JSON."""

import json
import sys

from tests.guard import _sharded


def main():
    ways = ["plain", *_sharded.GUARDS]
    seen = _sharded.report(ways, list(_sharded.LAYOUTS), driven=["tensor"])
    seen["alone"] = {way: _sharded.on_one_device(way) for way in _sharded.GUARDS}
    seen["clip"]["alone"] = _sharded.clip(None)
    seen["true norm"] = _sharded.true_norm(_sharded.BATCHES["huge"][0])
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
