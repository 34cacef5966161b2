"""Weights in files. A command's --load_from passes these steps, from the outside in:

1. `load_model_for` (utils/command_line/load_from.py) checks the other options against the file.
2. `read_predictor` (utils/checkpoint.py) builds the network, with the weights of the file.
3. `load_checkpoint` (contents.py) finds the state dict in the file, also in one of another program.
4. `read_file` (reading.py) reads the file without running code from it, once utils/runtime/archive.py has
   found it undamaged.

`load_weights` (fitting.py) checks that a state dict fits a network. downloads.py fetches files, and
writing.py saves them.
"""
