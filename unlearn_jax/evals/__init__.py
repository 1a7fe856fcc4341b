"""Measurements of a model: import the modules (`metrics`, `run`, `classification`, ...) one by one."""
