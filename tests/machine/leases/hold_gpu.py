"""A trainer on the NVML stub: holds so many MiB of its cards until it is released or told to end.

hold_gpu.py MIB RELEASE [stubborn]: RELEASE is a file whose appearance ends it; `stubborn` ignores
SIGTERM, as a trainer does that hangs in the driver.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

STATE = Path(os.environ["NVML_STUB"])


def register(mib: int, *, there: bool) -> None:
    """Put this process on its cards, or take it off."""
    with Path(f"{STATE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [line.split() for line in STATE.read_text().splitlines()]
        wanted = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        cards = [word[1] for word in words if word[0] == "gpu" and word[2] in wanted]
        me = str(os.getpid())
        kept = [word for word in words if word[0] != "compute" or word[2] != me]
        for word in kept:
            if word[0] == "gpu" and word[1] in cards:
                word[4] = str(int(word[4]) + (mib if there else -mib))
        new = [["compute", card, me, str(mib)] for card in cards] if there else []
        staged = Path(f"{STATE}.{me}")
        staged.write_text("".join(" ".join(word) + "\n" for word in [*kept, *new]))
        staged.replace(STATE)


def main() -> None:
    mib, release = int(sys.argv[1]), Path(sys.argv[2])

    def leave(_number: int, _frame: FrameType | None) -> None:
        register(mib, there=False)
        os._exit(143)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv[3:] else leave)
    register(mib, there=True)
    print("holds", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    deadline = time.monotonic() + 900
    while not release.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    register(mib, there=False)


if __name__ == "__main__":
    main()
