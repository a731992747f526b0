"""One of several processes that train together over the loopback: writes JSON."""

import argparse
import json
import sys

import jax

from tests.guard import _sharded


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=int)
    parser.add_argument("--of", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--layouts", nargs="+")
    args = parser.parse_args()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{args.port}", args.of, args.index)
    seen = _sharded.report(_sharded.GUARDS, args.layouts, driven=args.layouts)
    seen["devices"] = jax.device_count()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
