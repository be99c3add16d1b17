"""The small part of slime that demo and evaluation need, so that both run where slime cannot be installed.

Written for this project; `tests/contracts/` compares it with the real slime when SLIME_DIR points at one.
"""
