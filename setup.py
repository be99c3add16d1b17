"""Refuses to build a wheel: the plugin runs from its checkout, which slime needs on PYTHONPATH with its scripts."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class NoWheel(bdist_wheel):
    """The command that `pip install .` and `python -m build` run, and `pip install --editable .` does not."""

    def run(self) -> None:
        raise SystemExit("error: this project is used from its checkout: pip install --editable .")


setup(cmdclass={"bdist_wheel": NoWheel})
