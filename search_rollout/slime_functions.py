"""slime's functions by name, wherever a slime keeps them: they have moved between packages."""

import importlib
from typing import Any


def slime_function(*names: str) -> Any:
    """The first of these functions (`module.name`) that this slime has. Raises ImportError."""
    for package in ("slime.observability", "slime.utils"):
        for module, _, name in (path.partition(".") for path in names):
            try:
                return getattr(importlib.import_module(f"{package}.{module}"), name)
            except (ModuleNotFoundError, AttributeError):
                continue
    raise ImportError(f"this slime has no {' or '.join(names)}")
