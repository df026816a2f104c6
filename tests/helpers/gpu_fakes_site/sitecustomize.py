"""Puts simulated GPUs into every Python process whose PYTHONPATH begins with this folder. See helpers/gpu_fakes.py."""

from helpers.gpu_fakes import install

install()
