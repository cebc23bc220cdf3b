"""OpenAI's fine-tuning API as a plugin of the server: files, jobs and the models that result.

It is off unless asked for, since any key may then use this machine. A key sees its own files, jobs and models only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from smallfirst import Model
from smallfirst.base.errors import MissingExtra
from smallfirst.base.records import parse_record
from smallfirst.interfaces.jobs import queue
from smallfirst.interfaces.jobs.job_folder import require_training_packages
from smallfirst.interfaces.openai_finetuning.files import FilesApi, FileStore
from smallfirst.interfaces.openai_finetuning.jobs import JobsApi
from smallfirst.interfaces.openai_finetuning.models import FineTunedModels
from smallfirst.interfaces.openai_finetuning.settings import FineTuningSettings
from smallfirst.serving.plugins import Plugin, PluginContext


class FineTuning(Plugin):
    """The plugin; `fine_tuning()` creates one."""

    def __init__(self, settings: FineTuningSettings) -> None:
        store = FileStore(max_files=settings.max_files, max_bytes=settings.max_stored_bytes)
        self._models = FineTunedModels(max_models=settings.max_loaded_models, machine=settings.machine)
        self.routes = (*FilesApi(store, settings).routes, *JobsApi(store, self._models, settings).routes)

    def find(self, name: str, caller: str) -> Model | None:
        return self._models.find(name, caller)

    def names(self, caller: str) -> Mapping[str, int]:
        return self._models.names(caller)

    async def aclose(self) -> None:
        """Close the loaded models. Jobs continue in their own processes."""
        await self._models.aclose()


def fine_tuning(settings: FineTuningSettings | None = None) -> FineTuning:
    """Return the plugin for `serve` and `build_app`, and restart jobs whose process died. Raise MissingExtra."""
    if find_spec("python_multipart") is None:
        raise MissingExtra("Fine-tuning over HTTP", "openai-finetuning")
    require_training_packages()
    queue.all_jobs()
    return FineTuning(settings or FineTuningSettings())


def create_plugin(context: PluginContext) -> FineTuning | None:
    """Return the plugin of `smallfirst serve`, None if not enabled."""
    if not context.enabled:
        return None
    named = {name: at or name for name, _, at in (base.partition("=") for base in context.bases)}
    settings = {"base_models": named} if named else {}
    return fine_tuning(parse_record(FineTuningSettings, settings, where="--base"))
