"""Weights in files, from the outside in.

`load_model_for` (utils/commands/load_from.py) checks a command's options against the file, and
`read_predictor` (utils/checkpoint.py) builds the network and loads the weights into it. `load_checkpoint`
(contents.py) finds the state dict in a file, whoever wrote it; `read_file` (reading.py) unpickles the file
without running its code, after archive.py in utils/runtime/ has checked that it is undamaged. `load_weights`
(fitting.py) checks that a state dict fits a network. downloads.py fetches files, and writing.py saves them.
"""
