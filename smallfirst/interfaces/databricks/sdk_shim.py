"""Importing this makes `from databricks.model_training import foundation_model as fm` mean the one of this project.

Only `databricks.model_training` is put in place, for this process; an installed `databricks.sdk` and its like stay
reachable, before and after. Where SMALLFIRST_VOLUMES is set, the SDK's client puts files into those folders
(`interfaces.workspace`), as DSPy's DatabricksProvider does before it calls `create`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import smallfirst
from smallfirst.interfaces.databricks import exceptions, foundation_model
from smallfirst.interfaces.databricks import sdk_volumes as workspace

PACKAGE = "databricks.model_training"


def install() -> ModuleType:
    """The module `databricks.model_training`, importable from now on. A second call changes nothing.

    But it finds SMALLFIRST_VOLUMES if that has been set since.
    """
    workspace.install()
    present = sys.modules.get(PACKAGE)
    if present is not None and getattr(present, "foundation_model", None) is foundation_model:
        return present
    training = _package(PACKAGE)
    training.__doc__ = "The foundation_model API of smallfirst, under the name by which existing code imports it."
    training.__dict__.update(
        foundation_model=foundation_model,
        exceptions=exceptions,
        __version__=smallfirst.__version__,
        __all__=["__version__", "exceptions", "foundation_model"],
    )
    sys.modules[PACKAGE] = training
    sys.modules[f"{PACKAGE}.foundation_model"] = foundation_model
    sys.modules[f"{PACKAGE}.exceptions"] = exceptions
    _parent().__dict__["model_training"] = training
    return training


def _parent() -> ModuleType:
    """The package `databricks`: the installed one, or an empty one that finds parts installed later."""
    try:
        return importlib.import_module("databricks")
    except ModuleNotFoundError:
        parent = _package("databricks")
        parent.__path__ = pkgutil.extend_path([], "databricks")
        sys.modules["databricks"] = parent
        return parent


def _package(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    return module


install()
