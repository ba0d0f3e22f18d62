"""Compare the speed of training steps with the last tag.

Command: `make bench-tag`, or `make bench-tag REF=COMMIT` for another commit. It prints ratios, and never fails.

Cost: about a minute.

The other commit is checked out below `build/`. One process imports the package from there, another one from here, and
they run blocks of steps in turn. Printed are median milliseconds per step and their ratios. Sizes are those of
`speed.py`: relaxed 20x10, and exact 8^4 and 10^2 codes.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Name -> estimator, its options, N, K, and steps per block.
SIZES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "relaxed 20x10": ("gumbel-softmax", {"kl": "relaxed"}, 20, 10, 20),
    "exact 8^4": ("exact", {}, 4, 8, 3),
    "exact 10^2": ("exact", {}, 2, 10, 20),
}
BLOCKS = 9


def main(ref: str | None) -> None:
    """Print how long steps take in this working tree, relative to a commit."""
    found = ref or _git("describe", "--tags", "--abbrev=0")
    if found is None:
        print("There is no tag to compare with. Try make bench-tag REF=COMMIT.")
        return
    tree = ROOT / "build" / "bench-tag"
    _git("worktree", "remove", "--force", str(tree))
    if _git("worktree", "add", "--detach", "--force", str(tree), found) is None:
        print(f"There is no commit '{found}' to compare with.")
        return
    try:
        compare(tree, found)
    except (OSError, ValueError) as error:  # the other commit may lack what is measured
        print(f"The package of '{found}' could not be measured: {error}")
    finally:
        _git("worktree", "remove", "--force", str(tree))


def compare(tree: Path, ref: str, blocks: int = BLOCKS) -> None:
    """Print the medians of both trees and their ratios."""
    workers = {"tag": _worker(tree), "here": _worker(ROOT)}
    try:
        for name in SIZES:
            taken: dict[str, list[float]] = {of: [] for of in workers}
            for of in [*workers] * (blocks + 1):
                taken[of].append(_asked(workers[of], name))
            tag, here = (1e3 * statistics.median(times[1:]) for times in taken.values())  # the first block records
            print(f"{name:14s} {ref} {tag:8.2f} ms, here {here:8.2f} ms: {here / tag:.2f} times", flush=True)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()


def work() -> None:
    """Read size names from standard input; for each, run a block of steps and print the seconds per step."""
    import torch

    from pyro_gvae import CategoricalVAE, estimator, make_step

    steps: dict[str, Any] = {}
    for line in sys.stdin:
        chosen, options, num_latents, num_categories, count = SIZES[line.strip()]
        if line not in steps:
            torch.manual_seed(0)
            vae = CategoricalVAE(784, num_latents, num_categories, (512, 256))
            steps[line] = make_step(vae, estimator(chosen, **options)), torch.rand(100, 784).round()
        step, x = steps[line]
        start = time.perf_counter()
        for _ in range(count):
            step(x).item()
        print(json.dumps((time.perf_counter() - start) / count), flush=True)


def _worker(tree: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--work"],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _asked(worker: subprocess.Popen[str], name: str) -> float:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{name}\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise ValueError("its process has ended.")
    return float(json.loads(line))


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    if sys.argv[1:] == ["--work"]:
        work()
    else:
        main(sys.argv[1] if sys.argv[1:] else None)
