"""Make the built-in data set shapes: images of several coloured shapes on a noisy background.

python utils/prepare_shapes.py [--difficulty easy|medium|hard] [--overwrite]
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # it is run as a script
    import utils.runtime.quiet_interrupt  # noqa: F401  first, see there

from dataclasses import asdict

from utils.data.drawing import DIFFICULTIES
from utils.data.shapes import FOLDER, ShapesOptions, make_shapes
from utils.runtime.arguments import Parser, given_path, number
from utils.runtime.script import run_script


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description="Make the data set shapes: images with several drawn objects, and labels.")
    parser.add_argument("--difficulty", choices=DIFFICULTIES, help="how alike classes look")
    parser.add_argument("--num_train", type=number(int, 1), help="number of training images")
    parser.add_argument("--num_test", type=number(int, 1), help="number of test images")
    parser.add_argument("--size", type=number(int, 16), help="side of an image in pixels")
    parser.add_argument("--seed", type=number(int, 0), help="same seed, same files")
    parser.add_argument("--out_dir", type=given_path, default=FOLDER, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a set made with other options")
    parser.set_defaults(**asdict(ShapesOptions()))
    args = parser.parse_args(argv)
    options = ShapesOptions(args.difficulty, args.num_train, args.num_test, args.size, args.seed)
    make_shapes(args.out_dir, options, args.overwrite)


if __name__ == "__main__":
    run_script(main)
