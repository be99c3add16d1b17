"""The small part of slime that the demo and the tests need, so that both run where slime cannot be installed.

Written for this project; `tests/contracts/` holds it against the real slime when SLIME_DIR points at one.
"""
