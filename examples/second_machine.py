"""A certificate that a second machine checks, bit for bit.

    python second_machine.py write         # here: certificates of a network in integers, by whatever this processor has
    python second_machine.py check         # there: the same files, another processor

Noise on bytes is integer, and so is the network: between image and vote nothing is rounded as hardware likes.
"""

import argparse
import subprocess
from pathlib import Path


def smoothfast(*words: object) -> str:
    """Runs the command, shows what it prints, and returns it."""
    done = subprocess.run(["smoothfast", *map(str, words)], check=True, text=True, stdout=subprocess.PIPE)
    print(done.stdout, end="")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "check"])
    parser.add_argument("--folder", type=Path, default=Path("certificates"))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rows", help="which of them are checked, as 0,100; all if not given")
    asked = parser.parse_args()

    weights, log = asked.folder / "network.safetensors", asked.folder / "run.tsv"
    if asked.what == "write":
        asked.folder.mkdir(exist_ok=True)
        smoothfast("quantize", "--out", weights)  # of the embedded network; --model and --weights for yours
        smoothfast("certify", "--weights", weights, "--n", asked.n, "--max", asked.images, "--seed", 0, "--out", log)
        print(f"hand over {asked.folder}: two files and the settings")
    else:
        rows = [] if asked.rows is None else ["--rows", asked.rows]
        smoothfast("replay", log, "--weights", weights, *rows)  # exit status 1 where a bit differs


if __name__ == "__main__":
    main()
