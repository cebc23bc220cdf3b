"""The caller: an assistant's next function call, fitted in a minute from conversations."""

from __future__ import annotations

import shutil
from statistics import fmean
from typing import cast

from smallfirst.data.conversations import NO_CALL
from smallfirst.measuring.calibration import fit_calibration
from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.path.project.candidates import Candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.tasks.call import Call


class _Caller(Candidate):
    name = "caller"
    title = "caller"
    explanation = "chooses the function from words, and each argument among the values that the conversation names"
    size = 30
    measured_by_default = True
    encoder_setting = "encoder"

    def why_unsuitable(self, project: Project) -> str:
        if isinstance(project.task, Call):
            return ""
        return f"it makes function calls, of kind call; this task is of kind {project.file.kind}"

    def minutes_to_fit(self, project: Project) -> float:
        """Return the time of the arguments' models: 25 s for 2,000 turns of a service with ten arguments."""
        return len(project.rows.train) * 12e-3 / 60

    def fit(self, project: Project, run_folder: RunFolder) -> float:
        """Fit on the training rows; calibrate the confidence of calls on the selection rows."""
        from smallfirst.models.calls.caller import FunctionCaller
        from smallfirst.models.encoder.sentence_encoder import CachedEncoder, open_encoder

        rows, folder = project.rows, run_folder.model_folder(self.name)
        base = self.encoder_name(project.file.small)
        manifest = Manifest(kind="caller", task=project.task, base=base)
        encoder = CachedEncoder(open_encoder(find_weights(base, log=project.progress.log)))
        turns = [(example.text, example.answer, example.group) for example in rows.train.examples]
        with project.progress.bar("fitting the arguments", None, "arguments") as update:
            caller = FunctionCaller.fit(turns, manifest, encoder.embed, progress=update)
        task, selection = cast(Call, project.task), rows.selection.examples
        read = caller.read([example.text for example in selection])
        right = [task.score(e.golds, one.answer) >= 1 for e, one in zip(selection, read, strict=True)]
        made = [(one.logs, ok) for one, ok in zip(read, right, strict=True) if one.answer != NO_CALL]
        calibration = fit_calibration([logs for logs, _ in made], [ok for _, ok in made])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        digest = caller.save(folder)
        found = {"calibration": calibration, "weights_fingerprint": digest}
        write_manifest(folder, manifest.model_copy(update=found))
        return fmean(right)


CALLER = _Caller()
