"""Makes ComfyUI importable, on the CPU, in a script called with a checkout and other arguments; import this first."""

import sys

ARGUMENTS = sys.argv[2:]
sys.path.insert(0, sys.argv[1])
sys.argv[1:] = ["--cpu"]

import comfy.options

comfy.options.enable_args_parsing()
