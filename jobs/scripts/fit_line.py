"""A training script of one's own, as people have them: it knows nothing of runner.

Fits y = a x + b by gradient descent in plain Python, so that it runs in any image with Python.
On SIGTERM it saves what it has and ends, as a script should that is to be stopped in order.
"""

import argparse
import csv
import json
import signal
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True, help="CSV with columns x and y")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--out", type=Path, required=True, help="folder for model.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    with options.rows.open(newline="") as file:
        points = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    a = b = loss = 0.0
    step = 0
    try:
        for step in range(1, options.steps + 1):
            errors = [(a * x + b - y, x) for x, y in points]
            loss = sum(error**2 for error, _ in errors) / len(points)
            a -= options.learning_rate * 2 * sum(error * x for error, x in errors) / len(points)
            b -= options.learning_rate * 2 * sum(error for error, _ in errors) / len(points)
            if step % 50 == 0 or step == 1:
                print(f"step {step}  loss {loss:.6f}", flush=True)
    finally:
        options.out.mkdir(parents=True, exist_ok=True)
        result = {"a": a, "b": b, "loss": loss, "steps": step}
        (options.out / "model.json").write_text(json.dumps(result) + "\n")
    print(f"y = {a:.3f} x + {b:.3f}")


if __name__ == "__main__":
    main()
